"""The platform's policy: the maxima that no operator may pass, and what holds where nobody said anything."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

from jobengine.clock import parse_duration
from jobengine.quota.model import Limits, limits_of


@dataclass(frozen=True, slots=True)
class Policy:
    """What holds for every tenant; durations are kept as they were written."""

    ceilings: Limits
    default_limits: Limits
    max_raise_factor: Decimal
    max_override_duration: str
    backfill_share: Decimal
    approval_above: Decimal | None
    approval_expires: str
    version: int

    @property
    def override_span(self) -> timedelta:
        """The longest that an override may last."""
        return parse_duration(self.max_override_duration)

    def as_json(self) -> dict[str, Any]:
        """Return the document that is stored and audited; the version is kept beside it."""
        return {
            "ceilings": self.ceilings.as_json(),
            "default_limits": self.default_limits.as_json(),
            "max_raise_factor": _number(self.max_raise_factor),
            "max_override_duration": self.max_override_duration,
            "backfill_share": _number(self.backfill_share),
            "approval_above": None if self.approval_above is None else _number(self.approval_above),
            "approval_expires": self.approval_expires,
        }


def policy_of(document: Mapping[str, Any], version: int) -> Policy:
    """Read a stored policy document.

    >>> policy_of(FIRST_POLICY.as_json(), 1) == FIRST_POLICY
    True
    """
    above = document["approval_above"]
    return Policy(
        ceilings=limits_of(document["ceilings"]),
        default_limits=limits_of(document["default_limits"]),
        max_raise_factor=Decimal(str(document["max_raise_factor"])),
        max_override_duration=document["max_override_duration"],
        backfill_share=Decimal(str(document["backfill_share"])),
        approval_above=None if above is None else Decimal(str(above)),
        approval_expires=document["approval_expires"],
        version=version,
    )


def _number(value: Decimal) -> int | float:
    return int(value) if value == int(value) else float(value)


FIRST_POLICY = Policy(
    ceilings=Limits(1_000, 1_000_000, 100_000, Decimal(100_000)),
    default_limits=Limits(10, 1_000, 20, Decimal(1)),
    max_raise_factor=Decimal(10),
    max_override_duration="P7D",
    backfill_share=Decimal("0.5"),
    approval_above=None,
    approval_expires="PT24H",
    version=1,
)
