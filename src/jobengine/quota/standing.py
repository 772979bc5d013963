"""The arithmetic of admission in whole numbers: the one place that says what fits, for admission and for its replay.

Amounts of the bucket are 10^-12 tokens and instants are microseconds, so that nothing is ever rounded.
"""

from enum import IntFlag

TOKEN = 10**12


class Blocked(IntFlag):
    """Which limits stand in the way; none of them is 0."""

    PAUSED = 1
    MAX_ACTIVE = 2
    SHARE = 4
    MAX_PER_HOUR = 8
    RATE = 16


_PAUSED, _MAX_ACTIVE, _SHARE, _MAX_PER_HOUR, _RATE = (int(flag) for flag in Blocked)


class Standing:
    """What one limit's holder may use and uses, to be read and changed a million times a second.

    *live_most* and *backfill_most* are the slots that each kind may hold; *level* is the bucket's at *level_at*, None
    where no token was ever taken: full.
    """

    __slots__ = (
        "active", "active_backfill", "backfill_most", "full", "granted_hour", "level", "level_at", "live_most",
        "max_active", "max_per_hour", "paused", "refill",
    )  # fmt: skip

    def __init__(self) -> None:
        self.paused = False
        self.max_active = self.live_most = self.backfill_most = self.max_per_hour = self.full = self.refill = 0
        self.active = self.active_backfill = self.granted_hour = self.level_at = 0
        self.level: int | None = None

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
        """Return the limits, as bits of `Blocked`, that keep *slots* from being granted at *micros*; 0 grants.

        >>> scan = Standing()
        >>> scan.max_active = scan.live_most = 2
        >>> Blocked(scan.blocked(3, 0, False))
        <Blocked.MAX_ACTIVE|MAX_PER_HOUR|RATE: 26>
        """
        bits = _PAUSED if self.paused else 0
        if backfill:
            if self.active + slots > self.max_active:
                bits |= _MAX_ACTIVE
            # Both may block at once, and one may give way long before the other.
            if self.active_backfill + slots > self.backfill_most:
                bits |= _SHARE
        elif self.active + slots > self.live_most:
            bits |= _MAX_ACTIVE
        if self.granted_hour >= self.max_per_hour:
            bits |= _MAX_PER_HOUR
        return bits | _RATE if self.level_pico(micros) < TOKEN else bits

    def take(self, slots: int, micros: int, backfill: int) -> None:
        """Take *slots*, one admission of the hour and one token, at *micros*; only where nothing is `blocked`."""
        self.level = self.level_pico(micros) - TOKEN
        self.level_at = micros
        self.granted_hour += 1
        self.active += slots
        if backfill:
            self.active_backfill += slots

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
