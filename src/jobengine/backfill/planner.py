"""From a window to batches: which partitions to run and which to skip, kept as ranges however many there are."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from heapq import heappop, heappush
from itertools import pairwise
from typing import Final

import rfc8785

from jobengine.backfill.model import BatchStatus, Order, Reprocess
from jobengine.backfill.window import EventTimeWindow, Partition, merge
from jobengine.errors import ValidationFailed

MAX_PARTITIONS: Final = 1_000_000
_CALENDAR_END: Final = datetime.max.replace(tzinfo=UTC)
_UNTOUCHED: Final = frozenset({BatchStatus.PENDING, BatchStatus.SKIPPED, BatchStatus.CANCELED})


@dataclass(frozen=True, slots=True)
class PlanRange:
    """The partitions *first_index* to *last_index*, both included: to be run, skipped, or canceled untouched.

    Raises ValueError when it is empty or has another status.
    """

    first_index: int
    last_index: int
    status: BatchStatus = BatchStatus.PENDING

    def __post_init__(self) -> None:
        if not 0 <= self.first_index <= self.last_index:
            message = f"no partitions from {self.first_index} to {self.last_index}"
            raise ValueError(message)
        if self.status not in _UNTOUCHED:
            message = f"an untouched batch cannot be {self.status}"
            raise ValueError(message)

    @property
    def count(self) -> int:
        """How many partitions these are, never zero."""
        return self.last_index - self.first_index + 1


@dataclass(frozen=True, slots=True)
class Coverage:
    """What earlier batches of the same key left behind, in any order, overlapping or not.

    *succeeded* is every window a batch succeeded on; *failed* the windows, or the parts of them, whose latest batch
    failed: one that succeeded later takes its window out.
    """

    succeeded: tuple[EventTimeWindow, ...] = ()
    failed: tuple[EventTimeWindow, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """A batch of an earlier backfill that succeeded or failed on *window* at *at*."""

    window: EventTimeWindow
    at: datetime
    succeeded: bool


def latest_failed(ended: Iterable[Ended]) -> list[EventTimeWindow]:
    """Return where the latest batch failed, merged, in O(n log n); of two that ended at once the better counts.

    >>> week = EventTimeWindow.parse("2026-01-01T00:00:00Z/2026-01-08T00:00:00Z")
    >>> end_of_it = EventTimeWindow.parse("2026-01-07T00:00:00Z/2026-01-08T00:00:00Z")
    >>> repaired = Ended(end_of_it, at=week.end, succeeded=True)
    >>> [str(window) for window in latest_failed([Ended(week, at=week.start, succeeded=False), repaired])]
    ['2026-01-01T00:00:00Z/2026-01-07T00:00:00Z']
    """
    ordered = sorted(ended, key=lambda batch: batch.window.start)
    edges = sorted({edge for batch in ordered for edge in (batch.window.start, batch.window.end)})
    # Those that began, the latest on top: (how long ago, failed, which). One that is over leaves when it gets there.
    begun: list[tuple[timedelta, bool, int]] = []
    failed: list[EventTimeWindow] = []
    following = 0
    for start, end in pairwise(edges):
        while following < len(ordered) and ordered[following].window.start <= start:
            batch = ordered[following]
            heappush(begun, (_CALENDAR_END - batch.at, not batch.succeeded, following))
            following += 1
        while begun and ordered[begun[0][2]].window.end <= start:
            heappop(begun)
        if begun and begun[0][1]:
            failed.append(EventTimeWindow(start, end))
    return merge(failed)


@dataclass(frozen=True, slots=True)
class Plan:
    """A window cut into partitions, each to be run or skipped; the ranges are ascending and leave no partition out."""

    window: EventTimeWindow
    partition: Partition
    order: Order
    reprocess: Reprocess
    ranges: tuple[PlanRange, ...]

    @property
    def total(self) -> int:
        """All partitions of the window."""
        return self.ranges[-1].last_index + 1

    @property
    def pending(self) -> int:
        """The partitions to be run."""
        return sum(piece.count for piece in self.ranges if piece.status is BatchStatus.PENDING)

    def window_of(self, k: int) -> EventTimeWindow:
        """Return the window of partition *k*; IndexError when there is none."""
        return self.partition.window_of(self.window, k)

    def digest(self, *, job_type: str, source: str, params_digest: bytes, handler_version: str) -> bytes:
        """Return the SHA-256 that tells this plan, for this work by this handler, from any other.

        A plan token made of it stands for exactly the batches that were previewed: once an earlier batch succeeds or
        the handler changes, planning again gives another digest.
        """
        listed = ",".join([f"{piece.first_index}-{piece.last_index}{piece.status}" for piece in self.ranges])
        described = {
            "job_type": job_type,
            "source": source,
            "params": params_digest.hex(),
            "handler": handler_version,
            "window": str(self.window),
            "partition": self.partition.text,
            "order": self.order.value,
            "reprocess": self.reprocess.value,
            "ranges": sha256(listed.encode()).hexdigest(),
        }
        return sha256(rfc8785.dumps(described)).digest()


def check_window(start: datetime, end: datetime, now: datetime) -> EventTimeWindow:
    """Return the window from *start* to *end*, which may end *now* and no later.

    Raises ValidationFailed with the code ``window_invalid`` (empty, reversed, no offset) or ``window_in_future``.

    >>> from datetime import UTC
    >>> new_year, noon = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 12, tzinfo=UTC)
    >>> str(check_window(new_year, noon, now=noon))
    '2026-01-01T00:00:00Z/2026-01-01T12:00:00Z'
    """
    path = "window"
    try:
        window = EventTimeWindow(start, end)
    except ValueError as error:
        raise ValidationFailed(path, str(error), code="window_invalid") from error
    if window.end > now:
        message = "must not end in the future"
        raise ValidationFailed(path, message, code="window_in_future")
    return window


def plan_batches(
    window: EventTimeWindow, partition: Partition, *, order: Order, reprocess: Reprocess, coverage: Coverage
) -> Plan:
    """Cut *window* and tell what to run, in O(m log m) for m windows of *coverage* and however many partitions.

    ``missing`` skips what succeeded batches cover wholly, together or alone; ``failed`` runs only what shares an
    instant with a failed window; ``all`` runs everything. Raises ValidationFailed with the code ``too_many_partitions``
    above 1,000,000.

    >>> parse = EventTimeWindow.parse
    >>> week = parse("2026-01-01T00:00:00Z/2026-01-08T00:00:00Z")
    >>> done = Coverage(succeeded=(parse("2026-01-02T00:00:00Z/2026-01-04T12:00:00Z"),))
    >>> plan = plan_batches(week, Partition("P1D"), order=Order.FORWARD, reprocess=Reprocess.MISSING, coverage=done)
    >>> [(piece.first_index, piece.last_index, piece.status.value) for piece in plan.ranges]
    [(0, 0, 'pending'), (1, 2, 'skipped'), (3, 6, 'pending')]
    """
    total = partition.count(window)
    if total > MAX_PARTITIONS:
        path, message = "partition", f"cuts the window into {total} batches, more than {MAX_PARTITIONS}"
        raise ValidationFailed(path, message, code="too_many_partitions")
    match reprocess:
        case Reprocess.ALL:
            ranges = _paint((), total, marked=BatchStatus.SKIPPED, rest=BatchStatus.PENDING)
        case Reprocess.MISSING:
            done = (partition.inside(window, piece) for piece in merge(coverage.succeeded))
            ranges = _paint(done, total, marked=BatchStatus.SKIPPED, rest=BatchStatus.PENDING)
        case Reprocess.FAILED:
            broken = (partition.overlapping(window, piece) for piece in merge(coverage.failed))
            ranges = _paint(broken, total, marked=BatchStatus.PENDING, rest=BatchStatus.SKIPPED)
    return Plan(window, partition, order, reprocess, tuple(ranges))


def take(ranges: Sequence[PlanRange], order: Order, n: int) -> tuple[list[int], list[PlanRange]]:
    """Return the next *n* pending partitions of ascending disjoint *ranges*, in *order*, and the ranges without them.

    >>> ranges = [PlanRange(0, 1), PlanRange(2, 4, BatchStatus.SKIPPED), PlanRange(5, 9)]
    >>> taken, left = take(ranges, Order.BACKWARD, 6)
    >>> taken, [(piece.first_index, piece.last_index) for piece in left]
    ([9, 8, 7, 6, 5, 1], [(0, 0), (2, 4)])
    """
    forward = order is Order.FORWARD
    taken: list[int] = []
    left: list[PlanRange] = []
    for piece in ranges if forward else reversed(ranges):
        room = n - len(taken)
        if room <= 0 or piece.status is not BatchStatus.PENDING:
            left.append(piece)
            continue
        indices = range(piece.first_index, piece.last_index + 1)[:: 1 if forward else -1]
        taken.extend(indices[:room])
        if later := indices[room:]:
            left.append(PlanRange(min(later[0], later[-1]), max(later[0], later[-1])))
    return taken, left if forward else left[::-1]


def _paint(found: Iterable[range], total: int, *, marked: BatchStatus, rest: BatchStatus) -> Iterator[PlanRange]:
    at = 0
    for piece in _join(found):
        if at < piece.start:
            yield PlanRange(at, piece.start - 1, rest)
        yield PlanRange(piece.start, piece.stop - 1, marked)
        at = piece.stop
    if at < total:
        yield PlanRange(at, total - 1, rest)


def _join(found: Iterable[range]) -> list[range]:
    joined: list[range] = []
    for piece in found:
        # Two failed windows inside one partition both name it.
        if piece and joined and piece.start <= joined[-1].stop:
            joined[-1] = range(joined[-1].start, max(joined[-1].stop, piece.stop))
        elif piece:
            joined.append(piece)
    return joined
