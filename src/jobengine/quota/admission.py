"""The admission decision: one pure function that looks at every limit at once.

Instants and amounts are exact: a bucket's level is an integer number of 10^-12 tokens, because microseconds times
millionths of a token per second are just that. A floor at each grant would lose the fraction (and did, elsewhere).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Literal

from jobengine.quota.model import Limits
from jobengine.quota.standing import (
    MAX_ACTIVE,
    MAX_PER_HOUR,
    PAUSED,
    RATE,
    SHARE,
    TOKEN,
    Standing,
    micros_of,
)

Kind = Literal["live", "backfill"]
WHOLE_TENANT = ""


class LimitKind(StrEnum):
    """What can block an admission."""

    MAX_ACTIVE = "max_active"
    MAX_PER_HOUR = "max_per_hour"
    RATE = "rate"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class Ask:
    """A scheduler's question: may a job of *job_type* take *slots* for *lease_seconds*?"""

    job_type: str
    slots: int = 1
    lease_seconds: int = 300
    kind: Kind = "live"
    job_id: str | None = None


@dataclass(frozen=True, slots=True)
class Account:
    """What one limit's holder has and uses at the decision's time; *name* is a job type or WHOLE_TENANT.

    *bucket_pico* is the level at *bucket_at* in 10^-12 tokens, None where no token was ever taken: full.
    *batch_waits*: a batch could run here and none does, so live work leaves it one slot. *ahead*: when overrides end,
    and the limits from then on.
    """

    name: str
    quota_id: str | None
    limits: Limits
    paused: bool = False
    active: int = 0
    active_backfill: int = 0
    granted_hour: int = 0
    bucket_pico: int | None = None
    bucket_at: datetime | None = None
    batch_waits: bool = False
    ahead: tuple[tuple[datetime, Limits], ...] = ()

    @property
    def job_type(self) -> str | None:
        """The job type as the contract shows it: None for the tenant as a whole."""
        return self.name or None

    def level_pico(self, now: datetime) -> int:
        """Return the bucket's level at *now* in 10^-12 tokens: never above the burst, never refilled backwards.

        >>> from datetime import UTC, timedelta
        >>> then = datetime(2026, 1, 1, tzinfo=UTC)
        >>> limits = Limits(1, 1, 5, Decimal(1))
        >>> Account("scan", None, limits, bucket_pico=0, bucket_at=then).level_pico(then + timedelta(seconds=0.9))
        900000000000
        """
        return self.standing(Decimal(0)).level_pico(micros_of(now))

    def standing(self, backfill_share: Decimal) -> Standing:
        """Return what the account may use and uses as the numbers that decide."""
        standing = Standing()
        standing.limit(self.limits, backfill_share, paused=self.paused, waits=self.batch_waits)
        standing.active, standing.active_backfill = self.active, self.active_backfill
        standing.granted_hour = self.granted_hour
        if self.bucket_pico is not None and self.bucket_at is not None:
            standing.level, standing.level_at = self.bucket_pico, micros_of(self.bucket_at)
        return standing

    @property
    def refill_micro(self) -> int:
        """Millionths of a token per second."""
        return int(self.limits.refill_per_second * 10**6)

    def holding(self, slots: int, backfill_slots: int, admissions: int) -> "Account":
        """Return the account with so much more held and admitted, or less where negative; the bucket stays as it is.

        >>> Account("scan", None, Limits(9, 9, 9, Decimal(1))).holding(2, 0, 1).active
        2
        """
        return Account(
            self.name, self.quota_id, self.limits, self.paused, self.active + slots,
            self.active_backfill + backfill_slots, self.granted_hour + admissions, self.bucket_pico, self.bucket_at,
            self.batch_waits, self.ahead,
        )  # fmt: skip

    def settled(self, past: Sequence[tuple[datetime, Limits]]) -> "Account":
        """Return the account with its bucket counted up to the last change of its limits.

        *past* are limits that held, in their order, each with the time until which it did: a change acts from its
        own time on, and never on what was refilled before.

        >>> from datetime import UTC, timedelta
        >>> then, minute = datetime(2026, 1, 1, tzinfo=UTC), timedelta(minutes=1)
        >>> raised = Account("scan", None, Limits(1, 1, 500, Decimal(2)), bucket_pico=0, bucket_at=then)
        >>> raised.settled([(then + minute, Limits(1, 1, 500, Decimal(1)))]).level_pico(then + 2 * minute) // TOKEN
        180
        """
        account = self
        for until, limits in past:
            if account.bucket_at is not None and until > account.bucket_at:
                level = replace(account, limits=limits).level_pico(until)
                account = replace(account, bucket_pico=level, bucket_at=until)
        return account


