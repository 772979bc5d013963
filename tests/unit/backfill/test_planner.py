"""Plans against a look at each partition, and the order in which they are taken."""

from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.backfill.strategies import HALF_DAY, NEW_YEAR, days, half_days, window

from jobengine.backfill.model import BatchStatus, Order, Reprocess, params_digest
from jobengine.backfill.planner import (
    MAX_PARTITIONS,
    Coverage,
    Plan,
    PlanRange,
    check_window,
    plan_batches,
    take,
)
from jobengine.backfill.window import EventTimeWindow, Partition
from jobengine.errors import ValidationFailed

DAILY = Partition("P1D")
PENDING, SKIPPED, CANCELED = BatchStatus.PENDING, BatchStatus.SKIPPED, BatchStatus.CANCELED
coverages = st.builds(
    Coverage, st.lists(half_days(), max_size=8).map(tuple), st.lists(half_days(), max_size=8).map(tuple)
)


def a_plan(
    whole: EventTimeWindow | None = None,
    partition: Partition = DAILY,
    reprocess: Reprocess = Reprocess.MISSING,
    coverage: Coverage | None = None,
) -> Plan:
    return plan_batches(
        whole or days(0, 7),
        partition,
        order=Order.FORWARD,
        reprocess=reprocess,
        coverage=coverage or Coverage(),
    )


