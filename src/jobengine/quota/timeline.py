"""What limits held in the past: a bucket refills at the rates that there were, not at the last one."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from jobengine.quota.model import Limits, Override, effective_limits

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Steps(Generic[Value]):
    """What changed in steps: what it is now, and, oldest first, when it changed and what it was before."""

    now: Value
    before: Sequence[tuple[datetime, Value]] = ()

    def at(self, moment: datetime) -> Value:
        """Return what it was at *moment*."""
        return next((value for until, value in self.before if until > moment), self.now)


@dataclass(frozen=True, slots=True)
class Timeline:
    """What the limits of an account hang on: its quota where it has one, the defaults where not, and its raises."""

    quota: Steps[Limits | None]
    defaults: Steps[Limits]
    overrides: Sequence[Override] = ()

    def between(self, since: datetime, now: datetime) -> list[tuple[datetime, Limits]]:
        """Return the limits in force from *since* to *now*, each with the time until which they held.

        >>> from datetime import UTC, timedelta
        >>> from decimal import Decimal
        >>> slow, fast = Limits(1, 1, 9, Decimal(1)), Limits(1, 1, 9, Decimal(2))
        >>> then = datetime(2026, 1, 1, tzinfo=UTC)
        >>> timeline = Timeline(Steps(fast, [(then + timedelta(minutes=1), slow)]), Steps(slow))
        >>> held = timeline.between(then, then + timedelta(minutes=3))
        >>> [(until - then, limits.refill_per_second) for until, limits in held]
        [(datetime.timedelta(seconds=60), Decimal('1')), (datetime.timedelta(seconds=180), Decimal('2'))]
        """
        moments = {at for at, _ in self.quota.before} | {at for at, _ in self.defaults.before}
        moments |= {moment for item in self.overrides for moment in (item.starts_at, item.until)}
        ends = [*sorted(moment for moment in moments if since < moment < now), now]
        return [(until, self._at(start)) for start, until in zip([since, *ends], ends, strict=False)]

    def _at(self, moment: datetime) -> Limits:
        base = self.quota.at(moment) or self.defaults.at(moment)
        return effective_limits(base, self.overrides, moment)
