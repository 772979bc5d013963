"""What limits would have done, as values: the record of asks, the question, and the answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from hashlib import sha256
from typing import Any, Final

from jobengine.audit.canonical import canonical
from jobengine.quota.model import Limits

SECOND: Final = 10**6
WHOLE_TENANT: Final = ""
# What an operation of a moment is: an ask (for a backfill, granted), or the end of a lease (of a backfill, by expiry).
BACKFILL: Final = 1
GRANTED: Final = 2
END: Final = 4
EXPIRED: Final = 2


@dataclass(frozen=True, slots=True)
class Told:
    """What a moment says of one account when it is new, or its limits are: its use is that before the moment.

    *limited*: it has a quota, or is a job type, which always has limits. Of the admissions of its hour only the number
    is known; they are taken to be of *hour_at*.
    """

    account: str
    limited: bool
    paused: bool
    limits: Limits
    share: Decimal
    active: int
    active_backfill: int
    granted_hour: int
    hour_at: int
    level: int | None
    level_at: int


@dataclass(frozen=True, slots=True)
class Moment:
    """One transaction of admission, at *at* in microseconds since 1970; the columns are its operations in order.

    *waits* are those of *accounts* where a batch could run and none did. *places* say whose an operation is by its
    place in *accounts*; *seconds* are an ask's lease, or how many milliseconds ago a lease expired; *tokens* are the
    leases' fencing tokens, 0 for an ask that was denied.
    """

    at: int
    accounts: Sequence[str]
    told: Sequence[Told]
    waits: Sequence[str]
    kinds: Sequence[int]
    places: Sequence[int]
    slots: Sequence[int]
    seconds: Sequence[int]
    tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class Question:
    """Which limits to try on whose account; no limits: those of the time, which must decide as was decided then.

    Asks before *since* are taken as they were decided, to know what was in use.
    """

    account: str
    limits: Limits | None = None
    since: int = 0


@dataclass(frozen=True, slots=True)
class Simulation:
    """What became of the asks of one account, then and now.

    *wait_p95_micros*: 19 of 20 asks would wait no longer until the moment at which the same ask would be granted; a
    granted ask waits 0. None: for more than one in 20 that moment does not lie in the record.
    """

    asks: int
    granted: int
    would_grant: int
    peak_active: int
    wait_p95_micros: int | None
    changed: int
    first_at: int | None
    last_at: int | None
    decisions: str

    @property
    def wait_p95_seconds(self) -> float | None:
        """The wait in seconds."""
        return None if self.wait_p95_micros is None else self.wait_p95_micros / SECOND

    def result_hash(self, tenant_id: str, question: Question) -> str:
        """Return the SHA-256 of the RFC 8785 form of what was asked, of which asks, and how each was decided."""
        said = {
            "format": 1,
            "tenant_id": tenant_id,
            "account": question.account,
            "limits": question.limits and question.limits.as_json(),
            "first_at": self.first_at,
            "last_at": self.last_at,
            "decisions": self.decisions,
            **self.as_json(),
        }
        return sha256(canonical(said)).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """Return the members that people see."""
        return {
            "asks": self.asks,
            "granted": self.granted,
            "denied": self.asks - self.granted,
            "would_grant": self.would_grant,
            "would_deny": self.asks - self.would_grant,
            "peak_active": self.peak_active,
            "wait_p95_seconds": self.wait_p95_seconds,
        }
