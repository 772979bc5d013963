"""The arithmetic of admission in whole numbers: the one place that says what fits, for admission and for its replay.

Amounts of the bucket are 10^-12 tokens and instants are microseconds, so that nothing is ever rounded.
"""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import floor
from typing import Final

from jobengine.quota.model import Limits

TOKEN = 10**12
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def micros_of(at: datetime) -> int:
    """Return an instant in microseconds since 1970.

    >>> micros_of(datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC))
    1000000
    """
    return (at - _EPOCH) // _MICROSECOND


def instant_of(micros: int) -> datetime:
    """Return the instant that is so many microseconds after 1970.

    >>> instant_of(1_000_000).isoformat()
    '1970-01-01T00:00:01+00:00'
    """
    return _EPOCH + micros * _MICROSECOND


# Which limits stand in the way, as bits; none of them is 0.
PAUSED: Final = 1
MAX_ACTIVE: Final = 2
SHARE: Final = 4
MAX_PER_HOUR: Final = 8
RATE: Final = 16


class Standing:
    """What one limit's holder may use and uses, to be read and changed a million times a second.

    *waits*: a batch could run and none does. *live_most* and *backfill_most* are the slots that each kind may hold;
    *level* is the bucket's at *level_at*, None where no token was ever taken: full.
    """

    __slots__ = (
        "active", "active_backfill", "backfill_most", "full", "granted_hour", "level", "level_at", "live_most",
        "max_active", "max_per_hour", "paused", "refill", "waits",
    )  # fmt: skip

    def __init__(self) -> None:
        self.paused = self.waits = False
        self.max_active = self.live_most = self.backfill_most = self.max_per_hour = self.full = self.refill = 0
        self.active = self.active_backfill = self.granted_hour = self.level_at = 0
        self.level: int | None = None

    def limit(self, limits: Limits, share: Decimal, *, paused: bool, waits: bool) -> None:
        """Set what holds: the cap of backfills at *share*, and, where a batch *waits*, the slot that it is left."""
        self.paused = paused
        self.max_active = most = limits.max_active
        self.backfill_most = min(most, max(1, floor(share * most)))
        self.max_per_hour = limits.max_per_hour
        self.full = limits.burst * TOKEN
        self.refill = int(limits.refill_per_second * 10**6)
        self.leave_one(waits=waits)

    def leave_one(self, *, waits: bool) -> None:
        """Leave a batch that waits one slot, where there are two."""
        self.waits = waits
        self.live_most = self.max_active - 1 if waits and self.max_active > 1 else self.max_active

    def level_pico(self, micros: int) -> int:
        """Return the bucket's level at *micros*: never above the burst, never refilled backwards."""
        level = self.level
        if level is None:
            return self.full
        since = micros - self.level_at
        if since > 0:
            level += since * self.refill
        return level if level < self.full else self.full  # noqa: FURB136 - a call of min() costs twice the whole

    def blocked(self, slots: int, micros: int, backfill: int) -> int:
        """Return the limits, as bits, that keep *slots* from being granted at *micros*; 0 grants.

        >>> scan = Standing()
        >>> scan.max_active = scan.live_most = 2
        >>> scan.blocked(3, 0, False) == MAX_ACTIVE | MAX_PER_HOUR | RATE
        True
        """
        bits = PAUSED if self.paused else 0
        if backfill:
            if self.active + slots > self.max_active:
                bits |= MAX_ACTIVE
            # Both may block at once, and one may give way long before the other.
            if self.active_backfill + slots > self.backfill_most:
                bits |= SHARE
        elif self.active + slots > self.live_most:
            bits |= MAX_ACTIVE
        if self.granted_hour >= self.max_per_hour:
            bits |= MAX_PER_HOUR
        return bits | RATE if self.level_pico(micros) < TOKEN else bits

    def settle(self, micros: int) -> None:
        """Count the bucket up to *micros* under the limits that held until then."""
        if self.level is not None and micros > self.level_at:
            self.level, self.level_at = self.level_pico(micros), micros

    def take(self, slots: int, micros: int, backfill: int) -> None:
        """Take *slots*, one admission of the hour and one token, at *micros*; only where nothing is `blocked`."""
        self.level = self.level_pico(micros) - TOKEN
        self.level_at = micros
        self.granted_hour += 1
        self.active += slots
        if backfill:
            self.active_backfill += slots
            self.leave_one(waits=False)

    def take_uncounted(self, slots: int, backfill: int) -> None:
        """Take *slots* and one admission of the hour where no limit holds: no token is taken from a bucket."""
        self.granted_hour += 1
        self.active += slots
        if backfill:
            self.active_backfill += slots

    def give_back(self, slots: int, backfill: int) -> None:
        """Take an ended lease out of the sums."""
        self.active -= slots
        if backfill:
            self.active_backfill -= slots
