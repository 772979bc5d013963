"""What the properties of this package are tried on: windows small enough to be listed, at any place of the calendar."""

from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from jobengine.backfill.window import EventTimeWindow, Partition

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
# Half a partition of one day, so that edges fall on partitions and between them.
HALF_DAY = timedelta(hours=12)
LISTED = 200


def window(text: str) -> EventTimeWindow:
    """Read ``2026-01-31/2026-03-01`` as the midnights it names, or times where they are given."""
    start, _, end = text.partition("/")
    return EventTimeWindow.parse("/".join(edge if "T" in edge else f"{edge}T00:00:00Z" for edge in (start, end)))


def days(first: float, last: float) -> EventTimeWindow:
    """Return the days from *first* to *last* of 2026, counted from 0."""
    return EventTimeWindow(NEW_YEAR + timedelta(days=first), NEW_YEAR + timedelta(days=last))


@st.composite
def half_days(draw: st.DrawFn, most: int = 40) -> EventTimeWindow:
    """Draw a window of 1 to *most* half days, near the start of 2026."""
    start = draw(st.integers(0, most - 1))
    end = draw(st.integers(start + 1, most))
    return EventTimeWindow(NEW_YEAR + start * HALF_DAY, NEW_YEAR + end * HALF_DAY)


instants = st.datetimes(timezones=st.just(UTC))
partitions = st.builds(
    Partition,
    st.builds(
        str.replace,
        st.sampled_from(["PnY", "PnM", "PnW", "PnD", "PTnH", "PTnM"]),
        st.just("n"),
        st.one_of(st.integers(1, 40), st.integers(1, 999_999_999)).map(str),
    ),
)


@st.composite
def cut_windows(draw: st.DrawFn) -> tuple[EventTimeWindow, Partition]:
    """Draw a window anywhere in the calendar, and a partition that cuts it into no more than can be listed."""
    start, partition = draw(instants), draw(partitions)
    latest = partition.start_of(start, LISTED)
    end = draw(st.datetimes(start.replace(tzinfo=None), latest.replace(tzinfo=None), timezones=st.just(UTC)))
    if draw(st.booleans()):
        end = partition.start_of(start, draw(st.integers(1, LISTED)))
    if start == end:
        start, end = (start, start + timedelta.resolution) if start < latest else (start - timedelta.resolution, start)
    return EventTimeWindow(start, end), partition
