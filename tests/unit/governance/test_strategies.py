"""What every way to share a pool promises, whatever the pool."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jobengine.governance.model import Member, Pool, StrategyName
from jobengine.governance.strategies import STRATEGIES, Impossible, share_out

CEILING = 1_000
NAMES = tuple("abcdefgh")


@st.composite
def members(draw: st.DrawFn, name: str = "a") -> Member:
    reserved = draw(st.integers(0, 20))
    return Member(
        name,
        weight=draw(st.integers(0, 10)),
        priority=draw(st.integers(-2, 2)),
        reserved=reserved,
        max_limit=draw(st.none() | st.integers(reserved, 120)),
        demand=draw(st.none() | st.integers(0, 120)),
    )


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    chosen = draw(st.integers(1, len(NAMES)))
    found = tuple(draw(members(name)) for name in NAMES[:chosen])
    least = sum(member.reserved for member in found)
    capacity = draw(st.integers(least, least + 300))
    return Pool("scan", capacity, draw(st.sampled_from(StrategyName)), found)


def shares(pool: Pool) -> dict[str, int]:
    found = share_out(pool, CEILING)
    assert not isinstance(found, Impossible)
    return dict(found)


def test_there_is_a_class_for_every_strategy() -> None:
    """A name without a way to share would fail only when somebody takes it."""
    assert set(STRATEGIES) == set(StrategyName)


@given(pool=pools())
def test_shares_are_whole_fit_the_capacity_and_keep_everybodys_bounds(pool: Pool) -> None:
    """Nobody below what is reserved, nobody above a maximum, and together never more than there is."""
    found = shares(pool)

    assert found.keys() == {member.tenant_id for member in pool.members}
    assert all(type(share) is int and share >= 0 for share in found.values())
    assert pool.strategy is StrategyName.UNLIMITED or sum(found.values()) <= (pool.capacity or 0)
    for member in pool.members:
        least = 0 if pool.strategy is StrategyName.UNLIMITED else member.reserved
        assert least <= found[member.tenant_id] <= member.most(CEILING)


@given(pool=pools(), data=st.data())
def test_the_order_of_the_members_does_not_matter(pool: Pool, data: st.DataObject) -> None:
    """The same pool written in another order is the same pool."""
    mixed = data.draw(st.permutations(pool.members))

    assert shares(replace(pool, members=tuple(mixed))) == shares(pool)


@given(pool=pools(), data=st.data())
def test_more_weight_never_means_less(pool: Pool, data: st.DataObject) -> None:
    """Raising one member's weight alone leaves it at least what it had."""
    chosen = data.draw(st.sampled_from(pool.members))
    heavier = replace(chosen, weight=chosen.weight + data.draw(st.integers(1, 10)))
    others = tuple(heavier if member is chosen else member for member in pool.members)

    assert shares(replace(pool, members=others))[chosen.tenant_id] >= shares(pool)[chosen.tenant_id]


@given(pool=pools())
def test_whoever_weighs_more_gets_no_less_than_an_otherwise_equal_member(pool: Pool) -> None:
    """Weights of one pool are in order too."""
    alike = [replace(member, reserved=0, max_limit=None, demand=None, priority=0) for member in pool.members]
    found = shares(replace(pool, members=tuple(alike)))
    by_weight = sorted(alike, key=lambda member: member.weight)

    for lighter, heavier in pairwise(by_weight):
        assert lighter.weight == heavier.weight or found[lighter.tenant_id] <= found[heavier.tenant_id]


@given(pool=pools())
def test_nothing_is_left_while_somebody_could_take_it(pool: Pool) -> None:
    """Except where a part is cut off on purpose (`proportional`) or a demand is met (`priority`)."""
    assume(pool.strategy in {StrategyName.RESERVED, StrategyName.MAX_LIMIT})
    found = shares(pool)
    room = [m for m in pool.members if m.weight and found[m.tenant_id] < m.most(CEILING)]

    assert not room or sum(found.values()) == pool.capacity


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("unlimited", {"a": 1_000, "b": 1_000, "c": 30}),
        ("proportional", {"a": 17, "b": 50, "c": 30}),
        ("priority", {"a": 0, "b": 70, "c": 30}),
        ("reserved", {"a": 13, "b": 61, "c": 26}),
        ("max_limit", {"a": 18, "b": 52, "c": 30}),
    ],
)
def test_each_strategy_shares_a_hundred_slots_in_its_own_way(strategy: str, expected: dict[str, int]) -> None:
    """Three tenants, worked out by hand."""
    said: dict[str, Any] = {
        "unlimited": {},
        "proportional": {"weight": 3},
        "priority": {"priority": 1, "demand": 70},
        "reserved": {"weight": 3, "reserved": 22},
        "max_limit": {"weight": 3},
    }
    third = Member("c", weight=2, priority=5, max_limit=30) if strategy != "max_limit" else Member("c", 9, max_limit=30)
    found = share_out(
        Pool("scan", 100, StrategyName(strategy), (Member("a"), Member("b", **said[strategy]), third)), CEILING
    )

    assert found == expected


@pytest.mark.parametrize("strategy", [name for name in StrategyName if name is not StrategyName.UNLIMITED])
def test_more_reserved_than_there_is_cannot_be_shared(strategy: StrategyName) -> None:
    """By the capacity, by a maximum, by the ceiling."""
    for member, capacity in ((Member("a", reserved=6), 5), (Member("a", reserved=6, max_limit=5), 100)):
        assert isinstance(share_out(Pool("scan", capacity, strategy, (member,)), CEILING), Impossible)
    assert isinstance(share_out(Pool("scan", 5_000, strategy, (Member("a", reserved=1_001),)), CEILING), Impossible)


def test_a_pool_of_a_thousand_tenants_that_all_meet_their_maximum_is_shared() -> None:
    """Each round may fix only one of them; it ends all the same."""
    found = shares(
        Pool(
            "scan",
            500_000,
            StrategyName.MAX_LIMIT,
            tuple(Member(f"t-{n:04}", weight=n + 1, max_limit=n % 900 + 1) for n in range(1_000)),
        )
    )

    assert sum(found.values()) == sum(n % 900 + 1 for n in range(1_000))
