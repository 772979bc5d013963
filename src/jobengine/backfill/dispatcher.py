"""What follows when a batch's attempt ends: done, once more later, or given up."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, assert_never

from jobengine.backfill.model import BackfillStatus, BatchStatus

FIRST_BACKOFF: Final = timedelta(seconds=1)
LONGEST_BACKOFF: Final = timedelta(minutes=5)


class Cause(StrEnum):
    """Why an attempt ended without completing its batch."""

    FAILED = "failed"
    """It failed, and may succeed when it is tried again."""
    HOPELESS = "hopeless"
    """It failed, and trying again would not help."""
    LEASE_LOST = "lease_lost"
    """Nobody heard of it in time, or it was fenced out."""
    GIVEN_BACK = "given_back"
    """Its worker leaves in good order: not the batch's fault, and no attempt of it."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt that did not complete leaves its batch; a waiting one is not handed out before *not_before*.

    *attempts* is how many of the batch's attempts count so far.
    """

    status: BatchStatus
    not_before: datetime
    attempts: int


def backoff(attempts: int) -> timedelta:
    """Return how long to wait after the *attempts*-th failure: 1 s, then twice as long each time, 5 min at the most.

    >>> [backoff(n).seconds for n in (1, 2, 3, 30)]
    [1, 2, 4, 300]
    """
    return min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** min(attempts - 1, 16))


def after_failure(
    cause: Cause, *, attempts: int, max_attempts: int, backfill: BackfillStatus, stopped: bool, now: datetime
) -> Ending:
    """Decide what becomes of a batch whose attempt, the *attempts*-th, did not complete it.

    Of a backfill that is canceled, or *stopped* by its own rules, nothing is tried again.

    >>> from datetime import UTC
    >>> noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    >>> known = {"max_attempts": 3, "backfill": BackfillStatus.RUNNING, "stopped": False, "now": noon}
    >>> after_failure(Cause.FAILED, attempts=1, **known).not_before.second
    1
    >>> after_failure(Cause.LEASE_LOST, attempts=3, **known).status
    <BatchStatus.FAILED: 'failed'>
    """
    counted = attempts - 1 if cause is Cause.GIVEN_BACK else attempts
    if backfill is BackfillStatus.CANCELING:
        return Ending(BatchStatus.CANCELED, now, counted)
    if cause is Cause.HOPELESS or counted >= max_attempts:
        return Ending(BatchStatus.FAILED, now, counted)
    if stopped:
        return Ending(BatchStatus.CANCELED, now, counted)
    match cause:
        case Cause.FAILED:
            return Ending(BatchStatus.PENDING, now + backoff(attempts), counted)
        case Cause.LEASE_LOST | Cause.GIVEN_BACK:
            # At once: what broke was the worker, not the work.
            return Ending(BatchStatus.PENDING, now, counted)
        case _:
            assert_never(cause)
