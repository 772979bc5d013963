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
    instant_of,
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

    def stands(self, standing: Standing) -> "Account":
        """Return the account with the use that *standing*, which was made of it, says by now."""
        level = standing.level
        return Account(
            self.name, self.quota_id, self.limits, self.paused, standing.active, standing.active_backfill,
            standing.granted_hour, level, None if level is None else instant_of(standing.level_at), standing.waits,
            self.ahead,
        )  # fmt: skip

    @property
    def refill_micro(self) -> int:
        """Millionths of a token per second."""
        return int(self.limits.refill_per_second * 10**6)

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


class OpenAccount:
    """An account while decisions change its use, in place and many times over."""

    __slots__ = ("_opened", "standing")

    def __init__(self, account: Account, backfill_share: Decimal) -> None:
        self._opened = account
        self.standing = account.standing(backfill_share)

    @property
    def now(self) -> Account:
        """The account as it stands now."""
        return self._opened.stands(self.standing)


def decide(ask: Ask, accounts: Sequence[OpenAccount], micros: int) -> Denied | TooManySlots | None:
    """Decide *ask* at *micros* against every account that it concerns, all limits in one step.

    None grants, and only a grant changes the accounts.

    >>> scan = OpenAccount(Account("scan", None, Limits(1, 10, 10, Decimal(1))), Decimal("0.5"))
    >>> decide(Ask("scan"), [scan], 0)
    >>> scan.now.active
    1
    >>> [blocking.limit.value for blocking in decide(Ask("scan"), [scan], 0).blocking]
    ['max_active']
    """
    slots, backfill = ask.slots, ask.kind == "backfill"
    for one in accounts:
        if slots > one.standing.max_active:
            found = one.now
            return TooManySlots(found.limits.max_active, found.active, slots, found.quota_id, found.job_type)
    for one in accounts:
        if one.standing.blocked(slots, micros, backfill):
            return Denied(tuple(found for one in accounts for found in _told(ask, one.now, one.standing, micros)))
    for one in accounts:
        one.standing.take(slots, micros, backfill)
    return None


class Books:
    """The accounts of one tenant at one moment; an ask sees what those before it took."""

    def __init__(self, accounts: Iterable[Account], *, backfill_share: Decimal, now: datetime) -> None:
        self._accounts = {account.name: OpenAccount(account, backfill_share) for account in accounts}
        self._micros = micros_of(now)
        self._whole = self._accounts[WHOLE_TENANT]
        # No tenant-wide quota means no tenant-wide limit; its account is kept all the same, for the day it gets one.
        self._limits_all = self._whole.now.quota_id is not None

    def __contains__(self, name: str) -> bool:
        """Tell whether an account of that name is open."""
        return name in self._accounts

    def decide(self, ask: Ask) -> Denied | TooManySlots | None:
        """Grant *ask*, which is None, or tell what is in its way."""
        own = self._accounts[ask.job_type]
        if self._limits_all:
            return decide(ask, (self._whole, own), self._micros)
        refused = decide(ask, (own,), self._micros)
        if refused is None:
            self._whole.standing.take_uncounted(ask.slots, ask.kind == "backfill")
        return refused

    def concerned(self, ask: Ask) -> list[Account]:
        """Return the accounts whose limits decide *ask*, as they stand now."""
        own = self._accounts[ask.job_type].now
        return [self._whole.now, own] if self._limits_all else [own]

    def give_back(self, name: str, slots: int, kind: Kind) -> None:
        """Take an ended lease out of an account's use."""
        self._accounts[name].standing.give_back(slots, kind == "backfill")

    def accounts(self) -> dict[str, Account]:
        """Return every account as it stands now, by its name."""
        return {name: one.now for name, one in self._accounts.items()}


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
    return list(_told(ask, account, account.standing(share), micros_of(now)))


def _told(ask: Ask, account: Account, standing: Standing, micros: int) -> Iterable[Blocking]:
    blocked = standing.blocked(ask.slots, micros, ask.kind == "backfill")

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
