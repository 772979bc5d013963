"""What a backfill is: its states and moves, its counts and stop rules, and the digests that tell two apart.

pending → running → completed | failed      by its batches
pending, running → paused → back            pause, resume
pending, running, paused → canceling → canceled    cancel
failed → running                            retry-failed
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from hashlib import blake2b, sha256
from types import MappingProxyType
from typing import Any, Final, Self, cast

import rfc8785

from jobengine.backfill.window import EventTimeWindow, Partition
from jobengine.errors import Conflict, ValidationFailed

MAX_PARAMS_BYTES: Final = 16 * 1024
_PARAMS: Final = "params"


class BackfillStatus(StrEnum):
    """Where a backfill stands."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    CANCELING = "canceling"
    CANCELED = "canceled"
    COMPLETED = "completed"
    FAILED = "failed"


ACTIVE: Final = frozenset(
    {BackfillStatus.PENDING, BackfillStatus.RUNNING, BackfillStatus.PAUSED, BackfillStatus.CANCELING}
)
"""The states in which a backfill may still touch events."""


class BatchStatus(StrEnum):
    """Where a batch, or a stretch of batches nobody has touched, stands."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELED = "canceled"


class Order(StrEnum):
    """Which end of the window goes first."""

    FORWARD = "forward"
    BACKWARD = "backward"


class Reprocess(StrEnum):
    """Which part of the window is worked on: what never succeeded, what failed last, or everything once more."""

    MISSING = "missing"
    FAILED = "failed"
    ALL = "all"


class Move(StrEnum):
    """What a person may ask of a backfill."""

    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"
    RETRY_FAILED = "retry-failed"


MOVES: Final[Mapping[tuple[BackfillStatus, Move], BackfillStatus]] = MappingProxyType(
    {
        (BackfillStatus.PENDING, Move.PAUSE): BackfillStatus.PAUSED,
        (BackfillStatus.RUNNING, Move.PAUSE): BackfillStatus.PAUSED,
        (BackfillStatus.PAUSED, Move.RESUME): BackfillStatus.RUNNING,
        (BackfillStatus.PENDING, Move.CANCEL): BackfillStatus.CANCELING,
        (BackfillStatus.RUNNING, Move.CANCEL): BackfillStatus.CANCELING,
        (BackfillStatus.PAUSED, Move.CANCEL): BackfillStatus.CANCELING,
        (BackfillStatus.FAILED, Move.RETRY_FAILED): BackfillStatus.RUNNING,
    }
)
"""Every move a state allows, and the state it leads to; what does not stand here is forbidden."""


def moved(status: BackfillStatus, move: Move, *, started: bool) -> BackfillStatus:
    """Return the state that *move* leads to; one resumed before its first batch *started* is pending again.

    Raises Conflict with the code ``invalid_state`` when the state forbids the move.

    >>> moved(BackfillStatus.PAUSED, Move.RESUME, started=False)
    <BackfillStatus.PENDING: 'pending'>
    """
    after = MOVES.get((status, move))
    if after is None:
        detail = f"a {status} backfill does not take {move}"
        raise Conflict(detail, code="invalid_state")
    return BackfillStatus.PENDING if move is Move.RESUME and not started else after


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many batches stand where; raises ValueError unless the states sum to *total*."""

    total: int
    pending: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    skipped: int = 0
    canceled: int = 0

    def __post_init__(self) -> None:
        states = (self.pending, self.running, self.succeeded, self.failed, self.skipped, self.canceled)
        if min(states) < 0 or sum(states) != self.total:
            message = f"the counts {states} are not {self.total} batches"
            raise ValueError(message)

    @property
    def open(self) -> int:
        """Batches that wait or run."""
        return self.pending + self.running

    @property
    def settled(self) -> bool:
        """Whether every planned batch has ended; never so for a backfill that has no batch at all."""
        return self.total > 0 and self.open == 0

    def verdict(self) -> BackfillStatus | None:
        """Return how a backfill with these counts ended, or None while it has not, or was canceled instead.

        >>> Counts(total=3, succeeded=2, skipped=1).verdict()
        <BackfillStatus.COMPLETED: 'completed'>
        >>> Counts(total=3, succeeded=2, failed=1).verdict()
        <BackfillStatus.FAILED: 'failed'>
        """
        if not self.settled:
            return None
        if self.failed:
            return BackfillStatus.FAILED
        return None if self.canceled else BackfillStatus.COMPLETED


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRules:
    """How many batches, and what share of them (0 to 1), may fail before a backfill stops; None sets no bound.

    The share is of all batches to be run, the skipped left out: it is exceeded only when no later success could mend
    it, and never because the first of many failed.
    """

    max_failures: int | None = None
    max_failure_rate: float | None = None

    def tripped(self, counts: Counts) -> bool:
        """Tell whether more has failed than these rules allow.

        >>> StopRules(max_failures=1).tripped(Counts(total=3, failed=1, pending=2))
        False
        >>> StopRules(max_failure_rate=0.5).tripped(Counts(total=3, failed=2, pending=1))
        True
        """
        if self.max_failures is not None and counts.failed > self.max_failures:
            return True
        if self.max_failure_rate is None:
            return False
        # The share as it was written: as floats, 0.29 of 100 batches is less than 29.
        return counts.failed > Decimal(str(self.max_failure_rate)) * (counts.total - counts.skipped)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """How fast batches end (a second, failed ones included) and when the last will; None where that is unknown."""

    rate: float | None
    eta: datetime | None


