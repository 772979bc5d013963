"""What the framework cannot tell of the API by itself: schemas of plain answers, headers, links, forms of strings."""

from collections.abc import Mapping
from typing import Any, Final

from jobengine.web.problems import PROBLEMS

Schema = Mapping[str, Any]

TIME: Final[Schema] = {
    "type": "string",
    "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?Z$",
    "description": "RFC 3339, in UTC with `Z`, at most six fractional digits.",
}
_TEXT: Final[Schema] = {"type": "string"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_MAYBE_TEXT: Final[Schema] = {"type": ["string", "null"]}
_DENIALS: Final[Schema] = {"type": "object", "additionalProperties": _COUNT}

# Members of requests by name; these strings have a form that their type does not show.
TIMES_SENT: Final = {
    "WindowIn": ("start", "end"),
    "NewOverride": ("until", "starts_at"),
    "NewRequest": ("until",),
    "Trial": ("since",),
}
TIMES_ASKED: Final = frozenset({"at", "since", "until"})
REQUIRED_IN_QUERY: Final = frozenset({"from"})


def _object(**members: Schema) -> dict[str, Any]:
    return {"type": "object", "required": list(members), "properties": members, "additionalProperties": False}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


PROBLEM: Final[Schema] = {
    "type": "object",
    "description": "RFC 9457; some codes bring members of their own (docs/problems.md).",
    "required": ["type", "title", "status", "detail", "code", "trace_id"],
    "properties": {
        "type": {"type": "string", "pattern": "^urn:jobengine:problem:[a-z_]+$"},
        "title": _TEXT,
        "status": {"type": "integer"},
        "detail": _TEXT,
        "code": {"type": "string", "enum": sorted(PROBLEMS)},
        "trace_id": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
        "errors": _list(
            {
                "type": "object",
                "required": ["path", "message"],
                "properties": {"path": _TEXT, "message": _TEXT},
            }
        ),
    },
}

_USE: Final = _object(active=_COUNT, active_backfill=_COUNT, granted_last_hour=_COUNT)
_BLOCKING: Final = _object(
    limit={"type": "string", "enum": ["max_active", "max_per_hour", "rate", "paused"]},
    quota_id=_MAYBE_TEXT,
    job_type=_MAYBE_TEXT,
    maximum=_COUNT,
    used=_COUNT,
    requested=_COUNT,
    retry_after_seconds={"type": ["number", "null"]},
)

_CHANGE: Final = {"$ref": "#/components/schemas/ChangeView"}
_WAITS: Final = "The change that waits for a second person; nothing has changed yet"

# (path, method) → what may be answered beside the type of the route.
TYPES_ANSWERED: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("/api/v1/audit/export", "get"): ("text/csv", "application/octet-stream"),
}

# (path, method, status) → the JSON that is answered.
ANSWERS: Final[Mapping[tuple[str, str, str], Schema]] = {
    ("/api/v1/quotas/summary", "get", "200"): _object(
        totals=_object(quotas=_COUNT, paused=_COUNT, active=_COUNT, denials_last_hour=_COUNT),
        items=_list(
            _object(
                job_type=_MAYBE_TEXT,
                quota_id=_MAYBE_TEXT,
                active=_COUNT,
                max_active=_COUNT,
                utilisation={"type": ["number", "null"]},
                paused={"type": "boolean"},
                denials_last_hour=_DENIALS,
            )
        ),
    ),
    ("/api/v1/quotas/drift", "get", "200"): _object(
        drift=_COUNT, items=_list(_object(job_type=_MAYBE_TEXT, kept=_USE, recomputed=_USE, drift=_COUNT))
    ),
    ("/api/v1/quotas", "post", "202"): _CHANGE,
    ("/api/v1/quotas/{quota_id}", "patch", "202"): _CHANGE,
    ("/api/v1/quotas/{quota_id}/overrides", "post", "202"): _CHANGE,
    ("/api/v1/allocations/{job_type}", "put", "201"): {"$ref": "#/components/schemas/AllocationView"},
    ("/api/v1/admissions", "post", "200"): {"$ref": "#/components/schemas/LeaseView"},
    ("/api/v1/admissions/batch", "post", "200"): _object(
        results=_list(
            {
                "type": "object",
                "required": ["granted"],
                "properties": {"granted": {"type": "boolean"}, "blocking": _list(_BLOCKING)},
                "if": {"properties": {"granted": {"const": True}}},
                "then": {"$ref": "#/components/schemas/LeaseView"},
                "else": {"required": ["blocking"]},
            }
        )
    ),
}
DESCRIBED: Final[Mapping[tuple[str, str, str], str]] = {
    ("/api/v1/quotas", "post", "202"): _WAITS,
    ("/api/v1/quotas/{quota_id}", "patch", "202"): _WAITS,
    ("/api/v1/quotas/{quota_id}/overrides", "post", "202"): _WAITS,
    ("/api/v1/allocations/{job_type}", "put", "201"): "The pool, where there was none",
    ("/api/v1/admissions", "post", "200"): "The lease that the job already holds",
}

