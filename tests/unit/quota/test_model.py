"""Limits, overrides and the policy as values."""

from datetime import datetime, timedelta
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.factories import NOW, limits
from tests.unit.quota.test_rules import changes, rates, some_limits

from jobengine.quota.model import LIMIT_NAMES, Limits, Number, Override, effective_limits, limits_json, limits_of
from jobengine.quota.policy import FIRST_POLICY, policy_of

BASE = limits()
HOUR = timedelta(hours=1)


def override(raised: dict[str, Number], starts: datetime = NOW - HOUR, until: datetime = NOW + HOUR) -> Override:
    return Override("o", "q", raised, starts, until, NOW, "ops", "e")


overrides = st.lists(
    st.builds(
        override,
        changes,
        st.integers(-5, 1).map(lambda hours: NOW + hours * HOUR),
        st.integers(2, 5).map(lambda hours: NOW + hours * HOUR),
    )
)


@given(some_limits)
def test_limits_survive_json_to_the_sixth_decimal(given_limits: Limits) -> None:
    """What is stored and audited is what was set."""
    written = msgspec.json.encode(given_limits.as_json())

    assert limits_of(msgspec.json.decode(written)) == given_limits


@given(rates)
def test_whole_numbers_are_written_without_a_fraction(rate: Decimal) -> None:
    """2 and not 2.0: one number has one spelling in the log."""
    written = limits_json({"refill_per_second": rate})["refill_per_second"]

    assert isinstance(written, int) == (rate == rate.to_integral_value())


@given(some_limits, overrides)
def test_effective_limits_are_never_below_the_base(base: Limits, raised: list[Override]) -> None:
    """An override that names less than the base changes nothing."""
    effective = effective_limits(base, raised, NOW)

    assert all(effective.value(name) >= base.value(name) for name in LIMIT_NAMES)


@given(some_limits, overrides)
def test_overrides_join_in_any_order(base: Limits, raised: list[Override]) -> None:
    """Two operators' raises stand beside each other."""
    assert effective_limits(base, raised, NOW) == effective_limits(base, raised[::-1], NOW)


@given(some_limits, overrides)
def test_overrides_over_or_to_come_do_not_count(base: Limits, raised: list[Override]) -> None:
    """Only those that hold at the moment."""
    holding = [one for one in raised if one.starts_at <= NOW < one.until]

    assert effective_limits(base, raised, NOW) == effective_limits(base, holding, NOW)


@pytest.mark.parametrize(
    ("starts", "until", "active"),
    [(0, 1, True), (-1, 0, False), (1, 2, False), (-1, 1, True)],
)
def test_an_override_holds_from_its_start_until_before_its_end(starts: int, until: int, active: bool) -> None:
    """Half-open, like every window."""
    tick = timedelta(microseconds=1)
    raised = override({"burst": 99}, NOW + starts * tick, NOW + until * tick)

    assert raised.active(NOW) == active
    assert (effective_limits(BASE, [raised], NOW).burst == 99) == active


def test_changed_limits_keep_what_is_not_named() -> None:
    """And the old value stays what it was."""
    changed = BASE.changed({"burst": 1})

    assert (changed.burst, changed.max_active, BASE.burst) == (1, 5, 10)


def test_a_policy_survives_json() -> None:
    """Also one with every number a fraction."""
    odd = policy_of(
        FIRST_POLICY.as_json() | {"max_raise_factor": 1.1, "approval_above": 2.5, "backfill_share": 0.29}, 7
    )

    again = policy_of(msgspec.json.decode(msgspec.json.encode(odd.as_json())), 7)

    assert again == odd
    assert (again.max_raise_factor, again.backfill_share) == (Decimal("1.1"), Decimal("0.29"))
    assert again.override_span == timedelta(days=7)
