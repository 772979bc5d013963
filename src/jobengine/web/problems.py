"""Errors and refusals → RFC 9457 problem documents; the only place with status numbers."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import (
    HTTPException,
    MethodNotAllowedException,
    NotFoundException,
    ValidationException,
)
from litestar.exceptions.http_exceptions import RequestEntityTooLarge

from jobengine.authority.oauth_errors import Kind, OAuthError, server_error, unavailable
from jobengine.errors import JobengineError, Unavailable
from jobengine.metrics import PROBLEMS_TOLD, TOKEN_REQUESTS
from jobengine.web.trace import trace_id_of
from jobengine.web.written import Written

MEDIA_TYPE = "application/problem+json"

# code → (status, title); what each one means and what to do stands in docs/problems.md.
PROBLEMS: Mapping[str, tuple[int, str]] = {
    "malformed_request": (400, "The request is not well made"),
    "malformed_json": (400, "The body is not one JSON document"),
    "payload_too_large": (413, "The body is too large"),
    "unsupported_media_type": (415, "The body has a media type that is not taken here"),
    "unknown_field": (422, "The body has a field that is not known here"),
    "validation_failed": (422, "A value has the wrong type or range"),
    "page_token_invalid": (422, "The page token was not made for this list"),
    "unauthenticated": (401, "An access token is needed"),
    "invalid_token": (401, "The access token is not good"),
    "forbidden": (403, "The caller may not do this"),
    "insufficient_scope": (403, "The access token lacks a scope"),
    "tenant_mismatch": (403, "The tenant header names another tenant than the token"),
    "tenant_required": (400, "The access token names no tenant"),
    "tenant_invalid": (400, "The tenant header is not well made"),
    "quota_reason_required": (400, "Changing a quota needs a reason in the token"),
    "backfill_reason_required": (400, "A backfill needs a reason in the token"),
    "not_found": (404, "There is no such thing here"),
    "method_not_allowed": (405, "The path does not take this method"),
    "conflict": (409, "The state of the object forbids this"),
    "lost_race": (409, "Another writer was first"),
    "version_conflict": (412, "The object is at another version"),
    "idempotency_key_reused": (422, "The idempotency key was used for another request"),
    "idempotency_unsupported": (422, "The answer is too large to be kept for repeats"),
    "quota_exists": (409, "There is already a quota for this job type"),
    "policy_maximum_exceeded": (422, "The platform's policy allows no more than that"),
    "policy_raise_too_large": (422, "The platform's policy allows no such raise in one step"),
    "policy_override_too_long": (422, "The platform's policy allows no override that long"),
    "allocation_impossible": (422, "The shares do not fit"),
    "allocation_exceeded": (422, "Only applying the allocation gives more slots"),
    "same_person": (403, "The second person is the first"),
    "change_expired": (409, "Nobody decided on the change in time"),
    "change_outdated": (409, "The limits are no longer those that were to be changed"),
    "admission_denied": (429, "A limit blocks the admission"),
    "slots_exceed_limit": (422, "The limit could never grant so many slots"),
    "job_id_conflict": (409, "The job has a lease that was asked for otherwise"),
    "lease_lost": (409, "The lease is not held under this fencing token"),
    "overloaded": (503, "Too many admissions wait"),
    "duplicate_backfill": (409, "Another backfill covers the window"),
    "window_in_future": (422, "The window ends in the future"),
    "window_invalid": (422, "The window is empty or reversed"),
    "too_many_asks": (422, "More asks were recorded than a simulation takes"),
    "too_many_partitions": (422, "The window has too many partitions"),
    "unknown_job_type": (422, "The job type is not configured"),
    "invalid_state": (409, "The state of the object forbids this move"),
    "plan_changed": (409, "The plan is no longer what the preview showed"),
    "temporarily_unavailable": (503, "A part that the answer needs is down"),
    "internal_error": (500, "Something went wrong here"),
}

# What the authority refuses, in the words of RFC 6749 and not as a problem document → status.
OAUTH_STATUS: Mapping[Kind, int] = {
    Kind.BAD_REQUEST: 400,
    Kind.UNAUTHENTICATED: 401,
    Kind.TOO_LARGE: 413,
    Kind.UNSUPPORTED_MEDIA: 415,
    Kind.THROTTLED: 429,
    Kind.FAILED: 500,
    Kind.UNAVAILABLE: 503,
}

# Answers with tokens, and about them, are nobody else's (RFC 6749 section 5.1).
NO_STORE: Mapping[str, str] = {"Cache-Control": "no-store", "Pragma": "no-cache"}

GRANTS_AT = "/oauth2/token"

_log = structlog.get_logger()


def problem(
    code: str,
    detail: str,
    trace_id: str,
    members: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response[bytes]:
    """Return the problem document of *code*; *members* stand beside the standard ones."""
    status, title = PROBLEMS[code]
    PROBLEMS_TOLD.labels(code).inc()
    document: dict[str, object] = {
        "type": f"urn:jobengine:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "trace_id": trace_id,
        **(members or {}),
    }
    return Written(
        msgspec.json.encode(document), status_code=status, media_type=MEDIA_TYPE, headers=dict(headers or {})
    )


def oauth_problem(error: OAuthError) -> Response[Any]:
    """Return the answer to a refused request of the authority (RFC 6749 section 5.2)."""
    headers = dict(NO_STORE)
    if error.kind is Kind.UNAUTHENTICATED:
        # RFC 9110 section 11.6.1 asks for a challenge in every 401, also where the secret stood in the body.
        headers["WWW-Authenticate"] = 'Basic realm="jobengine", charset="UTF-8"'
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    document = {"error": error.error, "error_description": error.description}
    status = OAUTH_STATUS[error.kind]
    return Response(msgspec.json.encode(document), status_code=status, media_type="application/json", headers=headers)


def on_oauth_error(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer what went wrong inside the authority; nothing was granted."""
    path, trace_id = request.scope["path"], trace_id_of(request.scope)
    if isinstance(error, Unavailable):
        answer = unavailable()
        _log.warning("authority.unavailable", path=path, trace_id=trace_id)
    else:
        answer = server_error()
        _log.error("request.failed", path=path, trace_id=trace_id, exc_info=error)
    if path == GRANTS_AT:
        TOKEN_REQUESTS.labels(answer.error).inc()
    return oauth_problem(answer)


