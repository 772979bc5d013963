"""Times and durations as text."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.factories import NOW

from jobengine.clock import CarriedClock, format_time, parse_duration, parse_time, utc_now

moments = st.datetimes(timezones=st.just(UTC))


@given(moments)
def test_a_time_survives_being_written(moment: datetime) -> None:
    """To the microsecond, in every year of the calendar."""
    assert parse_time(format_time(moment)) == moment


@given(st.datetimes(min_value=datetime(2, 1, 1), max_value=datetime(9998, 1, 1)), st.integers(-720, 720))  # noqa: DTZ001 - the zone comes from the other strategy
def test_a_time_is_written_in_utc(naive: datetime, minutes: int) -> None:
    """Whatever zone it comes in."""
    moment = naive.replace(tzinfo=timezone(timedelta(minutes=minutes)))

    assert parse_time(format_time(moment)) == moment
    assert format_time(moment).endswith("Z")


@pytest.mark.parametrize(
    ("text", "micros"),
    [("2026-01-01T00:00:00Z", 0), ("2026-01-01T00:00:00.5Z", 500_000), ("2026-01-01T00:00:00.000001Z", 1)],
)
def test_one_to_six_fractional_digits_are_read(text: str, micros: int) -> None:
    """None at all as well."""
    assert parse_time(text) == datetime(2026, 1, 1, 0, 0, 0, micros, tzinfo=UTC)


@pytest.mark.parametrize(
    ("micros", "text"),
    [(0, "2026-01-01T00:00:00Z"), (500_000, "2026-01-01T00:00:00.500000Z"), (1, "2026-01-01T00:00:00.000001Z")],
)
def test_none_or_six_fractional_digits_are_written(micros: int, text: str) -> None:
    """One moment has one spelling."""
    assert format_time(datetime(2026, 1, 1, 0, 0, 0, micros, tzinfo=UTC)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-01-01",
        "2026-01-01T00:00:00",
        "2026-01-01T00:00:00+00:00",
        "2026-01-01T00:00:00-08:00",
        "2026-01-01 00:00:00Z",
        "2026-01-01T00:00Z",
        "2026-01-01T24:00:00Z",
        "2016-12-31T23:59:60Z",
        "2026-02-29T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "2026-01-01T00:00:00.Z",
        "2026-01-01T00:00:00.0000000Z",
        "2026-01-01T00:00:00,5Z",
        "2026-01-01T00:00:00Z\n",
        " 2026-01-01T00:00:00Z",
        "\uff12026-01-01T00:00:00Z",
        "+2026-01-01T00:00:00Z",
        "-026-01-01T00:00:00Z",
    ],
)
def test_any_other_spelling_of_a_time_is_refused(text: str) -> None:
    """Other offsets, naive times, leap seconds, seven digits, digits that only look like ours."""
    with pytest.raises(ValueError):
        parse_time(text)


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("P7D", timedelta(days=7)),
        ("P2W", timedelta(weeks=2)),
        ("P1W1D", timedelta(days=8)),
        ("PT24H", timedelta(days=1)),
        ("PT90M", timedelta(minutes=90)),
        ("P1DT1H1M1S", timedelta(days=1, hours=1, minutes=1, seconds=1)),
        ("P0D", timedelta(0)),
        ("P999999W", timedelta(weeks=999_999)),
    ],
)
def test_a_duration_of_fixed_length_is_read(text: str, span: timedelta) -> None:
    """Weeks, days, hours, minutes, seconds."""
    assert parse_duration(text) == span


@pytest.mark.parametrize(
    "text",
    [
        "",
        "P",
        "PT",
        "P1DT",
        "P1M",
        "P1Y",
        "7D",
        "PD",
        "P-1D",
        "P1.5D",
        "PT1H1D",
        "P1D ",
        "p1d",
        "P1234567D",
        "PT5",
        "P\uff11D",
    ],
)
def test_a_duration_of_no_fixed_length_is_refused(text: str) -> None:
    """Months and years have none, and neither has half a spelling."""
    with pytest.raises(ValueError):
        parse_duration(text)


def test_now_is_in_utc() -> None:
    """A naive time could be anybody's."""
    assert utc_now().utcoffset() == timedelta(0)


def test_a_carried_clock_goes_on_from_what_it_was_told() -> None:
    """Whatever the clock of the machine says, and never backwards between two tellings."""
    clock = CarriedClock()
    clock.tell(NOW)
    first, second = clock.now(), clock.now()

    assert NOW <= first <= second < NOW + timedelta(hours=1)
    clock.tell(NOW - timedelta(hours=1))
    assert clock.now() < NOW
