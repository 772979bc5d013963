"""The trace of a request: the caller's W3C ``traceparent`` where it sends a good one, else our own."""

import re
import secrets
from typing import Any

_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_KEY = "jobengine.trace_id"


def trace_id_of(scope: Any) -> str:
    """Return the trace id of the request: 32 hexadecimal digits, the same at every call."""
    if (known := scope.get(_KEY)) is not None:
        return str(known)
    found = _parent(scope)
    scope[_KEY] = trace_id = found[1].decode() if found else secrets.token_hex(16)
    return trace_id


def set_trace_id(scope: Any, trace_id: str) -> None:
    """Let the request belong to a trace that was begun for it, before anybody asks for the id."""
    scope[_KEY] = trace_id


def carrier_of(scope: Any) -> dict[str, str]:
    """Return the caller's place in its trace (W3C Trace Context), nothing without a good ``traceparent``."""
    found = _parent(scope)
    if found is None:
        return {}
    state = ",".join(value.decode("latin-1") for name, value in scope["headers"] if name == b"tracestate")
    return {"traceparent": found[0].decode(), **({"tracestate": state} if state else {})}


def _parent(scope: Any) -> re.Match[bytes] | None:
    sent = [value for name, value in scope.get("headers", ()) if name == b"traceparent"]
    return _TRACEPARENT.fullmatch(sent[0]) if len(sent) == 1 else None