def on_error(request: Request[Any, Any, Any], error: JobengineError) -> Response[bytes]:
    """Answer an error of the core."""
    code = error.problem_code if error.problem_code in PROBLEMS else "internal_error"
    status, _ = PROBLEMS[code]
    headers: dict[str, str] = {}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer error="invalid_token"' if code == "invalid_token" else "Bearer"
    if code == "insufficient_scope":
        headers["WWW-Authenticate"] = (
            f'Bearer error="insufficient_scope", scope="{error.members.get("required_scope")}"'
        )
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(error.members.get("retry_after_seconds", 1))
    return problem(code, error.detail, trace_id_of(request.scope), error.members, headers)


def on_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Answer what the framework refuses before the core is asked."""
    trace_id = trace_id_of(request.scope)
    match error:
        case NotFoundException():
            return problem("not_found", "there is no such path or object", trace_id)
        case MethodNotAllowedException():
            allow = (error.headers or {}).get("allow", "")
            return problem(
                "method_not_allowed", f"{request.method} is not taken here", trace_id, None, {"Allow": allow}
            )
        case RequestEntityTooLarge():
            return problem("payload_too_large", "the body is larger than this path takes", trace_id)
        case ValidationException():
            return problem(
                "validation_failed", "a value has the wrong type or range", trace_id, {"errors": _errors(error)}
            )
        case _ if error.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
            return problem("malformed_request", "the request is not well made", trace_id)
        case _:
            return on_surprise(request, error)


def on_surprise(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer what nobody foresaw: the log gets the story, the caller a trace id."""
    trace_id = trace_id_of(request.scope)
    _log.error("request.failed", path=request.scope["path"], trace_id=trace_id, exc_info=error)
    return problem("internal_error", "something went wrong; the trace id finds it in the log", trace_id)


def _errors(error: ValidationException) -> list[dict[str, str]]:
    found = error.extra if isinstance(error.extra, list) else []
    return [
        {
            # The framework calls a body after the argument that takes it.
            "path": "body" if (key := str(item.get("key", "body"))) == "data" else key,
            "message": "is required" if item.get("message") == "'data'" else str(item["message"]),
        }
        for item in found
    ]


HANDLERS: dict[Any, Any] = {JobengineError: on_error, HTTPException: on_http_error, Exception: on_surprise}
