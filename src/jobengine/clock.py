"""Time as text and back: RFC 3339 UTC with ``Z`` and nothing else, ISO 8601 durations of fixed length."""

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from time import monotonic

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?Z", re.ASCII)
_DURATION = re.compile(
    r"P(?=.)(?:(?P<weeks>\d{1,6})W)?(?:(?P<days>\d{1,6})D)?"
    r"(?:T(?=\d)(?:(?P<hours>\d{1,6})H)?(?:(?P<minutes>\d{1,6})M)?(?:(?P<seconds>\d{1,6})S)?)?",
    re.ASCII,
)


def utc_now() -> datetime:
    """Return the time of this machine; decisions about leases and limits use the database's clock instead."""
    return datetime.now(UTC)


class CarriedClock:
    """The database's time as it was last told, carried on by a clock that nobody sets.

    What is decided without a look at the database goes by it, as the life of a token does: a step of the machine's
    wall clock neither ends nor lengthens anything.
    """

    def __init__(self) -> None:
        self.tell(utc_now())

    def tell(self, now: datetime) -> None:
        """Take over what the database's clock says at this moment."""
        self._ahead = now - _EPOCH - timedelta(seconds=monotonic())

    def now(self) -> datetime:
        """Return the database's time, as well as it is known."""
        return _EPOCH + self._ahead + timedelta(seconds=monotonic())


def parse_time(text: str) -> datetime:
    """Read an RFC 3339 time in UTC written with ``Z`` and at most six fractional digits.

    Raises ValueError for other offsets, naive times, leap seconds and impossible dates.

    >>> parse_time("2026-01-01T00:00:00.5Z")
    datetime.datetime(2026, 1, 1, 0, 0, 0, 500000, tzinfo=datetime.timezone.utc)
    """
    found = _TIME.fullmatch(text)
    if found is None:
        message = "must be an RFC 3339 time in UTC, like 2026-01-31T00:00:00Z"
        raise ValueError(message)
    year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
    micros = int((found[7] or "0").ljust(6, "0"))
    try:
        return datetime(year, month, day, hour, minute, second, micros, tzinfo=UTC)
    except ValueError:
        message = "is not a date of the calendar"
        raise ValueError(message) from None


@lru_cache(256)
def format_time(moment: datetime) -> str:
    """Write *moment* in UTC with ``Z``: six fractional digits when they are not zero, none when they are.

    >>> format_time(datetime(2026, 1, 1, tzinfo=UTC)), format_time(datetime(2026, 1, 1, 0, 0, 0, 1, tzinfo=UTC))
    ('2026-01-01T00:00:00Z', '2026-01-01T00:00:00.000001Z')
    """
    # What is decided together ends together, so the same few times are written again and again.
    # ISO 8601 as the standard library writes it leaves a fraction of zero out, and pads every year to four digits.
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"


def parse_duration(text: str) -> timedelta:
    """Read an ISO 8601 duration made of weeks, days, hours, minutes and seconds.

    Raises ValueError for anything else: months and years have no fixed length.

    >>> parse_duration("P7D"), parse_duration("PT1H30M")
    (datetime.timedelta(days=7), datetime.timedelta(seconds=5400))
    """
    found = _DURATION.fullmatch(text)
    if found is None:
        message = "must be an ISO 8601 duration of weeks, days, hours, minutes or seconds, like P7D or PT24H"
        raise ValueError(message)
    return timedelta(**{unit: int(amount) for unit, amount in found.groupdict().items() if amount is not None})
