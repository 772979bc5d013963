"""Event-time windows and the partitions that cut them: half-open, in UTC, by arithmetic and never by listing."""

import re
from calendar import monthrange
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, Self

from jobengine.clock import format_time, parse_time

_INSTANT: Final = timedelta.resolution
_CALENDAR_END: Final = datetime.max.replace(tzinfo=UTC)
_PARTITION: Final = re.compile(r"P(?:(?P<n>[0-9]{1,9})(?P<unit>[YMWD])|T(?P<tn>[0-9]{1,9})(?P<tunit>[HM]))")
_MONTHS: Final = {"Y": 12, "M": 1}
_FIXED: Final = {"W": timedelta(weeks=1), "D": timedelta(days=1), "TH": timedelta(hours=1), "TM": timedelta(minutes=1)}


@dataclass(frozen=True, slots=True, order=True)
class EventTimeWindow:
    """The instants from *start* up to but not including *end*, kept in UTC.

    Raises ValueError when it is empty or reversed, or when a time carries no offset.

    >>> str(EventTimeWindow.parse("2026-01-01T00:00:00Z/2026-01-02T00:00:00Z"))
    '2026-01-01T00:00:00Z/2026-01-02T00:00:00Z'
    """

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        if self.start.tzinfo is not UTC or self.end.tzinfo is not UTC:
            object.__setattr__(self, "start", _in_utc(self.start))
            object.__setattr__(self, "end", _in_utc(self.end))
        if self.start >= self.end:
            message = "must start before it ends"
            raise ValueError(message)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an ISO 8601 interval ``start/end`` of two RFC 3339 times in UTC; raises ValueError for anything else."""
        start, slash, end = text.partition("/")
        if not slash:
            message = "must be two times with a slash between them"
            raise ValueError(message)
        return cls(parse_time(start), parse_time(end))

    def __str__(self) -> str:
        return f"{format_time(self.start)}/{format_time(self.end)}"

    @property
    def length(self) -> timedelta:
        """The time from start to end, never zero."""
        return self.end - self.start

    def contains(self, moment: datetime) -> bool:
        """Tell whether *moment* lies inside; the end does not."""
        return self.start <= moment < self.end

    def covers(self, other: Self) -> bool:
        """Tell whether every instant of *other* lies inside."""
        return self.start <= other.start and other.end <= self.end

    def overlaps(self, other: Self) -> bool:
        """Tell whether the two share an instant; windows that only touch do not.

        >>> noon = "2026-01-01T12:00:00Z"
        >>> morning = EventTimeWindow.parse(f"2026-01-01T00:00:00Z/{noon}")
        >>> morning.overlaps(EventTimeWindow.parse(f"{noon}/2026-01-02T00:00:00Z"))
        False
        """
        return self.start < other.end and other.start < self.end

    def intersection(self, other: Self) -> Self | None:
        """Return the instants the two share, or None."""
        if not self.overlaps(other):
            return None
        return type(self)(max(self.start, other.start), min(self.end, other.end))

    def subtract(self, taken: Iterable["EventTimeWindow"]) -> list["EventTimeWindow"]:
        """Return what is left of this window without *taken*: sorted, disjoint, in O(n log n).

        >>> day = EventTimeWindow.parse("2026-01-01T00:00:00Z/2026-01-02T00:00:00Z")
        >>> noon = EventTimeWindow.parse("2026-01-01T12:00:00Z/2026-01-01T13:00:00Z")
        >>> [str(piece) for piece in day.subtract([noon])]
        ['2026-01-01T00:00:00Z/2026-01-01T12:00:00Z', '2026-01-01T13:00:00Z/2026-01-02T00:00:00Z']
        """
        left: list[EventTimeWindow] = []
        free_from = self.start
        for hole in merge(window for window in taken if window.overlaps(self)):
            if free_from < hole.start:
                left.append(EventTimeWindow(free_from, hole.start))
            free_from = hole.end
        if free_from < self.end:
            left.append(EventTimeWindow(free_from, self.end))
        return left


def merge(windows: Iterable[EventTimeWindow]) -> list[EventTimeWindow]:
    """Return the union of *windows* as the fewest windows: sorted, disjoint, touching ones joined.

    >>> halves = ["2026-01-01T12:00:00Z/2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z/2026-01-01T12:00:00Z"]
    >>> [str(window) for window in merge(map(EventTimeWindow.parse, halves))]
    ['2026-01-01T00:00:00Z/2026-01-02T00:00:00Z']
    """
    merged: list[EventTimeWindow] = []
    for window in sorted(windows):
        if merged and window.start <= merged[-1].end:
            if window.end > merged[-1].end:
                merged[-1] = EventTimeWindow(merged[-1].start, window.end)
        else:
            merged.append(window)
    return merged


@dataclass(frozen=True, slots=True)
class Partition:
    """The length of one batch: ``PnY PnM PnW PnD PTnH PTnM`` with one unit and 1 <= n < 10^9, kept as it was sent.

    Raises ValueError for anything else. Every question about a window is answered in constant time.

    >>> Partition("P1D")
    Partition(text='P1D')
    """

    text: str
    _months: int = field(init=False, repr=False, compare=False)
    _micros: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        found = _PARTITION.fullmatch(self.text)
        amount = int(found["n"] or found["tn"]) if found else 0
        if found is None or amount == 0:
            message = "must be one of PnY, PnM, PnW, PnD, PTnH and PTnM with n from 1 to 999999999, like P1D"
            raise ValueError(message)
        unit = found["unit"] or f"T{found['tunit']}"
        object.__setattr__(self, "_months", amount * _MONTHS.get(unit, 0))
        # Whole microseconds, because 999,999,999 weeks do not fit a timedelta.
        object.__setattr__(self, "_micros", amount * (_FIXED.get(unit, timedelta()) // _INSTANT))

    def start_of(self, start: datetime, k: int) -> datetime:
        """Return where partition *k* >= 0 begins in a window from *start* (in UTC): ``start + k × partition``.

        Computed from *start*, so a day clamped to the end of one month does not shorten the next. What would lie beyond
        the year 9999 is the calendar's last instant, which no window contains.

        >>> january = datetime(2028, 1, 31, tzinfo=UTC)
        >>> [f"{Partition('P1M').start_of(january, k):%m-%d}" for k in range(4)]
        ['01-31', '02-29', '03-31', '04-30']
        """
        if k < 0:
            message = "partitions are numbered from 0"
            raise IndexError(message)
        if self._months:
            return _months_later(start, k * self._months)
        micros = k * self._micros
        return _CALENDAR_END if micros > (_CALENDAR_END - start) // _INSTANT else start + micros * _INSTANT

    def count(self, window: EventTimeWindow) -> int:
        """Return how many partitions cut *window*, the last one counted although it may be short.

        >>> Partition("PT1M").count(EventTimeWindow.parse("1000-01-01T00:00:00Z/2000-01-01T00:00:00Z"))
        525948480
        """
        return self._index_at(window.start, window.end - _INSTANT) + 1

    def window_of(self, window: EventTimeWindow, k: int) -> EventTimeWindow:
        """Return partition *k* of *window*, the last one cut at the window's end; IndexError when there is none.

        >>> year = EventTimeWindow.parse("2026-01-31T00:00:00Z/2026-03-15T00:00:00Z")
        >>> str(Partition("P1M").window_of(year, 1))
        '2026-02-28T00:00:00Z/2026-03-15T00:00:00Z'
        """
        start = self.start_of(window.start, k)
        if start >= window.end:
            message = f"{window} has no partition {k}"
            raise IndexError(message)
        return EventTimeWindow(start, min(self.start_of(window.start, k + 1), window.end))

    def overlapping(self, window: EventTimeWindow, piece: EventTimeWindow) -> range:
        """Return the numbers of the partitions of *window* that share an instant with *piece*.

        >>> week = EventTimeWindow.parse("2026-01-01T00:00:00Z/2026-01-08T00:00:00Z")
        >>> Partition("P1D").overlapping(week, EventTimeWindow.parse("2026-01-02T12:00:00Z/2026-01-04T00:00:00Z"))
        range(1, 3)
        """
        shared = window.intersection(piece)
        if shared is None:
            return range(0)
        first, last = (self._index_at(window.start, at) for at in (shared.start, shared.end - _INSTANT))
        return range(first, last + 1)

    def inside(self, window: EventTimeWindow, piece: EventTimeWindow) -> range:
        """Return the numbers of the partitions of *window* that lie wholly in *piece*.

        >>> week = EventTimeWindow.parse("2026-01-01T00:00:00Z/2026-01-08T00:00:00Z")
        >>> Partition("P1D").inside(week, EventTimeWindow.parse("2026-01-02T12:00:00Z/2026-01-04T00:00:00Z"))
        range(2, 3)
        """
        first, stop = 0, 0
        if piece.end >= window.end:
            stop = self.count(window)
        elif piece.end > window.start:
            stop = self._index_at(window.start, piece.end)
        if piece.start > window.start:
            # Numbered from the last instant before the piece, whose partition is lost, whole or in part.
            first = self._index_at(window.start, piece.start - _INSTANT) + 1
        return range(first, stop)

    def _index_at(self, start: datetime, moment: datetime) -> int:
        """Return which partition holds *moment* >= *start*."""
        if not self._months:
            return (moment - start) // _INSTANT // self._micros
        k = ((moment.year - start.year) * 12 + moment.month - start.month) // self._months
        return k if self.start_of(start, k) <= moment else k - 1


def _months_later(start: datetime, months: int) -> datetime:
    year, month0 = divmod(start.year * 12 + start.month - 1 + months, 12)
    if year > _CALENDAR_END.year:
        return _CALENDAR_END
    return start.replace(year=year, month=month0 + 1, day=min(start.day, monthrange(year, month0 + 1)[1]))


def _in_utc(moment: datetime) -> datetime:
    if moment.utcoffset() is None:
        message = "must carry an offset from UTC"
        raise ValueError(message)
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        message = "lies outside the years 1 to 9999"
        raise ValueError(message) from None
