"""The rules that a change of limits must pass: one frozen class each, with a code that never changes its meaning."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import ClassVar, Protocol

from jobengine.quota.model import LIMIT_NAMES, Limits, Number, limits_json


@dataclass(frozen=True, slots=True)
class Granted:
    """The rule has nothing against it."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The rule forbids it: an answer to be stored and audited, not an error."""

    code: str
    detail: str
    members: Mapping[str, object] = field(default_factory=dict[str, object])


Verdict = Granted | Refused


@dataclass(frozen=True, slots=True)
class Proposal:
    """Limits that somebody wants to set, by name; *base* is what they are raised from, None for a new quota."""

    wanted: Mapping[str, Number]
    base: Limits | None
    lasts: timedelta | None = None


class Rule(Protocol):
    """One thing that a proposal must satisfy."""

    code: ClassVar[str]

    def decide(self, proposal: Proposal) -> Verdict:
        """Judge *proposal* by this rule alone."""
        ...


@dataclass(frozen=True, slots=True)
class WithinCeilings:
    """No limit may be above the platform's ceiling.

    >>> ceilings = Limits(1000, 10, 10, Decimal(1))
    >>> WithinCeilings(ceilings).decide(Proposal({"max_active": 1001}, None)).members["maximum"]
    1000
    """

    code: ClassVar[str] = "policy_maximum_exceeded"
    ceilings: Limits

    def decide(self, proposal: Proposal) -> Verdict:
        """Refuse the first limit above its ceiling."""
        for name in LIMIT_NAMES:
            if name in proposal.wanted and proposal.wanted[name] > self.ceilings.value(name):
                return _too_much(
                    self.code, name, self.ceilings.value(name), proposal.wanted[name], "the platform's ceiling"
                )
        return Granted()


@dataclass(frozen=True, slots=True)
class WithinRaiseFactor:
    """No limit may be raised to more than *factor* times its base in one change.

    >>> base = Limits(10, 10, 10, Decimal(1))
    >>> WithinRaiseFactor(Decimal(10)).decide(Proposal({"max_active": 101}, base)).code
    'policy_raise_too_large'
    """

    code: ClassVar[str] = "policy_raise_too_large"
    factor: Decimal

    def decide(self, proposal: Proposal) -> Verdict:
        """Refuse the first limit raised too far; lowering and keeping always pass."""
        if proposal.base is None:
            return Granted()
        for name in LIMIT_NAMES:
            base = proposal.base.value(name)
            wanted = proposal.wanted.get(name, base)
            if wanted > base and wanted > self.factor * base:
                return _too_much(self.code, name, self.factor * base, wanted, f"{self.factor} times the base limit")
        return Granted()


@dataclass(frozen=True, slots=True)
class WithinOverrideDuration:
    """A raise that ends by itself must end soon enough.

    >>> WithinOverrideDuration(timedelta(days=7)).decide(Proposal({}, None, timedelta(days=8))).code
    'policy_override_too_long'
    """

    code: ClassVar[str] = "policy_override_too_long"
    longest: timedelta

    def decide(self, proposal: Proposal) -> Verdict:
        """Refuse an override that lasts longer than the policy allows."""
        if proposal.lasts is None or proposal.lasts <= self.longest:
            return Granted()
        maximum, asked = int(self.longest.total_seconds()), int(proposal.lasts.total_seconds())
        members = {"maximum_seconds": maximum, "requested_seconds": asked}
        return Refused(self.code, f"an override may last {maximum} s, {asked} s were asked for", members)


@dataclass(frozen=True, slots=True)
class WithinAllocation:
    """While tenants share a pool, slots are raised by putting the pool into effect and by nothing else.

    >>> WithinAllocation(10).decide(Proposal({"max_active": 11}, None)).code
    'allocation_exceeded'
    """

    code: ClassVar[str] = "allocation_exceeded"
    most: int

    def decide(self, proposal: Proposal) -> Verdict:
        """Refuse more slots than there are now; lowering and keeping always pass."""
        wanted = proposal.wanted.get("max_active", 0)
        if wanted <= self.most:
            return Granted()
        return _too_much(self.code, "max_active", self.most, wanted, "what the allocation has given")


def needs_second_person(above: Decimal | None, proposal: Proposal) -> bool:
    """Tell whether a limit is raised to more than *above* times its base; without a base or a factor none is.

    >>> base = Limits(10, 10, 10, Decimal(1))
    >>> [needs_second_person(Decimal(2), Proposal({"max_active": wanted}, base)) for wanted in (5, 20, 21)]
    [False, False, True]
    """
    return above is not None and isinstance(WithinRaiseFactor(above).decide(proposal), Refused)


def judge(rules: Iterable[Rule], proposal: Proposal) -> Verdict:
    """Return the first refusal of *rules*, in their order, or that all of them grant."""
    for rule in rules:
        if isinstance(verdict := rule.decide(proposal), Refused):
            return verdict
    return Granted()


def _too_much(code: str, name: str, maximum: Number, requested: Number, what: str) -> Refused:
    shown = limits_json({"maximum": maximum, "requested": requested})
    detail = f"{name}: {shown['requested']} is above {what}, {shown['maximum']}"
    return Refused(code, detail, {"limit": name, **shown})
