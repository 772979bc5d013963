"""What a worker and the ledger say to each other about one attempt at a batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jobengine.backfill.window import EventTimeWindow
from jobengine.clock import format_time


@dataclass(frozen=True, slots=True)
class ClaimedBatch:
    """A batch that a worker holds until *lease_expires_at*, under *fencing_token*."""

    tenant_id: str
    batch_id: str
    backfill_id: str
    job_type: str
    source: str
    window: EventTimeWindow
    params: Mapping[str, Any]
    attempt: int
    fencing_token: int
    lease_expires_at: datetime
    lease_seconds: int
    checkpoint: Any

    def as_json(self) -> dict[str, Any]:
        """Return the batch as every worker and handler gets it."""
        return {
            "batch_id": self.batch_id,
            "backfill_id": self.backfill_id,
            "job_type": self.job_type,
            "source": self.source,
            "window": {"start": format_time(self.window.start), "end": format_time(self.window.end)},
            "params": dict(self.params),
            "attempt": self.attempt,
            "fencing_token": self.fencing_token,
            "lease_expires_at": format_time(self.lease_expires_at),
            "checkpoint": self.checkpoint,
        }


@dataclass(frozen=True, slots=True)
class Events:
    """What an attempt did with events so far, all in all."""

    processed: int = 0
    duplicates: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A place from which the next attempt may go on; None is one too."""

    value: Any


@dataclass(frozen=True, slots=True)
class Beat:
    """What a worker learns from its heartbeat."""

    lease_expires_at: datetime
    cancel_requested: bool


@dataclass(frozen=True, slots=True)
class EventClaim:
    """The answer to a claim: keys to process, keys to leave, keys that another live attempt holds."""

    fresh: list[str]
    duplicates: list[str]
    busy: list[str]
