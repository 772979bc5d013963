"""What a change of limits must pass."""

from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.factories import limits

from jobengine.quota.model import LIMIT_NAMES, Limits, Number
from jobengine.quota.rules import (
    Granted,
    Proposal,
    Refused,
    WithinCeilings,
    WithinOverrideDuration,
    WithinRaiseFactor,
    judge,
)

CEILINGS = Limits(1_000, 1_000_000, 100_000, Decimal(100_000))
counts = st.integers(0, 10**12)
rates = st.integers(0, 10**15).map(lambda micro: Decimal(micro) / 10**6)
some_limits = st.builds(Limits, counts, counts, counts, rates)
changes = st.dictionaries(st.sampled_from(LIMIT_NAMES), counts, min_size=1)


@pytest.mark.parametrize("name", LIMIT_NAMES)
def test_a_ceiling_is_the_last_limit_granted(name: str) -> None:
    """One more, or a millionth more, is refused with both numbers."""
    ceiling = CEILINGS.value(name)
    step: Number = Decimal("0.000001") if name == "refill_per_second" else 1

    assert WithinCeilings(CEILINGS).decide(Proposal({name: ceiling}, None)) == Granted()
    refused = WithinCeilings(CEILINGS).decide(Proposal({name: ceiling + step}, None))
    assert isinstance(refused, Refused)
    assert (refused.code, refused.members["limit"]) == ("policy_maximum_exceeded", name)
    assert (refused.members["maximum"], refused.members["requested"]) == (ceiling, float(ceiling + step))


@pytest.mark.parametrize(
    ("base", "factor", "wanted", "granted"),
    [
        (10, "10", 100, True),
        (10, "10", 101, False),
        (3, "1.5", 4, True),
        (3, "1.5", 5, False),
        (10, "1", 10, True),
        (10, "1", 11, False),
        (0, "10", 0, True),
        (0, "10", 1, False),
        (10, "10", 0, True),
        (2_000, "10", 2_000, True),
    ],
)
def test_a_raise_goes_as_far_as_the_factor(base: int, factor: str, wanted: int, granted: bool) -> None:
    """Exactly the factor is granted; keeping and lowering always are."""
    proposal = Proposal({"max_active": wanted}, limits(max_active=base))

    verdict = WithinRaiseFactor(Decimal(factor)).decide(proposal)

    assert isinstance(verdict, Granted) == granted


def test_a_factor_is_exact_where_binary_fractions_are_not() -> None:
    """0.1 × 3 is 0.3."""
    base = limits(refill_per_second="0.1")

    assert WithinRaiseFactor(Decimal(3)).decide(Proposal({"refill_per_second": Decimal("0.3")}, base)) == Granted()


def test_a_new_quota_knows_no_factor() -> None:
    """There is nothing that it is raised from."""
    assert WithinRaiseFactor(Decimal(1)).decide(Proposal({"max_active": 10**9}, None)) == Granted()


@pytest.mark.parametrize(("seconds", "granted"), [(604_800, True), (604_800.000001, False), (1, True)])
def test_an_override_may_last_as_long_as_the_policy_says(seconds: float, granted: bool) -> None:
    """To the microsecond."""
    proposal = Proposal({}, None, timedelta(seconds=seconds))

    assert isinstance(WithinOverrideDuration(timedelta(days=7)).decide(proposal), Granted) == granted


@given(some_limits, changes)
def test_lowering_is_never_refused(base: Limits, changes: dict[str, int]) -> None:
    """Whatever the factor."""
    lower = {name: min(value, int(base.value(name))) for name, value in changes.items()}

    assert WithinRaiseFactor(Decimal(1)).decide(Proposal(lower, base)) == Granted()


@given(some_limits, changes, st.integers(1, 100))
def test_what_is_granted_is_within_the_factor(base: Limits, changes: dict[str, int], factor: int) -> None:
    """And what is refused is beyond it, by the limit that the refusal names."""
    match WithinRaiseFactor(Decimal(factor)).decide(Proposal(changes, base)):
        case Refused(members=members):
            name = str(members["limit"])
            assert changes[name] > factor * base.value(name)
        case Granted():
            assert all(
                value <= factor * base.value(name) or value <= base.value(name) for name, value in changes.items()
            )


def test_rules_are_asked_in_their_order() -> None:
    """The first refusal is the answer."""
    proposal = Proposal({"max_active": 5_000}, limits(max_active=1), timedelta(days=30))
    rules = (WithinCeilings(CEILINGS), WithinRaiseFactor(Decimal(10)), WithinOverrideDuration(timedelta(days=7)))

    codes = [verdict.code for rule in rules if isinstance(verdict := rule.decide(proposal), Refused)]

    assert codes == ["policy_maximum_exceeded", "policy_raise_too_large", "policy_override_too_long"]
    first = judge(rules, proposal)
    assert isinstance(first, Refused)
    assert first.code == codes[0]
    assert judge((), proposal) == Granted()
