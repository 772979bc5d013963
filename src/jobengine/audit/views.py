"""Entries as others like to read them: CSV for people, OCSF for security tools. Views, never what is hashed."""

import csv
import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any, Final

from jobengine.clock import parse_time

COLUMNS: Final = (
    "sequence", "occurred_at", "action", "outcome", "actor_type", "actor_id", "client_id", "resource_type",
    "resource_id", "reason", "ticket", "token_id", "before", "after", "properties", "trace_id", "entry_id", "tenant_id",
    "leaf_hash", "erased", "tampered",
)  # fmt: skip

# What a spreadsheet takes for a formula, in full width too (OWASP, CSV injection); spaces before it do not help.
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")

_OCSF_VERSION: Final = "1.3.0"
_API_ACTIVITY, _APPLICATION = 6003, 6
_UNKNOWN, _CREATE, _READ, _UPDATE, _DELETE, _OTHER = 0, 1, 2, 3, 4, 99
_ACTIVITIES: Final[Mapping[str, int]] = {
    "unknown": _UNKNOWN,
    "created": _CREATE,
    "requested": _CREATE,
    "override_added": _CREATE,
    "change_requested": _CREATE,
    "grant": _CREATE,
    "exported": _READ,
    "adjusted": _UPDATE,
    "paused": _UPDATE,
    "resumed": _UPDATE,
    "changed": _UPDATE,
    "applied": _UPDATE,
    "retried": _UPDATE,
    "rotated": _UPDATE,
    "disabled": _UPDATE,
    "emergency": _UPDATE,
    "change_approved": _UPDATE,
    "change_rejected": _UPDATE,
    "deleted": _DELETE,
    "override_removed": _DELETE,
    "token_revoked": _DELETE,
    "forced_out": _DELETE,
    "canceled": _DELETE,
    "erased": _DELETE,
}
_ACTIVITY_NAMES: Final = {_UNKNOWN: "Unknown", _CREATE: "Create", _READ: "Read", _UPDATE: "Update", _DELETE: "Delete"}
# The outcome's status and severity, with their captions; an entry that cannot be shown did not fail.
_STATUS: Final = {"success": (1, "Success"), "unknown": (0, "Unknown")}
_SEVERITY: Final = {"success": (1, "Informational"), "unknown": (0, "Unknown")}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_EXTRA: Final = ("reason", "ticket", "token_id", "properties", "before", "after", "leaf_hash", "erased", "tampered")


def csv_header() -> bytes:
    """Return the first line of a CSV export."""
    return _csv_line(COLUMNS)


def csv_row(view: Mapping[str, Any]) -> bytes:
    r"""Return an entry's public view as one CSV record (RFC 4180); what a spreadsheet could run begins with ``'``.

    >>> csv_row({"sequence": 3, "reason": "=1+1", "properties": {}})
    b"3,,,,,,,,,'=1+1,,,,,{},,,,,,\r\n"
    """
    actor, resource = _object(view, "actor"), _object(view, "resource")
    flat: dict[str, Any] = {
        **view,
        "actor_type": actor.get("type"),
        "actor_id": actor.get("id"),
        "client_id": actor.get("client_id"),
        "resource_type": resource.get("type"),
        "resource_id": resource.get("id"),
        "erased": " ".join(view.get("erased", ())),
        "tampered": " ".join(view.get("tampered", ())),
    }
    return _csv_line(_cell(flat.get(column)) for column in COLUMNS)


def ocsf_event(view: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry's public view as an OCSF 1.3 API Activity (class 6003).

    What OCSF has no word for stands in ``unmapped``. The client stands for the network address, which no entry has. An
    entry that cannot be shown is an event of an unknown act.
    """
    action: str = view["action"] or "unknown"
    activity = _ACTIVITIES.get(action.rpartition(".")[2], _OTHER)
    outcome: str = view["outcome"] or "unknown"
    status_id, status = _STATUS.get(outcome, (2, "Failure"))
    severity_id, severity = _SEVERITY.get(outcome, (2, "Low"))
    return {
        "category_uid": _APPLICATION,
        "category_name": "Application Activity",
        "class_uid": _API_ACTIVITY,
        "class_name": "API Activity",
        "activity_id": activity,
        "activity_name": _ACTIVITY_NAMES.get(activity, action),
        "type_uid": _API_ACTIVITY * 100 + activity,
        "time": _milliseconds(view["occurred_at"]),
        "severity_id": severity_id,
        "severity": severity,
        "status_id": status_id,
        "status": status,
        "status_code": outcome,
        **_objects(view, action),
        "unmapped": {name: view[name] for name in _EXTRA if view.get(name)},
    }


def _objects(view: Mapping[str, Any], action: str) -> dict[str, Any]:
    actor, resource = _object(view, "actor"), _object(view, "resource")
    metadata = {
        "version": _OCSF_VERSION,
        "product": {"name": "jobengine", "vendor_name": "jobengine"},
        "uid": view["entry_id"],
        "sequence": view["sequence"],
        "tenant_uid": view["tenant_id"],
        "log_name": "audit",
        "event_code": action,
        "original_time": view["occurred_at"],
    }
    request = {"request": {"uid": view["trace_id"]}} if view["trace_id"] else {}
    user = {"uid": actor.get("id", "unknown"), "type": actor.get("type")}
    return {
        "metadata": _known(metadata),
        "actor": _known({"user": _known(user), "app_uid": actor.get("client_id")}),
        "api": {"operation": action, "service": {"name": "jobengine"}, **request},
        "src_endpoint": {"uid": actor.get("client_id") or user["uid"]},
        **({"resources": [{"type": resource["type"], "uid": resource["id"]}]} if resource else {}),
    }


def _object(view: Mapping[str, Any], name: str) -> dict[str, Any]:
    return view.get(name) or {}


def _known(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


def _milliseconds(text: str | None) -> int:
    return 0 if text is None else (parse_time(text) - _EPOCH) // _MILLISECOND


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True) if isinstance(value, dict | list) else str(value)
    return f"'{text}" if _FORMULA.match(text) else text


def _csv_line(cells: Iterable[str]) -> bytes:
    line = StringIO()
    csv.writer(line).writerow(cells)
    return line.getvalue().encode()
