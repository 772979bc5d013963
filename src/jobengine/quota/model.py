"""Quotas as values: limits, use, and raises that end by themselves."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from jobengine.clock import format_time

Number = int | Decimal

DRAIN_GRACE = timedelta(seconds=60)
"""How long after a limit that drains was set leases above it are still renewed."""

LIMIT_NAMES = ("max_active", "max_per_hour", "burst", "refill_per_second")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a job type (or a whole tenant) may use.

    *max_active* counts slots held at once, *max_per_hour* admissions in any rolling 3,600 s; *burst* tokens fit in the
    bucket, which *refill_per_second* fills continuously.
    """

    max_active: int
    max_per_hour: int
    burst: int
    refill_per_second: Decimal

    def value(self, name: str) -> Number:
        """Return the limit called *name*."""
        return getattr(self, name)

    def changed(self, changes: Mapping[str, Number]) -> "Limits":
        """Return these limits with *changes* applied.

        >>> Limits(1, 2, 3, Decimal(4)).changed({"burst": 9}).burst
        9
        """
        return replace(self, **dict(changes))

    def as_json(self) -> dict[str, Any]:
        """Return the limits as they stand in JSON: whole numbers without a fraction.

        >>> Limits(1, 2, 3, Decimal("0.500000")).as_json()
        {'max_active': 1, 'max_per_hour': 2, 'burst': 3, 'refill_per_second': 0.5}
        """
        return limits_json({name: self.value(name) for name in LIMIT_NAMES})


def limits_json(limits: Mapping[str, Number]) -> dict[str, int | float]:
    """Return some limits as JSON numbers.

    >>> limits_json({"refill_per_second": Decimal("2.000000")})
    {'refill_per_second': 2}
    """
    return {name: int(value) if value == int(value) else float(value) for name, value in limits.items()}


def limits_of(document: Mapping[str, Any]) -> Limits:
    """Read limits from JSON numbers, exactly to the sixth decimal."""
    return Limits(
        int(document["max_active"]),
        int(document["max_per_hour"]),
        int(document["burst"]),
        Decimal(str(document["refill_per_second"])),
    )


@dataclass(frozen=True, slots=True)
class Override:
    """A raise of some limits between *starts_at* and *until*; it needs no timer, for it is worked out when read."""

    override_id: str
    quota_id: str
    limits: Mapping[str, Number]
    starts_at: datetime
    until: datetime
    created_at: datetime
    created_by: str
    entry_id: str

    def active(self, now: datetime) -> bool:
        """Tell whether the raise holds at *now*."""
        return self.starts_at <= now < self.until


def effective_limits(base: Limits, overrides: Iterable[Override], now: datetime) -> Limits:
    """Return the limits in force at *now*: each the highest of the base and the raises that hold.

    Two operators' raises stand beside each other; ending one never takes the other away.
    """
    best: dict[str, Number] = {}
    for override in overrides:
        if override.active(now):
            for name, value in override.limits.items():
                best[name] = max(best.get(name, base.value(name)), value)
    return base.changed(best)


def limits_ahead(base: Limits, overrides: Iterable[Override], now: datetime) -> tuple[tuple[datetime, Limits], ...]:
    """Return when the raises that hold at *now* end, each with the limits that are left from then on.

    A raise that is yet to begin is not counted with: nobody should wait for what may be taken back before.
    """
    holding = [override for override in overrides if override.active(now)]
    ends = sorted({override.until for override in holding})
    return tuple((end, effective_limits(base, holding, end)) for end in ends)


@dataclass(frozen=True, slots=True)
class Usage:
    """What is used of a quota at one moment: slots, admissions of the last hour, tokens left in the bucket."""

    active: int
    active_backfill: int
    granted_last_hour: int
    tokens: Decimal


@dataclass(frozen=True, slots=True)
class AllocationShare:
    """A tenant's part in a pool that several tenants share; *capacity* is None where the pool is not bounded."""

    capacity: int | None
    strategy: str
    weight: int
    priority: int
    reserved: int
    max_limit: int | None


@dataclass(frozen=True, slots=True)
class Quota:
    """What one job type of a tenant may use; *job_type* None is the tenant as a whole.

    From *drain_after* on leases above the limit are not renewed; with None they run on.
    """

    quota_id: str
    tenant_id: str
    job_type: str | None
    limits: Limits
    paused: bool
    pause_reason: str | None
    version: int
    created_at: datetime
    updated_at: datetime
    updated_by: str
    last_action: str
    last_entry_id: str
    drain_after: datetime | None = None

    def as_json(self) -> dict[str, Any]:
        """Return what an audit entry shows of the quota before and after a change.

        The free text of a pause stays out: what is hashed into a leaf can never be erased.
        """
        drains = {} if self.drain_after is None else {"drain_after": format_time(self.drain_after)}
        return {
            "job_type": self.job_type,
            "limits": self.limits.as_json(),
            "paused": self.paused,
            "version": self.version,
            **drains,
        }
