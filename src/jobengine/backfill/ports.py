"""What the backfill core needs of storage, within one tenant's open transaction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from jobengine.backfill.model import BackfillRequest, Move, Reprocess
from jobengine.backfill.planner import Coverage, Plan
from jobengine.backfill.suppressor import Earlier
from jobengine.backfill.window import EventTimeWindow


@dataclass(frozen=True, slots=True)
class JobKind:
    """How batches of a job type run, fixed for a backfill when it is made."""

    handler: str
    external: bool
    lease_seconds: int
    max_attempts: int


@dataclass(frozen=True, slots=True)
class Key:
    """Requests of one tenant with the same key may repeat each other's work."""

    job_type: str
    source: str
    params_digest: bytes


class BackfillRepository(Protocol):
    """Backfills of one tenant; whatever it is told is kept if and only if the transaction commits."""

    async def lock_key(self, key: Key) -> None:
        """Let one request under *key* decide at a time."""
        ...

    async def earlier(self, key: Key, window: EventTimeWindow) -> Sequence[Earlier]:
        """Return the backfills under *key* that overlap *window* and could suppress a request."""
        ...

    async def coverage(self, key: Key, window: EventTimeWindow, reprocess: Reprocess) -> Coverage:
        """Return what earlier batches under *key* left within *window*, as far as *reprocess* asks for it."""
        ...

    async def add(self, request: BackfillRequest, plan: Plan, job: JobKind, trace_id: str) -> None:
        """Store a new backfill and its plan; its first batches are ready when the transaction commits."""
        ...

    async def lock(self, backfill_id: str) -> BackfillRequest:
        """Return the backfill and keep others from moving it; raises NotFound."""
        ...

    async def move(self, backfill_id: str, move: Move) -> None:
        """Carry out an allowed move of a locked backfill on its batches."""
        ...
