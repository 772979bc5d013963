"""The error tree: everything that rolls a request back.

JobengineError
├─ Malformed                 the request could not be read
│  ├─ MalformedJson
│  ├─ ValidationFailed       (carries ``errors``)
│  └─ PayloadTooLarge
├─ Unauthenticated           no token, or one that is not good
├─ Forbidden
│  ├─ InsufficientScope
│  └─ TenantMismatch
├─ NotFound
├─ Conflict                  the state of things forbids it
│  ├─ VersionConflict
│  ├─ LeaseLost
│  └─ LostRace               somebody else was first; the caller may try again
└─ Unavailable               try again later

A refusal that is an *answer* (a policy refusal, a duplicate, a denied admission) is a value, not an error:
it is stored, audited and committed. Status numbers stand in ``web/problems.py`` alone.
"""

from typing import ClassVar


class JobengineError(Exception):
    """Something that ends a request without effect; *code* is stable and documented in docs/problems.md.

    >>> NotFound("no such quota").code
    'not_found'
    """

    code: ClassVar[str] = "internal_error"

    def __init__(self, detail: str, /, *, code: str | None = None, **members: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.members = members
        self.problem_code = code or self.code


class Malformed(JobengineError):
    """The request cannot be read as what it claims to be."""

    code = "malformed_request"


class MalformedJson(Malformed):
    """Not JSON, repeated keys, bad UTF-8, or nested too deeply."""

    code = "malformed_json"


class ValidationFailed(Malformed):
    """A member has the wrong type or range; ``errors`` names each by path."""

    code = "validation_failed"

    def __init__(self, path: str, message: str, /, *, code: str | None = None) -> None:
        super().__init__(f"{path}: {message}", code=code, errors=[{"path": path, "message": message}])


class PayloadTooLarge(Malformed):
    """The body is larger than this route takes."""

    code = "payload_too_large"


class Unauthenticated(JobengineError):
    """No token, or a token that is not good here and now."""

    code = "unauthenticated"


class Forbidden(JobengineError):
    """The caller is known and may not."""

    code = "forbidden"


class InsufficientScope(Forbidden):
    """The token lacks the scope; ``required_scope`` names it."""

    code = "insufficient_scope"


class TenantMismatch(Forbidden):
    """A tenant header names another tenant than the token's."""

    code = "tenant_mismatch"


class NotFound(JobengineError):
    """There is no such object in this tenant."""

    code = "not_found"


class Conflict(JobengineError):
    """The state of the object forbids the request."""

    code = "conflict"


class VersionConflict(Conflict):
    """``If-Match`` names another version than the stored one."""

    code = "version_conflict"


class LeaseLost(Conflict):
    """The fencing token is not the lease's, or the lease is over."""

    code = "lease_lost"


class LostRace(Conflict):
    """Another writer was first; the same request may succeed when it is sent again."""

    code = "lost_race"


class Unavailable(JobengineError):
    """A part that the answer needs is down; try again later."""

    code = "temporarily_unavailable"