@dataclass(frozen=True, slots=True)
class Blocking:
    """One limit that stands in the way; *retry_after_seconds* is None where waiting cannot help.

    *by_share*: what blocks is the part of the slots that backfills may hold.
    """

    limit: LimitKind
    quota_id: str | None
    job_type: str | None
    maximum: int
    used: int
    requested: int
    retry_after_seconds: float | None = None
    by_share: bool = False

    @property
    def surplus(self) -> int:
        """How much must go before the ask fits."""
        return self.used + self.requested - self.maximum


@dataclass(frozen=True, slots=True)
class Admitted:
    """Every limit grants; *accounts* are the accounts after the grant."""

    accounts: tuple[Account, ...]


@dataclass(frozen=True, slots=True)
class Denied:
    """At least one limit blocks; nothing was taken anywhere."""

    blocking: tuple[Blocking, ...]


@dataclass(frozen=True, slots=True)
class TooManySlots:
    """More slots than the limit could ever grant; *used* of them are held now."""

    maximum: int
    used: int
    requested: int
    quota_id: str | None
    job_type: str | None


Decision = Admitted | Denied | TooManySlots


def decide(ask: Ask, accounts: Sequence[Account], *, backfill_share: Decimal, now: datetime) -> Decision:
    """Decide *ask* against every account that it concerns, all limits in one step.

    >>> from datetime import UTC, timedelta
    >>> scan = Account("scan", None, Limits(1, 10, 10, Decimal(1)))
    >>> first = decide(Ask("scan"), [scan], backfill_share=Decimal("0.5"), now=datetime(2026, 1, 1, tzinfo=UTC))
    >>> first.accounts[0].active
    1
    >>> new_year = datetime(2026, 1, 1, tzinfo=UTC)
    >>> second = decide(Ask("scan"), first.accounts, backfill_share=Decimal("0.5"), now=new_year)
    >>> [blocking.limit.value for blocking in second.blocking]
    ['max_active']
    """
    for account in accounts:
        if ask.slots > account.limits.max_active:
            return TooManySlots(
                account.limits.max_active, account.active, ask.slots, account.quota_id, account.job_type
            )
    micros, backfill = micros_of(now), ask.kind == "backfill"
    standings = [account.standing(backfill_share) for account in accounts]
    blocked = [standing.blocked(ask.slots, micros, backfill) for standing in standings]
    if any(blocked):
        told = zip(accounts, standings, blocked, strict=True)
        return Denied(tuple(found for one in told for found in _told(ask, *one, micros=micros)))
    for standing in standings:
        standing.take(ask.slots, micros, backfill)
    return Admitted(tuple(_taken(one, after, now) for one, after in zip(accounts, standings, strict=True)))


def slot_maximum(account: Account, kind: Kind, backfill_share: Decimal) -> int:
    """Return how many slots *kind* may hold: the cap of backfills, and the floor that live work leaves them.

    >>> account = Account("scan", None, Limits(5, 1, 1, Decimal(1)), batch_waits=True)
    >>> slot_maximum(account, "backfill", Decimal("0.5")), slot_maximum(account, "live", Decimal("0.5"))
    (2, 4)
    """
    standing = account.standing(backfill_share)
    return standing.backfill_most if kind == "backfill" else standing.live_most


def blocking_limits(ask: Ask, account: Account, share: Decimal, now: datetime) -> list[Blocking]:
    """Return what of one account's limits is in the way of *ask* at *now*."""
    standing, micros = account.standing(share), micros_of(now)
    return list(
        _told(ask, account, standing, standing.blocked(ask.slots, micros, ask.kind == "backfill"), micros=micros)
    )


def _told(ask: Ask, account: Account, standing: Standing, blocked: int, *, micros: int) -> Iterable[Blocking]:
    def told(limit: LimitKind, maximum: int, used: int, requested: int) -> Blocking:
        return Blocking(limit, account.quota_id, account.job_type, maximum, used, requested)

    if blocked & PAUSED:
        yield told(LimitKind.PAUSED, standing.max_active, standing.active, ask.slots)
    if blocked & MAX_ACTIVE:
        most = standing.max_active if ask.kind == "backfill" else standing.live_most
        yield told(LimitKind.MAX_ACTIVE, most, standing.active, ask.slots)
    if blocked & SHARE:
        by_share = told(LimitKind.MAX_ACTIVE, standing.backfill_most, standing.active_backfill, ask.slots)
        yield replace(by_share, by_share=True)
    if blocked & MAX_PER_HOUR:
        yield told(LimitKind.MAX_PER_HOUR, standing.max_per_hour, standing.granted_hour, 1)
    if blocked & RATE:
        burst = account.limits.burst
        yield told(LimitKind.RATE, burst, burst - standing.level_pico(micros) // TOKEN, 1)


def _taken(account: Account, after: Standing, now: datetime) -> Account:
    waits = account.batch_waits and after.active_backfill == account.active_backfill
    return Account(
        account.name, account.quota_id, account.limits, account.paused, after.active, after.active_backfill,
        after.granted_hour, after.level, now, waits, account.ahead,
    )  # fmt: skip
