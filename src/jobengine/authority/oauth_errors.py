"""The refusals of the authority, in the words of RFC 6749 section 5.2; their status stands in the web layer."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeAlias

ErrorCode: TypeAlias = Literal[
    "invalid_request",
    "invalid_client",
    "invalid_scope",
    "unsupported_grant_type",
    "temporarily_unavailable",
    "server_error",
]


class Kind(StrEnum):
    """What went wrong, as far as the transport can tell it."""

    BAD_REQUEST = "bad_request"
    UNSUPPORTED_MEDIA = "unsupported_media"
    TOO_LARGE = "too_large"
    UNAUTHENTICATED = "unauthenticated"
    THROTTLED = "throttled"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class OAuthError:
    """A refused request: *description* is for the caller, *cause* for the audit, and neither repeats what was sent.

    The description keeps to the characters of RFC 6749 section 5.2: printable ASCII without quotes and backslashes.
    """

    error: ErrorCode
    description: str
    cause: str
    kind: Kind = Kind.BAD_REQUEST
    retry_after_seconds: int | None = None


def invalid_request(description: str, cause: str, kind: Kind = Kind.BAD_REQUEST) -> OAuthError:
    """Return the answer to a request that is not well made."""
    return OAuthError("invalid_request", description, cause, kind)


def invalid_client(cause: str) -> OAuthError:
    """Return the one answer to every failed client authentication; only the *cause* in the audit differs.

    >>> invalid_client("client_unknown").description == invalid_client("secret_wrong").description
    True
    """
    return OAuthError("invalid_client", "client authentication failed", cause, Kind.UNAUTHENTICATED)


def throttled(retry_after_seconds: int) -> OAuthError:
    """Return the answer to an address that sent too many wrong secrets, whatever it sends now."""
    message = "too many failed client authentications, try again later"
    return OAuthError("temporarily_unavailable", message, "throttled", Kind.THROTTLED, retry_after_seconds)


def unavailable(retry_after_seconds: int = 1) -> OAuthError:
    """Return the answer while nothing can be decided and recorded: without the record there is no token."""
    message = "a part that the answer needs is down, try again later"
    return OAuthError("temporarily_unavailable", message, "unavailable", Kind.UNAVAILABLE, retry_after_seconds)


def server_error() -> OAuthError:
    """Return the answer to what nobody foresaw."""
    return OAuthError("server_error", "something went wrong", "server_error", Kind.FAILED)
