"""Buckets under limits that change: each stretch of time counts at the rate that it had."""

from datetime import timedelta
from decimal import Decimal
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st
from tests.factories import NOW, limits
from tests.unit.quota.world import Admitted, decision

from jobengine.quota.admission import TOKEN, Account, Ask
from jobengine.quota.model import Limits, Override
from jobengine.quota.timeline import Steps, Timeline

SHARE = Decimal("0.5")
GAPS = st.lists(st.tuples(st.integers(1, 10**8), st.integers(0, 50), st.integers(0, 3_000_000)), max_size=6)


def test_one_ask_every_nine_tenths_of_a_second_gets_forty_three_of_forty_four() -> None:
    """Refill one a second, burst five, for forty seconds: a floor at each grant would lose nineteen of them."""
    account = Account("scan", None, limits(max_active=99, max_per_hour=99, burst=5, refill_per_second=1))
    granted = 0
    for turn in range(44):
        answer = decision(Ask("scan"), [account], backfill_share=SHARE, now=NOW + timedelta(seconds=0.9 * turn))
        if isinstance(answer, Admitted):
            [account] = answer.accounts
            granted += 1
    assert granted == 43


@given(GAPS, st.integers(0, 50), st.integers(0, 3_000_000), st.integers(1, 10**8))
def test_a_bucket_is_the_sum_of_its_stretches(
    changes: list[tuple[int, int, int]], burst: int, micro: int, last: int
) -> None:
    """Whatever changed how often, the level is that of exact fractions added stretch by stretch."""
    moment, before, level = NOW, [], Fraction(0)
    for gap, size, rate in changes:
        moment += timedelta(microseconds=gap)
        before.append((moment, Limits(9, 9, size, Decimal(rate) / 10**6)))
        level = min(Fraction(size), level + Fraction(rate * gap, 10**12))
    now = moment + timedelta(microseconds=last)
    level = min(Fraction(burst), level + Fraction(micro * last, 10**12))
    current = Limits(9, 9, burst, Decimal(micro) / 10**6)
    account = Account("scan", None, current, bucket_pico=0, bucket_at=NOW)

    timeline = Timeline(Steps(current, before), Steps(current))
    settled = account.settled(timeline.between(NOW, now)[:-1])

    assert Fraction(settled.level_pico(now), TOKEN) == level


def test_raises_count_only_while_they_hold_and_defaults_where_there_is_no_quota() -> None:
    """A quota was made after a minute and raised for another one; before it the defaults held."""
    minute = timedelta(minutes=1)
    made, default = limits(burst=9), limits(burst=3)
    raised = Override("o", "q", {"burst": 20}, NOW + 2 * minute, NOW + 3 * minute, NOW, "somebody", "e")

    held = Timeline(Steps(made, [(NOW + minute, None)]), Steps(default), [raised]).between(NOW, NOW + 4 * minute)

    assert [((until - NOW) // minute, found.burst) for until, found in held] == [(1, 3), (2, 9), (3, 20), (4, 9)]
