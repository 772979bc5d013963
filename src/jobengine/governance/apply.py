"""Putting a pool into effect, tenant by tenant: what a step does is decided by what stands there; it may be repeated.

First everybody goes down to the smaller of then and now, and only when all have, those that rise go up: at no moment
do the limits sum to more than before or after. Every step leaves a mark in its tenant's own transaction; a process that
was thought dead and comes late finds it, or the mark of a later apply, and does nothing.
"""

from dataclasses import dataclass
from typing import Literal

Stage = Literal[1, 2]
STAGES: tuple[Stage, Stage] = (1, 2)


@dataclass(frozen=True, slots=True)
class Step:
    """What is planned for one tenant; *quota_id* is None where default limits held and a quota is to be made."""

    tenant_id: str
    quota_id: str | None
    from_active: int
    to_active: int

    def target(self, stage: Stage) -> int:
        """Return the limit after *stage*.

        >>> [Step("a", None, 5, 9).target(stage) for stage in STAGES]
        [5, 9]
        """
        return min(self.from_active, self.to_active) if stage == 1 else self.to_active

    def before(self, stage: Stage) -> int:
        """Return the limit that *stage* must find."""
        return self.from_active if stage == 1 else self.target(1)


@dataclass(frozen=True, slots=True)
class Mark:
    """How far which apply has come in one tenant."""

    epoch: int
    stage: int


@dataclass(frozen=True, slots=True)
class Found:
    """The tenant's quota, locked; *overridden* while an override of its slots is in force or to come."""

    quota_id: str
    max_active: int
    overridden: bool


@dataclass(frozen=True, slots=True)
class Give:
    """Set the limit, and leave the mark."""

    max_active: int


@dataclass(frozen=True, slots=True)
class Done:
    """It was done before."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The quota is not what the plan saw, or a later apply was here: the apply ends."""


Outcome = Give | Done | Broken


def decide(step: Step, stage: Stage, epoch: int, mark: Mark, found: Found | None) -> Outcome:
    """Decide one step from what the tenant's transaction sees.

    >>> step, fresh = Step("a", "q", 9, 5), Mark(0, 1)
    >>> decide(step, 1, 7, fresh, Found("q", 9, overridden=False))
    Give(max_active=5)
    >>> decide(step, 1, 7, Mark(7, 1), Found("q", 5, overridden=False))
    Done()
    >>> decide(step, 1, 7, fresh, Found("q", 8, overridden=False))
    Broken()
    """
    if mark.epoch > epoch:
        return Broken()
    if mark.epoch == epoch and mark.stage >= stage:
        return Done()
    if stage == 1 and step.quota_id is None:
        return Give(step.target(stage)) if found is None else Broken()
    if found is None or found.overridden or found.max_active != step.before(stage):
        return Broken()
    if step.quota_id not in {None, found.quota_id}:
        return Broken()
    return Give(step.target(stage))
