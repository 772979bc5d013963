"""What an acquire brings, as a value."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypedDict
from uuid import uuid4


@dataclass(frozen=True, slots=True)
class Grant:
    """Slots of *job_type* until *expires_at* of the database's clock; *fencing_token* grows with every grant.

    *valid_until* is the same moment by this machine's monotonic clock, and never later: it counts from before the
    request was sent, so no step of any wall clock moves it. *repeated*: the job had this lease before it was asked for.
    """

    lease_id: str
    fencing_token: int
    job_type: str
    slots: int
    lease_seconds: int
    expires_at: datetime
    quota_id: str | None
    job_id: str
    repeated: bool = False
    valid_until: float = field(default=0.0, repr=False, compare=False)


class Wanted(TypedDict, total=False):
    """What may be said beside the job type: *slots* (1), *lease_seconds* (300; 5 to 3,600), *job_id*, *kind* ("live").

    A *job_id* names one job: whoever asks under it while its lease lives gets that same lease.
    """

    slots: int
    lease_seconds: int
    job_id: str | None
    kind: Literal["live", "backfill"]


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked for. A job without a name gets one: a repeat after a time-out would be a second job otherwise."""

    job_type: str
    job_id: str
    slots: int
    lease_seconds: int
    kind: str

    @classmethod
    def of(cls, job_type: str, wanted: Wanted) -> "Ask":
        """Return what a caller asks for."""
        return cls(
            job_type,
            wanted.get("job_id") or f"call-{uuid4()}",
            wanted.get("slots", 1),
            wanted.get("lease_seconds", 300),
            wanted.get("kind", "live"),
        )
