"""What a call can end with, in one tree.

ClientError
├─ Denied           limits stand in the way: `blocking` names each, `retry_after` is the honest wait
├─ LeaseLost        the lease is over, or may be: stop working under it
├─ JobIdConflict    the job has a live lease that was asked for with other words
├─ AuthError        who calls, or what they may: the credentials, the tenant, the role
├─ Refused          the request itself is wrong; repeating it cannot help
└─ Unavailable      no answer that helps, after every try
   └─ Overloaded    too many wait for a decision: ask later
"""

from collections.abc import Sequence
from dataclasses import dataclass

# Only time gives an admission of the hour or a token back; a slot may come back long before its lease's end.
_GIVEN_BACK_BY_TIME_ALONE = {"rate", "max_per_hour"}


@dataclass(frozen=True, slots=True)
class Blocking:
    """One limit that stands in the way; *retry_after_seconds* is None where waiting cannot help."""

    limit: str
    quota_id: str | None
    job_type: str | None
    maximum: int
    used: int
    requested: int
    retry_after_seconds: float | None


class ClientError(Exception):
    """Anything that a call of this client ends with; *code* is the problem's (docs/problems.md)."""

    def __init__(self, detail: str, *, code: str = "", status: int = 0) -> None:
        super().__init__(detail)
        self.code = code
        self.status = status


class Denied(ClientError):
    """Limits stand in the way; nothing was taken."""

    def __init__(self, detail: str, blocking: Sequence[Blocking]) -> None:
        super().__init__(detail, code="admission_denied", status=429)
        self.blocking = tuple(blocking)

    @property
    def retry_after(self) -> float | None:
        """Seconds until every limit has given way by itself; None where one of them never does."""
        waits = [found.retry_after_seconds for found in self.blocking]
        known = [wait for wait in waits if wait is not None]
        return max(known) if known and len(known) == len(waits) else None

    @property
    def least_wait(self) -> float:
        """Seconds before which asking again is certain to be in vain."""
        certain = [found for found in self.blocking if found.limit in _GIVEN_BACK_BY_TIME_ALONE]
        return max((found.retry_after_seconds or 0.0 for found in certain), default=0.0)


class LeaseLost(ClientError):
    """The lease is over, or nobody could confirm in time that it is not."""


class JobIdConflict(ClientError):
    """The job has a live lease that was asked for with another job type, number of slots or kind."""


class AuthError(ClientError):
    """The authority gave no token, or the service did not let its holder in."""


class Refused(ClientError):
    """The request itself is wrong."""


class Unavailable(ClientError):
    """No answer came, or none that helps, after every try that was allowed."""


class Overloaded(Unavailable):
    """Too many wait for a decision."""
