"""How a command ends: the one table of exit codes, and what a person can do next."""

from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Final


class Exit(IntEnum):
    """The exit codes of ``jobengine``; scripts decide by them."""

    OK = 0
    ERROR = 1
    USAGE = 2
    AUTH = 3
    NOT_FOUND = 4
    REFUSED = 5
    RETRY_LATER = 10


# What the status of an answer says, unless its code says more.
EXIT_OF_STATUS: Final[Mapping[int, Exit]] = {
    400: Exit.USAGE,
    401: Exit.AUTH,
    403: Exit.AUTH,
    404: Exit.NOT_FOUND,
    409: Exit.REFUSED,
    412: Exit.REFUSED,
    413: Exit.USAGE,
    415: Exit.USAGE,
    422: Exit.REFUSED,
    429: Exit.RETRY_LATER,
    502: Exit.RETRY_LATER,
    503: Exit.RETRY_LATER,
    504: Exit.RETRY_LATER,
}

EXIT_OF_CODE: Final[Mapping[str, Exit]] = {
    "validation_failed": Exit.USAGE,
    "unknown_field": Exit.USAGE,
    "page_token_invalid": Exit.USAGE,
    "invalid_client": Exit.AUTH,
    "invalid_scope": Exit.AUTH,
    "unauthorized_client": Exit.AUTH,
    "not_found": Exit.NOT_FOUND,
    "temporarily_unavailable": Exit.RETRY_LATER,
    "overloaded": Exit.RETRY_LATER,
    "lost_race": Exit.RETRY_LATER,
    "same_person": Exit.REFUSED,
}

HINTS: Final[Mapping[str, str]] = {
    "invalid_client": "check JOBENGINE_CLIENT_ID and JOBENGINE_CLIENT_SECRET; a disabled client needs a successor",
    "invalid_scope": "use a client with a role that allows this scope (jobengine client create … --role …)",
    "insufficient_scope": "use a client with a role that allows this scope (jobengine client create … --role …)",
    "tenant_mismatch": "set JOBENGINE_TENANT to the tenant that this belongs to",
    "quota_reason_required": "say why: --reason, or JOBENGINE_QUOTA_REASON",
    "backfill_reason_required": "say why: --reason, or JOBENGINE_BACKFILL_REASON",
    "not_found": "check the id, and that JOBENGINE_TENANT is the tenant it belongs to",
    "version_conflict": "somebody changed it meanwhile: look at it again, then repeat",
    "quota_exists": "change it instead: jobengine quota set JOB_TYPE …",
    "policy_maximum_exceeded": "ask for no more than the maximum, or have a governor raise the ceiling",
    "policy_raise_too_large": "raise it in smaller steps, or have a governor change max_raise_factor",
    "allocation_exceeded": "have a governor change and apply the allocation: jobengine allocation set JOB_TYPE …",
    "allocation_impossible": "lower what is reserved, or raise the capacity",
    "same_person": "ask another owner to decide",
    "change_expired": "ask again",
    "change_outdated": "reject it (jobengine change reject), and ask again from the limits of now",
    "duplicate_backfill": "ask for the uncovered windows, or repeat finished work with --reprocess all",
    "window_in_future": "end the window at a time that has passed",
    "too_many_partitions": "take a longer --partition or a shorter window",
    "unknown_job_type": "name the job type in the file of JOBENGINE_CONFIG, and restart the server",
    "plan_changed": "run the preview again and take its plan token",
    "lost_race": "run it again",
    "temporarily_unavailable": "try again in a moment",
    "overloaded": "try again in a moment",
    "internal_error": "look for the trace id in the server's log",
}


def exit_of(problem: str, status: int | None = None) -> Exit:
    """Return how a command ends on the problem with this code, answered with *status*.

    >>> exit_of("policy_maximum_exceeded", 422), exit_of("validation_failed", 422), exit_of("internal_error", 500)
    (<Exit.REFUSED: 5>, <Exit.USAGE: 2>, <Exit.ERROR: 1>)
    """
    return EXIT_OF_CODE.get(problem) or EXIT_OF_STATUS.get(status or 0, Exit.ERROR)


class CommandFailed(Exception):
    """A command ends here, with what went wrong, more of it line by line, and a hint what to do."""

    def __init__(self, message: str, end: Exit, *, hint: str | None = None, lines: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.end = end
        self.hint = hint
        self.lines = tuple(lines)

    @classmethod
    def of_problem(
        cls,
        detail: str,
        problem: str,
        status: int | None = None,
        *,
        hint: str | None = None,
        lines: Iterable[str] = (),
    ) -> "CommandFailed":
        """Make one of a problem of the API or the core; its exit code and hint stand in the tables."""
        return cls(f"{detail} ({problem})", exit_of(problem, status), hint=hint or HINTS.get(problem), lines=lines)

    def __str__(self) -> str:
        said = [f"error: {self.args[0]}", *(f"  {line}" for line in self.lines)]
        return "\n".join([*said, f"hint: {self.hint}"] if self.hint else said)
