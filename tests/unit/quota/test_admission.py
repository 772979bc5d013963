"""The decision and its explanation, against a second reading of the contract."""

from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.factories import NOW, limits
from tests.unit.quota.world import SHARE, Admitted, Decision, World, Worlds, both, decision, raised_both, steps

from jobengine.quota.admission import (
    TOKEN,
    Account,
    Ask,
    Blocking,
    Denied,
    LimitKind,
    TooManySlots,
    slot_maximum,
)
from jobengine.quota.model import Limits
from jobengine.quota.waiting import Holding, Outlook, Question, explain, longest_wait

SCAN = Ask("scan")


def ask(worlds: Worlds, question: Ask, now: datetime) -> Decision:
    """Ask as storage does: decide, keep what was granted, explain what was denied."""
    accounts = [world.account(now) for world in worlds]
    answer = decision(question, accounts, backfill_share=SHARE, now=now)
    if isinstance(answer, Denied):
        outlooks = {world.name: world.outlook(now) for world in worlds}
        return explain(answer, Question(question, SHARE, now), accounts, outlooks)
    if isinstance(answer, Admitted):
        for world, after in zip(worlds, answer.accounts, strict=True):
            world.take(question, after, now)
    return answer


@given(both, steps)
def test_a_decision_is_what_the_contract_says(worlds: Worlds, steps: list[tuple[timedelta, Ask]]) -> None:
    """Every limit of every account blocks exactly when a plain reading of leases, grants and fractions says so."""
    now = NOW
    for gap, question in steps:
        now += gap
        refused = {(world.name, limit) for world in worlds for limit in world.refuses(question, now)}
        impossible = any(question.slots > world.limits.max_active for world in worlds)

        match ask(worlds, question, now):
            case TooManySlots():
                assert impossible
            case Denied(blocking):
                assert not impossible
                assert {(found.job_type or "", found.limit) for found in blocking} == refused
            case Admitted():
                assert not impossible
                assert not refused