def estimate(counts: Counts, status: BackfillStatus, *, ran_for: timedelta, now: datetime) -> Estimate:
    """Work out pace and end from the time a backfill *ran_for*; only a running one with work left has an end to expect.

    >>> from datetime import UTC
    >>> half = Counts(total=20, succeeded=10, pending=10)
    >>> midnight = datetime(2026, 1, 1, tzinfo=UTC)
    >>> pace = estimate(half, BackfillStatus.RUNNING, ran_for=timedelta(seconds=5), now=midnight)
    >>> pace.rate, f"{pace.eta:%X}"
    (2.0, '00:00:05')
    """
    ended = counts.succeeded + counts.failed
    if not ended or ran_for <= timedelta(0):
        return Estimate(rate=None, eta=None)
    rate = ended / ran_for.total_seconds()
    if status is not BackfillStatus.RUNNING or not counts.open:
        return Estimate(rate=rate, eta=None)
    try:
        return Estimate(rate=rate, eta=now + ran_for * counts.open / ended)
    except OverflowError:
        return Estimate(rate=rate, eta=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillRequest:
    """A backfill as it was asked for and where it stands; its reason and ticket are read from the audit entry alone."""

    backfill_id: str
    tenant_id: str
    job_type: str
    source: str
    window: EventTimeWindow
    params: bytes
    """The RFC 8785 form."""
    params_digest: bytes
    """Made once, from what was sent: 1e20 reads back as an integer, which has no RFC 8785 form."""
    partition: Partition
    order: Order
    reprocess: Reprocess
    max_active: int | None
    stop_rules: StopRules
    status: BackfillStatus
    requested_by: str
    token_id: str
    audit_entry_id: str
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def scope(self) -> bytes:
        """The digest that requests share when they may repeat each other's work."""
        return scope_digest(self.job_type, self.source, self.params_digest)

    def after(self, move: Move) -> Self:
        """Return this backfill as *move* leaves it; raises Conflict ``invalid_state`` when its state forbids that."""
        status = moved(self.status, move, started=self.started_at is not None)
        return replace(self, status=status, finished_at=None)


def canonical_params(params: Mapping[str, object] | None) -> bytes:
    """Return the RFC 8785 form of *params*, absent ones being ``{}``.

    Raises ValidationFailed for what has no such form (an integer beyond 2^53 - 1 either way, NaN, an infinity, a lone
    surrogate) and for more than 16 KiB.

    >>> canonical_params({"b": 1.0, "a": [True, None]})
    b'{"a":[true,null],"b":1}'
    """
    try:
        canonical = rfc8785.dumps(cast("Any", dict(params or {})))
    except (ValueError, RecursionError) as error:
        message = "has a value without an RFC 8785 form, such as an integer beyond 2^53 - 1"
        raise ValidationFailed(_PARAMS, message) from error
    if len(canonical) > MAX_PARAMS_BYTES:
        message = f"must be at most {MAX_PARAMS_BYTES} bytes"
        raise ValidationFailed(_PARAMS, message)
    return canonical


def params_digest(params: Mapping[str, object] | None) -> bytes:
    """Return the SHA-256 of the RFC 8785 form of *params*, absent ones being ``{}``; raises as `canonical_params` does.

    >>> params_digest(None) == params_digest({}), params_digest({"a": 1}) == params_digest({"a": 1.0})
    (True, True)
    """
    return sha256(canonical_params(params)).digest()


def scope_digest(job_type: str, source: str, params_digest: bytes) -> bytes:
    """Return the 128 bits that stand, within a tenant, for a job type, a source and the digest of its parameters.

    >>> scope_digest("ab", "c", b"") == scope_digest("a", "bc", b"")
    False
    """
    parts = (job_type.encode(), source.encode(), params_digest)
    return blake2b(b"".join(len(part).to_bytes(4) + part for part in parts), digest_size=16).digest()


def event_digest(key: str) -> bytes:
    """Return the 128 bits by which an event key is remembered.

    A false "already processed" drops an event, and 64 bits would tell one with a chance of 5 % in 10^9 look-ups among
    10^9 keys.

    >>> event_digest("order-1").hex()
    '56eea00bbcad2f0a2ca2cc13492405d7'
    """
    return blake2b(key.encode(), digest_size=16).digest()
