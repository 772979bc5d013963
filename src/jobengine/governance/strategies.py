"""The five ways to share a pool: one frozen class each, a pure function of the members in whatever order.

All of them keep every member at or above its `reserved` and at or below its `max_limit` and the policy's ceiling.
Shares are whole numbers; where parts do not come out even, the largest remainders get one more (Hamilton's method),
and of equal remainders the first tenant by name.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Protocol

from jobengine.governance.model import Member, Pool, StrategyName

Shares = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Impossible:
    """No shares satisfy the pool; *detail* says what does not fit."""

    detail: str


@dataclass(frozen=True, slots=True)
class Part:
    """Somebody who takes part in a distribution: at least *least*, at most *most*, by *weight* between."""

    name: str
    weight: int
    least: int
    most: int


class Strategy(Protocol):
    """One way to share *capacity*; *ceiling* bounds every single share."""

    code: ClassVar[StrategyName]

    def share(self, members: Sequence[Member], capacity: int, ceiling: int) -> dict[str, int]:
        """Return the share of each member; what is reserved is known to fit."""
        ...


@dataclass(frozen=True, slots=True)
class Unlimited:
    """Each gets what the policy allows at the most, whatever that sums to.

    >>> Unlimited().share([Member("a"), Member("b", max_limit=5)], 0, ceiling=1_000)
    {'a': 1000, 'b': 5}
    """

    code: ClassVar[StrategyName] = StrategyName.UNLIMITED

    def share(self, members: Sequence[Member], capacity: int, ceiling: int) -> dict[str, int]:  # noqa: ARG002 - of no concern here
        """Return the ceiling for each."""
        return {member.tenant_id: member.most(ceiling) for member in members}


@dataclass(frozen=True, slots=True)
class Proportional:
    """Each its part by weight; what is cut off at somebody's maximum is nobody else's.

    >>> Proportional().share([Member("a", 1), Member("b", 1), Member("c", 1)], 100, 1_000)
    {'a': 34, 'b': 33, 'c': 33}
    >>> Proportional().share([Member("a", 1, max_limit=10), Member("b", 1)], 100, 1_000)
    {'a': 10, 'b': 50}
    """

    code: ClassVar[StrategyName] = StrategyName.PROPORTIONAL

    def share(self, members: Sequence[Member], capacity: int, ceiling: int) -> dict[str, int]:
        """Return each its part."""
        whole = distribute([Part(m.tenant_id, m.weight, m.reserved, capacity) for m in members], capacity)
        return {member.tenant_id: min(whole[member.tenant_id], member.most(ceiling)) for member in members}


@dataclass(frozen=True, slots=True)
class Priority:
    """The highest first, each up to its `demand`, or else its `max_limit`; equals share by weight.

    >>> Priority().share([Member("a", priority=1, demand=5), Member("b", priority=9, demand=7), Member("c")], 20, 1_000)
    {'a': 5, 'b': 7, 'c': 8}
    """

    code: ClassVar[StrategyName] = StrategyName.PRIORITY

    def share(self, members: Sequence[Member], capacity: int, ceiling: int) -> dict[str, int]:
        """Return what is left for each when those before it have had theirs."""
        shares = {member.tenant_id: member.reserved for member in members}
        levels: defaultdict[int, list[Member]] = defaultdict(list)
        for member in members:
            levels[member.priority].append(member)
        for level in sorted(levels, reverse=True):
            left = capacity - sum(shares.values())
            parts = [Part(m.tenant_id, m.weight, 0, _wanted(m, ceiling) - m.reserved) for m in levels[level]]
            for name, more in distribute(parts, left).items():
                shares[name] += more
        return shares


@dataclass(frozen=True, slots=True)
class Reserved:
    """Each its `reserved`, and the rest by weight.

    >>> Reserved().share([Member("a", reserved=50), Member("b"), Member("c", weight=2)], 90, 1_000)
    {'a': 60, 'b': 10, 'c': 20}
    """

    code: ClassVar[StrategyName] = StrategyName.RESERVED

    def share(self, members: Sequence[Member], capacity: int, ceiling: int) -> dict[str, int]:
        """Return what is reserved and a part of the rest."""
        parts = [Part(m.tenant_id, m.weight, 0, m.most(ceiling) - m.reserved) for m in members]
        rest = distribute(parts, capacity - sum(member.reserved for member in members))
        return {member.tenant_id: member.reserved + rest[member.tenant_id] for member in members}


@dataclass(frozen=True, slots=True)
class MaxLimit:
    """By weight, none above its `max_limit`; what somebody may not have goes to the others.

    >>> MaxLimit().share([Member("a", max_limit=10), Member("b"), Member("c", weight=2)], 100, 1_000)
    {'a': 10, 'b': 30, 'c': 60}
    """

    code: ClassVar[StrategyName] = StrategyName.MAX_LIMIT

    def share(self, members: Sequence[Member], capacity: int, ceiling: int) -> dict[str, int]:
        """Return each its part between what is reserved for it and its maximum."""
        return distribute([Part(m.tenant_id, m.weight, m.reserved, m.most(ceiling)) for m in members], capacity)


STRATEGIES: Mapping[StrategyName, Strategy] = {
    strategy.code: strategy for strategy in (Unlimited(), Proportional(), Priority(), Reserved(), MaxLimit())
}


def share_out(pool: Pool, ceiling: int) -> Shares | Impossible:
    """Return the share of every member of *pool*, or why there is none.

    >>> share_out(Pool("scan", 5, StrategyName.RESERVED, (Member("a", reserved=6),)), 1_000)
    Impossible(detail='6 slots are reserved, and the capacity is 5')
    """
    for member in pool.members:
        if member.reserved > member.most(ceiling):
            return Impossible(f"{member.reserved} slots are reserved for {member.tenant_id}, over its maximum")
    reserved = sum(member.reserved for member in pool.members)
    if pool.capacity is not None and pool.strategy is not StrategyName.UNLIMITED and reserved > pool.capacity:
        return Impossible(f"{reserved} slots are reserved, and the capacity is {pool.capacity}")
    return STRATEGIES[pool.strategy].share(pool.members, pool.capacity or 0, ceiling)


def distribute(parts: Sequence[Part], amount: int) -> dict[str, int]:
    """Give out *amount* by weight, nobody below its least nor above its most; what nobody may take stays.

    Those whose exact part lies outside their bounds are fixed there, round by round, on the side that is further off:
    CSS Flexible Box Layout, section 9.7, which ends after at most one round for each.

    >>> distribute([Part("a", 1, 0, 10), Part("b", 1, 4, 10)], 5)
    {'a': 1, 'b': 4}
    """
    shares = {part.name: part.least for part in parts}
    free = sorted((part for part in parts if part.weight), key=lambda part: part.name)
    left = amount - sum(part.least for part in parts if not part.weight)
    while free:
        exact = _by_weight(free, left)
        off = {p.name: min(max(exact[p.name], Fraction(p.least)), Fraction(p.most)) - exact[p.name] for p in free}
        too_much = sum(off.values())
        fixed = {p.name for p in free if (off[p.name] > 0 and too_much >= 0) or (off[p.name] < 0 and too_much <= 0)}
        if not fixed:
            return {**shares, **_rounded(exact, left)}
        for part in (part for part in free if part.name in fixed):
            shares[part.name] = part.least if off[part.name] > 0 else part.most
            left -= shares[part.name]
        free = [part for part in free if part.name not in fixed]
    return shares


def _by_weight(parts: Sequence[Part], amount: int) -> dict[str, Fraction]:
    weights = sum(part.weight for part in parts)
    return {part.name: Fraction(amount * part.weight, weights) for part in parts}


def _rounded(exact: Mapping[str, Fraction], amount: int) -> dict[str, int]:
    whole = {name: int(part) for name, part in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (whole[name] - exact[name], name))
    for name in by_remainder[: amount - sum(whole.values())]:
        whole[name] += 1
    return whole


def _wanted(member: Member, ceiling: int) -> int:
    most = member.most(ceiling)
    return most if member.demand is None else max(member.reserved, min(most, member.demand))
