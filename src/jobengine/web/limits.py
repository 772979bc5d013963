"""Limits on the wire."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any

import msgspec

from jobengine.errors import ValidationFailed
from jobengine.quota.model import LIMIT_NAMES, Limits, Number

Count = Annotated[int, msgspec.Meta(ge=0, le=10**12)]
Rate = Annotated[float, msgspec.Meta(ge=0, le=10**9)]
_DECIMALS = 6


class LimitsIn(msgspec.Struct, forbid_unknown_fields=True):
    """All four limits."""

    max_active: Count
    max_per_hour: Count
    burst: Count
    refill_per_second: Rate


class SomeLimits(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Some of the limits; those left out stay as they are."""

    max_active: Count | msgspec.UnsetType = msgspec.UNSET
    max_per_hour: Count | msgspec.UnsetType = msgspec.UNSET
    burst: Count | msgspec.UnsetType = msgspec.UNSET
    refill_per_second: Rate | msgspec.UnsetType = msgspec.UNSET


class LimitsView(msgspec.Struct):
    """Limits as they are shown."""

    max_active: int
    max_per_hour: int
    burst: int
    refill_per_second: float


def read_limits(limits: LimitsIn) -> Limits:
    """Return all four limits; raises ValidationFailed for more than six decimals."""
    return Limits(limits.max_active, limits.max_per_hour, limits.burst, _rate("limits", limits.refill_per_second))


def read_some_limits(limits: SomeLimits, *, path: str = "limits", empty: bool = False) -> Mapping[str, Number]:
    """Return the limits given at *path*; raises ValidationFailed when none is, unless *empty* is fine."""
    given: dict[str, Any] = {
        name: value for name in LIMIT_NAMES if (value := getattr(limits, name)) is not msgspec.UNSET
    }
    if not given and not empty:
        raise ValidationFailed(path, "name at least one limit")
    if "refill_per_second" in given:
        given["refill_per_second"] = _rate(path, given["refill_per_second"])
    return given


def show_limits(limits: Limits) -> LimitsView:
    """Return the limits for the wire."""
    return LimitsView(limits.max_active, limits.max_per_hour, limits.burst, limits.as_json()["refill_per_second"])


def _rate(path: str, value: float) -> Decimal:
    rate = Decimal(str(value))
    exponent = rate.normalize().as_tuple().exponent
    if not isinstance(exponent, int) or exponent < -_DECIMALS:
        raise ValidationFailed(f"{path}.refill_per_second", f"has more than {_DECIMALS} decimals")
    return rate
