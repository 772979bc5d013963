"""Windows and partitions, by table and against listing them one by one."""

from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.backfill.strategies import HALF_DAY, NEW_YEAR, cut_windows, days, half_days, window

from jobengine.backfill.window import EventTimeWindow, Partition, merge

FIRST_INSTANT = datetime.min.replace(tzinfo=UTC)
LAST_INSTANT = datetime.max.replace(tzinfo=UTC)
UNITS = ["P1Y", "P1M", "P1W", "P1D", "PT1H", "PT1M"]


def instants_of(*windows: EventTimeWindow) -> set[datetime]:
    return {
        NEW_YEAR + k * HALF_DAY
        for each in windows
        for k in range((each.start - NEW_YEAR) // HALF_DAY, (each.end - NEW_YEAR) // HALF_DAY)
    }


@pytest.mark.parametrize(("start", "end"), [(1, 1), (2, 1)])
def test_a_window_that_is_empty_or_reversed_is_refused(start: int, end: int) -> None:
    """A window holds at least one instant."""
    with pytest.raises(ValueError, match="must start before it ends"):
        days(start, end)


def test_a_time_without_an_offset_is_refused() -> None:
    """A naive time names no instant."""
    with pytest.raises(ValueError, match="offset"):
        EventTimeWindow(NEW_YEAR.replace(tzinfo=None), NEW_YEAR)


def test_times_of_another_offset_are_kept_in_utc() -> None:
    """What a database session answers in its own zone is the same window, and its partitions know no summer time."""
    berlin = ZoneInfo("Europe/Berlin")
    local = EventTimeWindow(datetime(2026, 3, 29, tzinfo=berlin), datetime(2026, 3, 30, tzinfo=berlin))

    assert local == window("2026-03-28T23:00:00Z/2026-03-29T22:00:00Z")
    assert local.start.tzinfo is UTC
    assert local.length == timedelta(hours=23)


def test_an_offset_that_leaves_the_calendar_is_refused() -> None:
    """An instant beyond the year 9999 is a ValueError like any other bad time."""
    west = timezone(timedelta(hours=-1))
    with pytest.raises(ValueError, match="9999"):
        EventTimeWindow(NEW_YEAR, datetime.max.replace(tzinfo=west))


@pytest.mark.parametrize("text", ["", "2026-01-01T00:00:00Z", "2026-01-01/2026-01-02", "P1D/2026-01-02T00:00:00Z"])
def test_text_that_is_no_interval_is_refused(text: str) -> None:
    """Only two RFC 3339 times with a slash between them are a window."""
    with pytest.raises(ValueError):
        EventTimeWindow.parse(text)


def test_the_end_of_a_window_lies_outside() -> None:
    """Windows are half-open: the start is in, the end is not."""
    day = days(0, 1)

    assert day.contains(day.start)
    assert not day.contains(day.end)
    assert day.contains(day.end - timedelta.resolution)


@given(half_days(), half_days())
def test_relations_of_windows_are_those_of_their_instants(one: EventTimeWindow, other: EventTimeWindow) -> None:
    """Overlap, cover and intersection agree with sets of instants."""
    mine, theirs = instants_of(one), instants_of(other)
    shared = one.intersection(other)

    assert one.overlaps(other) == bool(mine & theirs)
    assert one.covers(other) == (mine >= theirs)
    assert (instants_of(shared) if shared else set()) == mine & theirs


@given(half_days(), st.lists(half_days(), max_size=8))
def test_subtracting_leaves_exactly_the_free_instants(whole: EventTimeWindow, taken: list[EventTimeWindow]) -> None:
    """Nothing taken is left, nothing free is lost, and the pieces are sorted and do not touch."""
    left = whole.subtract(taken)

    assert instants_of(*left) == instants_of(whole) - instants_of(*taken)
    assert merge(left) == left


@given(st.lists(half_days(), max_size=8))
def test_merging_keeps_the_union_in_the_fewest_windows(windows: list[EventTimeWindow]) -> None:
    """The union stays, and between two merged windows there is a gap."""
    merged = merge(windows)

    assert instants_of(*merged) == instants_of(*windows)
    assert all(one.end < other.start for one, other in pairwise(merged))


@pytest.mark.parametrize(
    "text",
    [
        "", "P", "PT", "1D", "P0D", "P00Y", "PT0H", "P-1D", "P+1D", "P1.5D", "P1,5D", "P1S", "PT1S", "P1H", "PT1D",
        "PT1Y", "P1DT1H", "P1Y1M", "P1D ", " P1D", "P1D\n", "p1d", "P 1D", "P1000000000D", "P\u0661D", "P1W1D", "R/P1D",
    ],
)  # fmt: skip
def test_a_partition_of_another_form_is_refused(text: str) -> None:
    """One unit, a whole number from 1 to 999,999,999, and nothing else."""
    with pytest.raises(ValueError):
        Partition(text)


@pytest.mark.parametrize("text", [*UNITS, "P007D", "P999999999Y", "PT999999999M"])
def test_a_partition_is_kept_as_it_was_sent(text: str) -> None:
    """Durations are echoed, leading zeros and all."""
    assert Partition(text).text == text


@pytest.mark.parametrize(
    ("start", "partition", "starts"),
    [
        ("2026-01-31", "P1M", ["2026-01-31", "2026-02-28", "2026-03-31", "2026-04-30", "2026-05-31"]),
        ("2028-01-31", "P1M", ["2028-01-31", "2028-02-29", "2028-03-31"]),
        ("2026-01-30", "P1M", ["2026-01-30", "2026-02-28", "2026-03-30"]),
        ("2026-08-31", "P3M", ["2026-08-31", "2026-11-30", "2027-02-28", "2027-05-31"]),
        ("2028-02-29", "P1Y", ["2028-02-29", "2029-02-28", "2030-02-28", "2031-02-28", "2032-02-29"]),
        ("1896-02-29", "P4Y", ["1896-02-29", "1900-02-28", "1904-02-29"]),
        ("2025-12-15", "P1M", ["2025-12-15", "2026-01-15"]),
        ("2026-12-28", "P1W", ["2026-12-28", "2027-01-04"]),
        ("2028-02-28", "P1D", ["2028-02-28", "2028-02-29", "2028-03-01"]),
    ],
)
def test_partitions_start_where_the_calendar_says(start: str, partition: str, starts: list[str]) -> None:
    """Days are clamped to the month's end, each time anew from the window's start."""
    begin = datetime.fromisoformat(start).replace(tzinfo=UTC)

    assert [f"{Partition(partition).start_of(begin, k):%Y-%m-%d}" for k in range(len(starts))] == starts


def test_a_clamped_start_keeps_its_time_of_day() -> None:
    """Only the day is clamped."""
    start = datetime(2026, 1, 31, 23, 59, 59, 999_999, tzinfo=UTC)

    assert Partition("P1M").start_of(start, 1) == start.replace(month=2, day=28)


def listed_start(start: datetime, text: str, k: int) -> datetime | None:
    """Work out a partition's start the long way, None beyond the calendar."""
    amount, unit = int(text.strip("PTYMWDH")) * k, text.replace("M", "T" if "T" in text else "M")[-1]
    try:
        if unit in "WDHT":
            step = {"W": timedelta(weeks=1), "D": timedelta(days=1), "H": timedelta(hours=1), "T": timedelta(minutes=1)}
            return start + amount * step[unit]
        months = start.month - 1 + amount * (12 if unit == "Y" else 1)
        year, month = start.year + months // 12, months % 12 + 1
        day = start.day
        while day > 28 and not is_date(year, month, day):
            day -= 1
        return start.replace(year=year, month=month, day=day)
    except (OverflowError, ValueError):
        return None


def is_date(year: int, month: int, day: int) -> bool:
    try:
        datetime(year, month, day, tzinfo=UTC)
    except ValueError:
        return False
    return True


@given(cut_windows())
@settings(deadline=None)
def test_partitions_tile_their_window_exactly(cut: tuple[EventTimeWindow, Partition]) -> None:
    """The partitions begin where the calendar says, leave no gap, share nothing, and end with the window."""
    whole, partition = cut
    pieces = [partition.window_of(whole, k) for k in range(partition.count(whole))]
    edges = [piece.start for piece in pieces] + [whole.end]

    assert [piece.end for piece in pieces] == edges[1:]
    assert edges[:-1] == [listed_start(whole.start, partition.text, k) for k in range(len(pieces))]
    assert (listed_start(whole.start, partition.text, len(pieces)) or LAST_INSTANT) >= whole.end


@given(cut_windows())
@settings(deadline=None)
def test_a_partition_past_the_last_does_not_exist(cut: tuple[EventTimeWindow, Partition]) -> None:
    """Asking for one below 0 or beyond the count is an IndexError."""
    whole, partition = cut

    for k in (-1, partition.count(whole), 10**30):
        with pytest.raises(IndexError):
            partition.window_of(whole, k)


@given(cut_windows(), st.data())
@settings(deadline=None)
def test_ranges_of_partitions_agree_with_listing_them(
    cut: tuple[EventTimeWindow, Partition], data: st.DataObject
) -> None:
    """Overlapping and inside name the partitions that a look at each of them would name."""
    whole, partition = cut
    pieces = [partition.window_of(whole, k) for k in range(partition.count(whole))]
    edges = {edge for piece in pieces for edge in (piece.start, piece.end)}
    edges |= {edge - timedelta.resolution for edge in edges - {FIRST_INSTANT}}
    edges |= {edge + timedelta.resolution for edge in edges - {LAST_INSTANT}}
    part = EventTimeWindow(
        *sorted(data.draw(st.lists(st.sampled_from(sorted(edges)), min_size=2, max_size=2, unique=True)))
    )

    assert list(partition.overlapping(whole, part)) == [k for k, piece in enumerate(pieces) if piece.overlaps(part)]
    assert list(partition.inside(whole, part)) == [k for k, piece in enumerate(pieces) if part.covers(piece)]


def test_a_piece_outside_the_window_names_no_partition() -> None:
    """Before, after and touching: nothing overlaps and nothing lies inside."""
    week, daily = days(7, 14), Partition("P1D")

    for piece in (days(0, 1), days(6, 7), days(14, 15), days(20, 21)):
        assert not daily.overlapping(week, piece)
        assert not daily.inside(week, piece)


@pytest.mark.parametrize(
    ("partition", "count"),
    [
        ("PT1M", 5_258_964_960),
        ("PT1H", 87_649_416),
        ("P1D", 3_652_059),
        ("P1W", 521_723),
        ("P1M", 119_988),
        ("P1Y", 9_999),
    ],
)
def test_partitions_of_all_time_are_counted_not_listed(partition: str, count: int) -> None:
    """The window from the year 1 to the year 9999 is counted at once, and its last partition found."""
    all_time = EventTimeWindow(FIRST_INSTANT, LAST_INSTANT)
    cut = Partition(partition)

    assert cut.count(all_time) == count
    assert cut.window_of(all_time, count - 1).end == LAST_INSTANT
    assert cut.inside(all_time, all_time) == range(count)


@pytest.mark.parametrize("unit", UNITS)
def test_a_partition_longer_than_the_calendar_is_the_whole_window(unit: str) -> None:
    """A start beyond the year 9999 is beyond every end, and nothing overflows."""
    huge = Partition(unit.replace("1", "999999999"))
    late = EventTimeWindow(datetime(9999, 12, 31, tzinfo=UTC), LAST_INSTANT)

    assert huge.count(late) == 1
    assert huge.window_of(late, 0) == late
    assert huge.start_of(late.start, 10**9) == LAST_INSTANT
