"""Admission as the contract says it, written down a second time: lists of leases and grants, and exact fractions."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction

from hypothesis import strategies as st
from tests.factories import NOW

from jobengine.quota.admission import WHOLE_TENANT, Account, Ask, Denied, LimitKind, OpenAccount, TooManySlots, decide
from jobengine.quota.model import Limits
from jobengine.quota.standing import micros_of
from jobengine.quota.waiting import HOUR, Holding, Outlook

SHARE = Decimal("0.5")


@dataclass(frozen=True, slots=True)
class Admitted:
    """A grant: the accounts after it."""

    accounts: tuple[Account, ...]


Decision = Admitted | Denied | TooManySlots


def decision(ask: Ask, accounts: Sequence[Account], *, backfill_share: Decimal, now: datetime) -> Decision:
    """Decide one ask against accounts as they are, and say how they stand afterwards."""
    opened = [OpenAccount(account, backfill_share) for account in accounts]
    refused = decide(ask, opened, micros_of(now))
    after = tuple(one.now for one in opened)
    assert refused is None or after == tuple(accounts), "a denial costs nothing"
    return refused or Admitted(after)


@dataclass(slots=True)
class World:
    """One limit's holder and everything that happened to it, under limits that never change."""

    name: str
    limits: Limits
    paused: bool = False
    batch_waits: bool = False
    leases: list[tuple[datetime, int, str]] = field(default_factory=list)
    grants: list[datetime] = field(default_factory=list)
    bucket: tuple[int, datetime] | None = None
    raised: tuple[Limits, datetime] | None = None

    def limits_at(self, now: datetime) -> Limits:
        """The limits in force: the raised ones until they end."""
        return self.raised[0] if self.raised and now < self.raised[1] else self.limits

    def held(self, now: datetime, kind: str | None = None) -> int:
        """Slots of the leases that live at *now*."""
        return sum(slots for until, slots, sort in self.leases if until > now and kind in (None, sort))

    def hour(self, now: datetime) -> list[datetime]:
        """Admissions of the rolling hour."""
        return [at for at in self.grants if now - HOUR < at <= now]

    def tokens(self, now: datetime) -> Fraction:
        """What is in the bucket, from the first grant on, without rounding."""
        level, before = Fraction(self.limits_at(self.grants[0] if self.grants else now).burst), now
        for number, at in enumerate([*self.grants, now]):
            micros = max(0, (at - before) // timedelta(microseconds=1))
            limits = self.limits_at(at)
            refilled = Fraction(limits.refill_per_second) * micros / 10**6 if number else 0
            level = min(Fraction(limits.burst), level + refilled)
            level -= number < len(self.grants)
            before = at
        return level

    def refuses(self, ask: Ask, now: datetime) -> set[LimitKind]:
        """Which limits say no, in the words of the contract."""
        limits = self.limits_at(now)
        most = limits.max_active
        floor = 1 if ask.kind == "live" and self.batch_waits and most >= 2 else 0
        cap = max(1, most // 2) if ask.kind == "backfill" else most
        no = {
            LimitKind.PAUSED: self.paused,
            LimitKind.MAX_ACTIVE: self.held(now) + ask.slots > most - floor
            or (ask.kind == "backfill" and self.held(now, "backfill") + ask.slots > cap),
            LimitKind.MAX_PER_HOUR: len(self.hour(now)) + 1 > limits.max_per_hour,
            LimitKind.RATE: self.tokens(now) < 1,
        }
        return {limit for limit, refused in no.items() if refused}

    def account(self, now: datetime) -> Account:
        """What storage would hand to the decision."""
        level, at = self.bucket or (None, None)
        return Account(
            self.name,
            None,
            self.limits_at(now),
            self.paused,
            self.held(now),
            self.held(now, "backfill"),
            len(self.hour(now)),
            level,
            at,
            self.batch_waits,
            ((self.raised[1], self.limits),) if self.raised and now < self.raised[1] else (),
        )

    def take(self, ask: Ask, after: Account, now: datetime) -> None:
        """Keep what an admission left."""
        self.leases.append((now + timedelta(seconds=ask.lease_seconds), ask.slots, ask.kind))
        self.grants.append(now)
        assert after.bucket_pico is not None
        self.bucket = (after.bucket_pico, now)

    def outlook(self, now: datetime) -> Outlook:
        """What storage would tell about the future."""
        live = [lease for lease in self.leases if lease[0] > now]
        return Outlook(
            [Holding(until, slots) for until, slots, _ in live],
            [Holding(until, slots) for until, slots, kind in live if kind == "backfill"],
            [(at, 1) for at in self.hour(now)],
        )


def worlds(name: str) -> st.SearchStrategy[World]:
    """Small limits, so that every one of them blocks now and then."""
    limits = st.builds(
        Limits,
        st.integers(0, 6),
        st.integers(0, 6),
        st.integers(0, 5),
        st.sampled_from([Decimal(0), Decimal("0.000001"), Decimal("0.3"), Decimal(1), Decimal("7.123456")]),
    )
    return st.builds(World, st.just(name), limits, st.sampled_from([False] * 7 + [True]), st.booleans())


def raised(world: World, more: tuple[int, int, int, int], seconds: int) -> World:
    """The same world while an override holds, which ends after *seconds*."""
    base = world.limits
    limits = Limits(
        base.max_active + more[0], base.max_per_hour + more[1], base.burst + more[2], base.refill_per_second + more[3]
    )
    return replace(world, raised=(limits, NOW + timedelta(seconds=seconds)))


steps = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 5_000_000), st.integers(0, 4_000_000_000)).map(lambda us: timedelta(microseconds=us)),
        st.builds(
            Ask,
            st.just("scan"),
            st.integers(1, 4),
            st.integers(5, 3_600),
            st.sampled_from(["live", "backfill"]),
        ),
    ),
    max_size=14,
)
"""Questions, and how long after the one before each is asked."""

both = st.tuples(worlds(WHOLE_TENANT), worlds("scan"))
Worlds = Sequence[World]
more = st.tuples(*[st.integers(0, 6)] * 4)
raised_both = st.tuples(*[
    st.builds(raised, worlds(name), more, st.integers(1, 7_000)) for name in (WHOLE_TENANT, "scan")
])  # fmt: skip