def looked_at(piece: EventTimeWindow, reprocess: Reprocess, coverage: Coverage) -> BatchStatus:
    """Judge one partition, half day by half day."""
    halves = [
        EventTimeWindow(piece.start + k * HALF_DAY, piece.start + (k + 1) * HALF_DAY)
        for k in range(piece.length // HALF_DAY)
    ]
    match reprocess:
        case Reprocess.ALL:
            run = True
        case Reprocess.MISSING:
            run = not all(any(done.covers(half) for done in coverage.succeeded) for half in halves)
        case Reprocess.FAILED:
            run = any(failed.covers(half) for failed in coverage.failed for half in halves)
    return PENDING if run else SKIPPED


@given(half_days(), st.sampled_from(["P1D", "PT12H", "P2D", "P1W", "P1M"]), st.sampled_from(Reprocess), coverages)
@settings(deadline=None, max_examples=300)
def test_a_plan_agrees_with_a_look_at_every_partition(
    whole: EventTimeWindow, partition: str, reprocess: Reprocess, coverage: Coverage
) -> None:
    """Every partition stands in exactly one range, with the status it deserves, and no range could be longer."""
    plan = a_plan(whole, Partition(partition), reprocess, coverage)
    listed = [piece.status for piece in plan.ranges for _ in range(piece.count)]

    assert listed == [looked_at(plan.window_of(k), reprocess, coverage) for k in range(plan.total)]
    assert plan.total == Partition(partition).count(whole)
    assert plan.pending == listed.count(PENDING)
    assert [piece.first_index for piece in plan.ranges[1:]] == [piece.last_index + 1 for piece in plan.ranges[:-1]]
    assert all(one.status != other.status for one, other in pairwise(plan.ranges))


@pytest.mark.parametrize(
    ("reprocess", "succeeded", "failed", "pending"),
    [
        ("missing", [], [], [0, 1, 2, 3, 4, 5, 6]),
        ("missing", [(0, 7)], [], []),
        ("missing", [(-9, 99)], [(0, 7)], []),
        ("missing", [(1, 2)], [(1, 2)], [0, 2, 3, 4, 5, 6]),
        ("missing", [(1, 1.5), (1.5, 2)], [], [0, 2, 3, 4, 5, 6]),
        ("missing", [(1, 1.4), (1.5, 2)], [], [0, 1, 2, 3, 4, 5, 6]),
        ("missing", [(0.5, 6.5)], [], [0, 6]),
        ("failed", [], [], []),
        ("failed", [(0, 7)], [(1, 2)], [1]),
        ("failed", [], [(1.1, 1.2), (1.3, 1.4), (3, 4)], [1, 3]),
        ("failed", [], [(0.5, 2.5)], [0, 1, 2]),
        ("failed", [], [(-1, 0), (7, 8)], []),
        ("all", [(0, 7)], [(1, 2)], [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_reprocess_tells_what_to_run(
    reprocess: str, succeeded: list[tuple[float, float]], failed: list[tuple[float, float]], pending: list[int]
) -> None:
    """``missing`` runs what is not wholly covered, ``failed`` what a failure touches, ``all`` everything."""
    coverage = Coverage(tuple(days(*pair) for pair in succeeded), tuple(days(*pair) for pair in failed))
    plan = a_plan(reprocess=Reprocess(reprocess), coverage=coverage)

    assert take(plan.ranges, Order.FORWARD, 99)[0] == pending


def test_a_short_last_partition_is_covered_by_less() -> None:
    """The last partition ends with the window, and so does what it needs to be skipped."""
    plan = a_plan(days(0, 1.5), coverage=Coverage(succeeded=(days(1, 1.5),)))

    assert plan.ranges == (PlanRange(0, 0), PlanRange(1, 1, SKIPPED))


def test_a_million_partitions_are_planned_as_one_range() -> None:
    """The most there may be is one range."""
    whole = EventTimeWindow(NEW_YEAR, NEW_YEAR + MAX_PARTITIONS * timedelta(minutes=1))

    assert a_plan(whole, Partition("PT1M")).ranges == (PlanRange(0, MAX_PARTITIONS - 1),)


@pytest.mark.parametrize("end", ["2027-11-26T10:40:00.000001Z", "9999-12-31"])
def test_one_partition_above_a_million_is_too_many(end: str) -> None:
    """Nothing is listed to find out, be it one too many or billions."""
    with pytest.raises(ValidationFailed) as refused:
        a_plan(window(f"2026-01-01/{end}"), Partition("PT1M"))

    assert refused.value.problem_code == "too_many_partitions"
    assert refused.value.members["errors"][0]["path"] == "partition"


@pytest.mark.parametrize(
    ("start", "end", "code"),
    [
        (0, 0, "window_invalid"),
        (1, 0, "window_invalid"),
        (3, 2, "window_invalid"),
        (0, 2, "window_in_future"),
        (2, 3, "window_in_future"),
        (0, 1.0001, "window_in_future"),
    ],
)
def test_a_window_that_cannot_be_run_is_refused(start: float, end: float, code: str) -> None:
    """Reversed and empty windows are invalid wherever they lie; others may not end after now."""
    moments = [NEW_YEAR + timedelta(days=day) for day in (start, end)]
    with pytest.raises(ValidationFailed) as refused:
        check_window(moments[0], moments[1], now=NEW_YEAR + timedelta(days=1))

    assert refused.value.problem_code == code
    assert refused.value.members["errors"][0]["path"] == "window"


def test_a_window_may_end_now() -> None:
    """The end is outside the window, so nothing of it lies in the future."""
    assert check_window(NEW_YEAR, days(0, 1).end, now=days(0, 1).end) == days(0, 1)


@pytest.mark.parametrize(
    ("first", "last", "status"), [(1, 0, PENDING), (-1, 0, PENDING), (0, 0, BatchStatus.RUNNING), (0, 0, "failed")]
)
def test_a_range_of_nothing_or_of_touched_batches_is_refused(first: int, last: int, status: BatchStatus) -> None:
    """A range holds a partition or more, and nobody has run them."""
    with pytest.raises(ValueError):
        PlanRange(first, last, status)


@st.composite
def range_lists(draw: st.DrawFn) -> list[PlanRange]:
    """Draw ascending disjoint ranges, as they are left after some were taken."""
    edges = sorted(draw(st.sets(st.integers(0, 60), max_size=16)))
    status = st.sampled_from([PENDING, SKIPPED, CANCELED])
    return [PlanRange(one, other - 1, draw(status)) for one, other in pairwise(edges) if draw(st.booleans())]


@given(range_lists(), st.sampled_from(Order), st.integers(-1, 70))
def test_taking_gives_the_next_in_order_and_leaves_the_rest(ranges: list[PlanRange], order: Order, n: int) -> None:
    """What is taken and what is left are what there was; nothing but pending is taken, in order."""
    indices = {k: piece.status for piece in ranges for k in range(piece.first_index, piece.last_index + 1)}
    waiting = sorted((k for k in indices if indices[k] is PENDING), reverse=order is Order.BACKWARD)
    taken, left = take(ranges, order, n)

    assert taken == waiting[: max(n, 0)]
    remaining = {k: piece.status for piece in left for k in range(piece.first_index, piece.last_index + 1)}
    assert remaining == {k: status for k, status in indices.items() if k not in taken}
    assert all(one.last_index < other.first_index for one, other in pairwise(left))


@given(range_lists(), st.sampled_from(Order), st.integers(1, 7))
def test_taking_again_and_again_takes_everything_once(ranges: list[PlanRange], order: Order, n: int) -> None:
    """Made ready in steps of any size, every pending partition comes once and in one order."""
    at_once, rest = take(ranges, order, 1000)
    in_steps: list[int] = []
    while taken := take(ranges, order, n)[0]:
        ranges = take(ranges, order, n)[1]
        in_steps += taken

    assert in_steps == at_once
    assert ranges == rest
    assert not take(rest, order, 1)[0]


BASE = a_plan(coverage=Coverage(succeeded=(days(1, 2),)))
WORK: dict[str, Any] = {
    "job_type": "orders",
    "source": "kafka",
    "params_digest": params_digest(None),
    "handler_version": "1",
}


@pytest.mark.parametrize(
    ("plan", "work"),
    [
        (a_plan(), {}),
        (replace(BASE, window=days(0, 6.5)), {}),
        (replace(BASE, partition=Partition("P01D")), {}),
        (replace(BASE, order=Order.BACKWARD), {}),
        (replace(BASE, reprocess=Reprocess.ALL), {}),
        (replace(BASE, ranges=(PlanRange(0, 6),)), {}),
        (BASE, {"job_type": "other"}),
        (BASE, {"source": "other"}),
        (BASE, {"params_digest": params_digest({"a": 1})}),
        (BASE, {"handler_version": "2"}),
        (BASE, {"job_type": "order", "source": "skafka"}),
    ],
)
def test_any_difference_makes_another_plan_digest(plan: Plan, work: dict[str, Any]) -> None:
    """A plan token stands for one plan of one work by one handler."""
    assert plan.digest(**WORK | work) != BASE.digest(**WORK)


def test_the_same_plan_made_again_has_the_same_digest() -> None:
    """The token holds as long as planning again gives the same batches, however the coverage came about."""
    again = a_plan(coverage=Coverage(succeeded=(days(1.5, 2.5), days(1, 1.5))))

    assert again.digest(**WORK) == BASE.digest(**WORK)