@given(both, steps)
def test_no_limit_is_ever_passed(worlds: Worlds, steps: list[tuple[timedelta, Ask]]) -> None:
    """After every decision: slots, admissions of every rolling hour, tokens, and the share of backfills."""
    now = NOW
    for gap, question in steps:
        now += gap
        ask(worlds, question, now)
        for world in worlds:
            assert world.held(now) <= world.limits.max_active
            assert world.held(now, "backfill") <= max(1, world.limits.max_active // 2)
            assert all(len(world.hour(at)) <= world.limits.max_per_hour for at in [*world.grants, now])
            assert world.tokens(now) >= 0
            assert world.account(now).level_pico(now) == world.tokens(now) * TOKEN


@given(both, steps)
def test_waiting_as_long_as_told_helps_and_less_does_not(worlds: Worlds, steps: list[tuple[timedelta, Ask]]) -> None:
    """Alone, the same question is granted at the told moment and not a microsecond before; null is never granted."""
    now = NOW
    for gap, question in steps:
        now += gap
        answer = ask(worlds, question, now)
        if not isinstance(answer, Denied):
            continue
        wait = longest_wait(answer)
        if wait is None:
            # A year at least for 10^-6 tokens a second.
            assert not granted(worlds, question, now + timedelta(days=400))
        else:
            moment = now + timedelta(seconds=wait)
            assert granted(worlds, question, moment)
            assert not granted(worlds, question, moment - timedelta(microseconds=1))


def granted(worlds: Worlds, question: Ask, now: datetime) -> bool:
    accounts = [world.account(now) for world in worlds]
    return isinstance(decision(question, accounts, backfill_share=SHARE, now=now), Admitted)


@given(raised_both, steps)
def test_each_wait_counts_with_overrides_that_end(worlds: Worlds, steps: list[tuple[timedelta, Ask]]) -> None:
    """At the moment a limit was told to give way, it no longer blocks, though what raised it may be over by then."""
    now = NOW
    for gap, question in steps:
        now += gap
        answer = ask(worlds, question, now)
        for found in answer.blocking if isinstance(answer, Denied) else ():
            if found.retry_after_seconds is None:
                continue
            later = now + timedelta(seconds=found.retry_after_seconds)
            accounts = [world.account(later) for world in worlds if world.name == (found.job_type or "")]
            then = decision(question, accounts, backfill_share=SHARE, now=later)
            assert not isinstance(then, TooManySlots)
            blocking = then.blocking if isinstance(then, Denied) else ()
            assert (found.limit, found.by_share) not in {(other.limit, other.by_share) for other in blocking}


@given(raised_both, steps)
def test_whoever_waits_the_longest_is_admitted(worlds: Worlds, steps: list[tuple[timedelta, Ask]]) -> None:
    """Though by then an override may be over that keeps a limit from blocking now."""
    now = NOW
    for gap, question in steps:
        now += gap
        answer = ask(worlds, question, now)
        if isinstance(answer, Denied) and (longest := longest_wait(answer)) is not None:
            later = now + timedelta(seconds=longest)
            accounts = [world.account(later) for world in worlds]
            then = decision(question, accounts, backfill_share=SHARE, now=later)
            assert isinstance(then, Admitted), then


def test_a_wait_counts_with_an_override_of_another_limit() -> None:
    """The bucket gives way after a second; by then the raise that leaves a slot free is over, and a lease lasts."""
    end, until = NOW + timedelta(seconds=0.5), NOW + timedelta(seconds=60)
    account = Account(
        "scan", "q", limits(max_active=2), active=1, bucket_pico=0, bucket_at=NOW, ahead=((end, limits(max_active=1)),)
    )
    answer = decision(SCAN, [account], backfill_share=SHARE, now=NOW)
    assert isinstance(answer, Denied)

    told = explain(answer, Question(SCAN, SHARE, NOW), [account], {"scan": Outlook([Holding(until, 1)])})

    assert [(found.limit.value, found.retry_after_seconds) for found in told.blocking] == [("rate", 60)]


@given(both, st.sampled_from([1, 2, 3]))
def test_a_denial_changes_no_account(worlds: Worlds, slots: int) -> None:
    """A decision is a value: whoever asked has what it had."""
    accounts = [world.account(NOW) for world in worlds]
    before = list(accounts)

    decision(Ask("scan", slots), accounts, backfill_share=SHARE, now=NOW)

    assert accounts == before


@pytest.mark.parametrize(
    ("question", "account", "blocked"),
    [
        (SCAN, Account("scan", "q", limits()), []),
        (SCAN, Account("scan", "q", limits(), paused=True), [("paused", 5, 0, 1)]),
        (SCAN, Account("scan", "q", limits(), active=5), [("max_active", 5, 5, 1)]),
        (Ask("scan", 5), Account("scan", "q", limits(), active=1), [("max_active", 5, 1, 5)]),
        (Ask("scan", 4), Account("scan", "q", limits(), active=1), []),
        (SCAN, Account("scan", "q", limits(), granted_hour=100), [("max_per_hour", 100, 100, 1)]),
        (SCAN, Account("scan", "q", limits(), granted_hour=99), []),
        (SCAN, Account("scan", "q", limits(), bucket_pico=TOKEN - 1, bucket_at=NOW), [("rate", 10, 10, 1)]),
        (SCAN, Account("scan", "q", limits(), bucket_pico=TOKEN, bucket_at=NOW), []),
        (SCAN, Account("scan", "q", limits(burst=3), bucket_pico=9 * TOKEN, bucket_at=NOW), []),
        (SCAN, Account("scan", "q", limits(burst=0)), [("rate", 0, 0, 1)]),
        (SCAN, Account("scan", "q", limits(max_per_hour=0)), [("max_per_hour", 0, 0, 1)]),
        (SCAN, Account("scan", "q", limits(), active=9), [("max_active", 5, 9, 1)]),
        (SCAN, Account("scan", "q", limits(), active=4, batch_waits=True), [("max_active", 4, 4, 1)]),
        (SCAN, Account("scan", "q", limits(max_active=1), batch_waits=True), []),
        (Ask("scan", kind="backfill"), Account("scan", "q", limits(), active=4, batch_waits=True), []),
        (
            Ask("scan", kind="backfill"),
            Account("scan", "q", limits(), active=5, active_backfill=2),
            [("max_active", 5, 5, 1), ("max_active", 2, 2, 1)],
        ),
        (
            Ask("scan", 2, kind="backfill"),
            Account("scan", "q", limits(max_active=3)),
            [("max_active", 1, 0, 2)],
        ),
        (
            SCAN,
            Account("scan", "q", limits(), paused=True, active=5, granted_hour=100, bucket_pico=0, bucket_at=NOW),
            [("paused", 5, 5, 1), ("max_active", 5, 5, 1), ("max_per_hour", 100, 100, 1), ("rate", 10, 10, 1)],
        ),
    ],
)
def test_a_limit_blocks_from_exactly_where_it_is_reached(
    question: Ask, account: Account, blocked: list[tuple[str, int, int, int]]
) -> None:
    """All limits are told, each with its maximum, what is used of it, and what was asked."""
    answer = decision(question, [account], backfill_share=SHARE, now=NOW)

    blocking = answer.blocking if isinstance(answer, Denied) else ()
    assert [(f.limit.value, f.maximum, f.used, f.requested) for f in blocking] == blocked
    assert {(found.quota_id, found.job_type) for found in blocking} <= {("q", "scan")}


@pytest.mark.parametrize("kind", ["live", "backfill"])
def test_more_slots_than_the_maximum_are_no_matter_of_waiting(kind: str) -> None:
    """The first account that could never grant them is named."""
    whole, own = Account("", "w", limits(max_active=9)), Account("scan", "q", limits(max_active=5, burst=0), active=2)

    answer = decision(Ask("scan", 6, kind=kind), [whole, own], backfill_share=SHARE, now=NOW)

    assert answer == TooManySlots(5, 2, 6, "q", "scan")


@pytest.mark.parametrize(
    ("most", "share", "backfill", "live_beside_a_waiting_batch"),
    [
        (0, "0.5", 0, 0),
        (1, "0.5", 1, 1),
        (2, "0.5", 1, 1),
        (3, "0.5", 1, 2),
        (5, "0.5", 2, 4),
        (10, "0", 1, 9),
        (10, "1", 10, 9),
        (10, "0.29", 2, 9),
        (100, "0.29", 29, 99),
        (1_000_000_000_000, "0.333333", 333_333_000_000, 999_999_999_999),
    ],
)
def test_shares_are_whole_slots(most: int, share: str, backfill: int, live_beside_a_waiting_batch: int) -> None:
    """max(1, floor(share × maximum)) for backfills; one less than the maximum for live work while a batch waits."""
    account = Account("scan", None, limits(max_active=most), batch_waits=True)

    assert slot_maximum(account, "backfill", Decimal(share)) == backfill
    assert slot_maximum(account, "live", Decimal(share)) == live_beside_a_waiting_batch
    idle = Account("scan", None, limits(max_active=most))
    assert slot_maximum(idle, "live", Decimal(share)) == most


def test_one_backfill_ends_the_wait_of_batches() -> None:
    """Within one transaction the floor is gone as soon as a batch has its slot."""
    account = Account("scan", None, limits(max_active=2, burst=9), batch_waits=True)
    first = decision(Ask("scan", kind="backfill"), [account], backfill_share=SHARE, now=NOW)
    assert isinstance(first, Admitted)

    assert isinstance(decision(SCAN, first.accounts, backfill_share=SHARE, now=NOW), Admitted)


def test_a_bucket_of_forty_three_gives_forty_three_of_forty_four() -> None:
    """Asked at one moment."""
    world = World("scan", limits(burst=43, max_active=99, max_per_hour=99))

    answers = [ask([world], SCAN, NOW) for _ in range(44)]

    assert [isinstance(answer, Admitted) for answer in answers] == [True] * 43 + [False]


@given(
    st.integers(1, 20),
    st.integers(1, 3_000_000).map(lambda micro: Decimal(micro) / 10**6),
    st.integers(1, 2_500_000),
)
@example(1, Decimal("0.3"), 1_000_000)
@example(5, Decimal("0.333333"), 999_999)
def test_steady_demand_loses_no_fraction_of_a_token(burst: int, refill: Decimal, gap: int) -> None:
    """However often one asks, over time the bucket gives what it was filled with, to the last token."""
    account = Account("scan", None, Limits(10**9, 10**9, burst, refill))
    given_out = 0
    level = Decimal(burst)
    for turn in range(300):
        now = NOW + timedelta(microseconds=gap * turn)
        level = min(Decimal(burst), level + (refill * gap / 10**6 if turn else 0))
        answer = decision(SCAN, [account], backfill_share=SHARE, now=now)
        assert isinstance(answer, Admitted) == (level >= 1)
        if isinstance(answer, Admitted):
            [account] = answer.accounts
            given_out += 1
            level -= 1
    assert given_out <= burst + refill * gap * 299 / 10**6


def test_a_clock_that_goes_back_takes_no_token() -> None:
    """The level never falls by time."""
    account = Account("scan", None, limits(), bucket_pico=3 * TOKEN, bucket_at=NOW)

    assert account.level_pico(NOW - timedelta(hours=1)) == 3 * TOKEN


@pytest.mark.parametrize(
    ("refill", "level", "wait"),
    [
        ("1", 0, 1.0),
        ("0.3", 0, 3.333334),
        ("0.3", TOKEN // 2, 1.666667),
        ("7", 0, 0.142858),
        ("0.000001", 0, 1_000_000.0),
        ("1000000000", 0, 0.000001),
        ("0", 0, None),
    ],
)
def test_a_token_comes_when_it_is_whole(refill: str, level: int, wait: float | None) -> None:
    """Rounded up to the microsecond in which it is there."""
    account = Account("scan", None, limits(refill_per_second=refill), bucket_pico=level, bucket_at=NOW)
    denied = decision(SCAN, [account], backfill_share=SHARE, now=NOW)
    assert isinstance(denied, Denied)

    [found] = explain(denied, Question(SCAN, SHARE, NOW), [account], {}).blocking

    assert found.retry_after_seconds == wait


@pytest.mark.parametrize(
    ("holdings", "slots", "wait"),
    [
        ([(30, 1), (10, 1), (20, 1)], 1, 10),
        ([(30, 1), (10, 1), (20, 1)], 2, 20),
        ([(30, 1), (10, 2), (20, 1)], 2, 10),
        ([(30, 5)], 1, 30),
        ([], 1, None),
    ],
)
def test_slots_come_back_when_leases_end(holdings: list[tuple[int, int]], slots: int, wait: float | None) -> None:
    """As many as are missing, the soonest first; without leases nothing comes back."""
    account = Account("scan", None, limits(max_active=5), active=5)
    denied = Denied((Blocking(LimitKind.MAX_ACTIVE, None, "scan", 5, 5, slots),))
    outlook = Outlook([Holding(NOW + timedelta(seconds=after), held) for after, held in holdings])

    [found] = explain(denied, Question(Ask("scan", slots), SHARE, NOW), [account], {"scan": outlook}).blocking

    assert found.retry_after_seconds == wait


def test_the_longest_wait_is_none_where_one_never_ends() -> None:
    """Otherwise it is the longest."""
    forever = Blocking(LimitKind.PAUSED, None, None, 1, 1, 1)
    short, long = (Blocking(LimitKind.RATE, None, None, 1, 1, 1, wait) for wait in (1.0, 2.5))

    assert longest_wait(Denied((short, long))) == 2.5
    assert longest_wait(Denied((short, forever))) is None
    assert longest_wait(Denied(())) is None