_ETAG: Final = {"ETag": {"description": "The version, as an entity tag.", "schema": _TEXT}}
_LOCATION: Final = {"Location": {"description": "Where the resource is.", "schema": _TEXT}}
HEADERS_ANSWERED: Final[Mapping[tuple[str, str, str], Mapping[str, Any]]] = {
    ("/api/v1/quotas", "post", "201"): _ETAG | _LOCATION,
    ("/api/v1/quotas/{quota_id}", "get", "200"): _ETAG,
    ("/api/v1/quotas/{quota_id}", "patch", "200"): _ETAG,
    ("/api/v1/quotas/{quota_id}/pause", "post", "200"): _ETAG,
    ("/api/v1/quotas/{quota_id}/resume", "post", "200"): _ETAG,
    ("/api/v1/quotas", "post", "202"): _LOCATION,
    ("/api/v1/quotas/{quota_id}", "patch", "202"): _LOCATION,
    ("/api/v1/quotas/{quota_id}/overrides", "post", "202"): _LOCATION,
    ("/api/v1/quota-requests", "post", "202"): _LOCATION,
    ("/api/v1/allocations/{job_type}", "get", "200"): _ETAG,
    ("/api/v1/allocations/{job_type}", "put", "200"): _ETAG,
    ("/api/v1/allocations/{job_type}", "put", "201"): _ETAG | _LOCATION,
    ("/api/v1/allocations/{job_type}/apply", "post", "202"): _ETAG | _LOCATION,
    ("/api/v1/policy", "get", "200"): _ETAG,
    ("/api/v1/policy", "put", "200"): _ETAG,
    ("/api/v1/backfills", "post", "202"): _LOCATION,
}

# (path, method, status) → path parameters that the answer gives to other operations.
LINKED: Final[Mapping[tuple[str, str, str], Mapping[str, str]]] = {
    ("/api/v1/quotas", "post", "201"): {
        "quota_id": "$response.body#/quota_id",
        "entry_id": "$response.body#/last_change/audit_entry_id",
    },
    ("/api/v1/quotas/{quota_id}/overrides", "post", "201"): {
        "quota_id": "$request.path.quota_id",
        "override_id": "$response.body#/override_id",
    },
    ("/api/v1/quota-requests", "post", "202"): {
        "change_id": "$response.body#/change_id",
        "entry_id": "$response.body#/audit_entry_id",
    },
    ("/api/v1/admissions", "post", "201"): {"lease_id": "$response.body#/lease_id"},
    ("/api/v1/backfills", "post", "202"): {
        "backfill_id": "$response.body#/backfill_id",
        "entry_id": "$response.body#/audit_entry_id",
    },
    ("/api/v1/batches/claim", "post", "200"): {"batch_id": "$response.body#/batches/0/batch_id"},
}
# Whoever holds one of these speaks under its fencing token.
FENCED: Final[Mapping[str, str]] = {
    "lease_id": "$response.body#/fencing_token",
    "batch_id": "$response.body#/batches/0/fencing_token",
}

HEADERS_SENT: Final[Mapping[str, Mapping[str, Any]]] = {
    "X-StellaOps-Tenant": {
        "description": "Repeats the token's tenant; with orch:govern it selects another one.",
        "schema": {"type": "string", "pattern": "^[a-z0-9][a-z0-9-]{0,62}$"},
    },
    "Idempotency-Key": {
        "description": "The same key, path and body within 24 h gets the first success again.",
        "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"},
    },
    "If-Match": {
        "description": "The version that the change is meant for, as an entity tag.",
        "schema": _TEXT,
    },
}
