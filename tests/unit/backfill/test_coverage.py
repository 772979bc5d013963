"""Where the latest of overlapping batches failed: by table, and against a look at every half day."""

from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.backfill.strategies import HALF_DAY, NEW_YEAR, days, half_days

from jobengine.backfill.planner import Ended, latest_failed
from jobengine.backfill.window import EventTimeWindow

OK, BAD = True, False


def ended(first: float, last: float, at: int, succeeded: bool) -> Ended:
    return Ended(days(first, last), NEW_YEAR + timedelta(hours=at), succeeded)


@pytest.mark.parametrize(
    ("batches", "failed"),
    [
        ([], []),
        ([ended(0, 7, 1, OK)], []),
        ([ended(0, 1, 1, BAD), ended(1, 2, 1, BAD)], [(0, 2)]),
        ([ended(0, 1, 1, BAD), ended(0, 1, 2, OK)], []),
        ([ended(0, 1, 1, OK), ended(0, 1, 2, BAD)], [(0, 1)]),
        ([ended(0, 1, 1, BAD), ended(0, 1, 1, OK)], []),
        ([ended(0, 7, 1, BAD), *(ended(day, day + 1, 2, OK) for day in range(7))], []),
        ([ended(0, 7, 1, BAD), ended(2, 4, 2, OK)], [(0, 2), (4, 7)]),
        ([ended(0, 7, 2, BAD), ended(2, 4, 1, OK)], [(0, 7)]),
        ([ended(0, 7, 1, BAD), ended(2, 4, 2, OK), ended(3, 5, 3, BAD)], [(0, 2), (3, 7)]),
    ],
)
def test_the_latest_batch_decides_each_part(batches: list[Ended], failed: list[tuple[int, int]]) -> None:
    """A success takes out the part it covers, in one piece or in many, and a later failure brings it back."""
    assert latest_failed(batches) == [days(first, last) for first, last in failed]


@given(
    batches=st.lists(
        st.builds(
            lambda window, hour, succeeded: Ended(window, NEW_YEAR + timedelta(hours=hour), succeeded),
            half_days(),
            st.integers(0, 5),
            st.booleans(),
        ),
        max_size=12,
    )
)
def test_every_half_day_follows_its_latest_batch(batches: list[Ended]) -> None:
    """The sweep agrees with the question put to each half day."""
    found = latest_failed(batches)

    for half in range(40):
        moment = NEW_YEAR + half * HALF_DAY
        over = [batch for batch in batches if batch.window.contains(moment)]
        latest = max((batch.at for batch in over), default=None)
        failed = bool(over) and not any(batch.succeeded for batch in over if batch.at == latest)
        assert any(window.contains(moment) for window in found) == failed
    assert found == sorted(found)
    assert all(one.end < other.start for one, other in pairwise(found))


def test_a_hundred_thousand_failures_are_one_sweep() -> None:
    """Many failures with one repair in their middle leave two windows."""
    hour = timedelta(hours=1)
    batches = [
        Ended(EventTimeWindow(NEW_YEAR + k * hour, NEW_YEAR + (k + 1) * hour), NEW_YEAR, BAD) for k in range(10**5)
    ]
    batches.append(Ended(batches[50_000].window, NEW_YEAR + hour, OK))

    assert len(latest_failed(batches)) == 2
