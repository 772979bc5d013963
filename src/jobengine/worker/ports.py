"""What a runner needs of the world: a line to the ledger for each attempt, and how handlers are called here."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from jobengine.backfill.attempts import Beat, ClaimedBatch, EventClaim, Events
from jobengine.tracing import NO_TRACES, Traces


class AttemptLine(Protocol):
    """What a running attempt may say; every call may raise LeaseLost.

    All but the beat are said again while nobody answers: each may be said twice, and whoever listens to the beat ends
    it when the lease is over.
    """

    @property
    def batch(self) -> ClaimedBatch:
        """The batch as it was claimed."""
        ...

    async def claim(self, keys: Sequence[str]) -> EventClaim:
        """Claim event keys; raises ValidationFailed."""
        ...

    async def save(self, checkpoint: Any, events: Events) -> None:
        """Make what was claimed so far final, and remember where to go on; raises ValidationFailed."""
        ...

    async def beat(self) -> Beat:
        """Stay alive; said once."""
        ...

    async def complete(self, events: Events | None) -> None:
        """End the batch well; *events* None means: as last reported."""
        ...

    async def fail(self, error: str, *, retryable: bool) -> None:
        """End the attempt badly."""
        ...

    async def give_back(self) -> None:
        """End the attempt because its worker leaves; it is not counted."""
        ...


@dataclass(frozen=True, slots=True)
class Workplace:
    """How batches are run here: *handlers* by job type, the *url* they call, and a token for each attempt."""

    handlers: Mapping[str, str]
    url: str
    token: Callable[[ClaimedBatch], Awaitable[str]] = field(repr=False)
    traces: Traces = NO_TRACES
