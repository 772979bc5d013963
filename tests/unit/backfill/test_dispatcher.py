"""What becomes of a batch whose attempt did not complete it: every cause against every state of the backfill."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.backfill.strategies import NEW_YEAR

from jobengine.backfill.dispatcher import FIRST_BACKOFF, LONGEST_BACKOFF, Cause, Ending, after_failure, backoff
from jobengine.backfill.model import BackfillStatus, BatchStatus

RUNNING, PAUSED, CANCELING = BackfillStatus.RUNNING, BackfillStatus.PAUSED, BackfillStatus.CANCELING
PENDING, FAILED, CANCELED = BatchStatus.PENDING, BatchStatus.FAILED, BatchStatus.CANCELED


def ends(
    cause: Cause, attempts: int, backfill: BackfillStatus = RUNNING, *, stopped: bool = False, most: int = 3
) -> Ending:
    return after_failure(cause, attempts=attempts, max_attempts=most, backfill=backfill, stopped=stopped, now=NEW_YEAR)


@pytest.mark.parametrize(
    ("cause", "attempts", "left"),
    [
        (Cause.FAILED, 1, (PENDING, 1, 1)),
        (Cause.FAILED, 2, (PENDING, 2, 2)),
        (Cause.FAILED, 3, (FAILED, 0, 3)),
        (Cause.HOPELESS, 1, (FAILED, 0, 1)),
        (Cause.LEASE_LOST, 1, (PENDING, 0, 1)),
        (Cause.LEASE_LOST, 2, (PENDING, 0, 2)),
        (Cause.LEASE_LOST, 3, (FAILED, 0, 3)),
        (Cause.GIVEN_BACK, 1, (PENDING, 0, 0)),
        (Cause.GIVEN_BACK, 3, (PENDING, 0, 2)),
    ],
)
@pytest.mark.parametrize("backfill", [RUNNING, PAUSED])
def test_only_a_reported_failure_waits_before_its_retry(
    cause: Cause, attempts: int, left: tuple[BatchStatus, int, int], backfill: BackfillStatus
) -> None:
    """A lost lease counts and is claimable at once; a batch that was given back does not even count."""
    status, wait, counted = left

    assert ends(cause, attempts, backfill) == Ending(status, NEW_YEAR + timedelta(seconds=wait), counted)


@pytest.mark.parametrize("cause", Cause)
@pytest.mark.parametrize("attempts", [1, 3])
@pytest.mark.parametrize("stopped", [False, True])
def test_a_canceled_backfill_tries_no_batch_again(cause: Cause, attempts: int, stopped: bool) -> None:
    """Whatever ended the attempt, the cancel ends the batch."""
    assert ends(cause, attempts, CANCELING, stopped=stopped).status is CANCELED


@pytest.mark.parametrize(
    ("cause", "attempts", "status"),
    [
        (Cause.FAILED, 1, CANCELED),
        (Cause.LEASE_LOST, 1, CANCELED),
        (Cause.GIVEN_BACK, 3, CANCELED),
        (Cause.FAILED, 3, FAILED),
        (Cause.HOPELESS, 1, FAILED),
    ],
)
def test_a_stopped_backfill_tries_no_batch_again(cause: Cause, attempts: int, status: BatchStatus) -> None:
    """What its own rules stopped is failed where the attempts are used up, else canceled until somebody retries."""
    assert ends(cause, attempts, stopped=True).status is status


@given(attempts=st.integers(1, 10**6))
def test_backoff_doubles_up_to_a_bound(attempts: int) -> None:
    """The wait never shrinks with the attempts and never passes five minutes."""
    assert FIRST_BACKOFF <= backoff(attempts) <= backoff(attempts + 1) <= LONGEST_BACKOFF
    assert backoff(attempts + 1) in {2 * backoff(attempts), LONGEST_BACKOFF}
