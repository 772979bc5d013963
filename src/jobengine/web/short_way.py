"""The short way of a scheduler's plain request: past the framework, which costs more than the decision itself.

Only what is beyond doubt goes here: a single lease asked for, renewed or given back, in a request without a query, a
tenant header or an idempotency key, whose token and body are good. Everything else, every fault included, takes the
long way, where routes, their errors and their documentation live; both ways give the same answers.
"""

from typing import Any, Final

from litestar import Response
from litestar.types import ASGIApp, Receive, Scope, Send

from jobengine.authority.guard import bearer_token
from jobengine.bootstrap import Plane
from jobengine.errors import JobengineError
from jobengine.storage.admission_group import Operation
from jobengine.tenancy.model import Principal
from jobengine.tenancy.resolver import TenantResolver
from jobengine.web.admissions import ADMIT, carry_out, plain_operation
from jobengine.web.edge import CALLER, JSON, TENANT_HEADERS, StrictRequest
from jobengine.web.problems import on_error, on_surprise
from jobengine.web.trace import trace_id_of

PREFIX: Final = "/api/v1/admissions"
# Larger than any body of one lease that is worth a hurry.
MOST_BYTES: Final = 4_096

_MOST_DIGITS: Final = len(str(MOST_BYTES))
_JSON: Final = JSON.encode()
_ELSEWHERE: Final = frozenset({b"idempotency-key", b"transfer-encoding", *TENANT_HEADERS})


def short_way(app: ASGIApp) -> ASGIApp:
    """Return *app* with plain admissions answered before it."""

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].startswith(PREFIX):
            await app(scope, receive, send)
            return
        token = None if scope["query_string"] else _token(scope["headers"])
        if token is None:
            await app(scope, receive, send)
            return
        body, again = await _read(receive)
        plane: Plane = scope["litestar_app"].state.plane
        if body is None or (found := _understood(plane, scope["path"][len(PREFIX) :], token, body)) is None:
            await app(scope, again, send)
            return
        principal, tenant_id, operation, template = found
        scope["path_template"] = PREFIX + template
        scope["state"][CALLER] = (principal, tenant_id)
        response = await _answer(plane, scope, tenant_id, operation)
        await response.to_asgi_response()(scope, again, send)

    return handle


def _token(headers: Any) -> bytes | None:
    """Return the one Authorization header of a small JSON request, None where anything is unusual."""
    told: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _ELSEWHERE or name in told:
            return None
        told[name] = value
    size = told.get(b"content-length", b"")
    # Zeros in front could make any length look short.
    small = size.isdigit() and len(size) <= _MOST_DIGITS and int(size) <= MOST_BYTES
    return told.get(b"authorization") if small and told.get(b"content-type", _JSON) == _JSON else None


async def _read(receive: Receive) -> tuple[bytes | None, Receive]:
    """Return the body, None where it does not come, and what gives it once more to whoever reads it then."""
    heard: list[Any] = []
    while True:
        message = await receive()
        heard.append(message)
        if message["type"] != "http.request" or not message["more_body"]:
            break
    waiting = iter(heard)

    async def again() -> Any:
        return next(waiting, None) or await receive()

    whole = heard[-1]["type"] == "http.request"
    return (b"".join([message["body"] for message in heard]) if whole else None), again


def _understood(plane: Plane, rest: str, token: bytes, body: bytes) -> tuple[Principal, str, Operation, str] | None:
    try:
        text = bearer_token([token.decode("latin-1")])
        if text is None:
            return None
        principal = plane.verify(text)
        tenant_id = TenantResolver().resolve(principal, ()).tenant_id
        if not principal.has(ADMIT) or (asked := plain_operation(rest, body, principal.client_id)) is None:
            return None
    except JobengineError:
        # The long way finds it too, and says it well.
        return None
    return principal, tenant_id, *asked


async def _answer(plane: Plane, scope: Any, tenant_id: str, operation: Operation) -> Response[Any]:
    try:
        return await carry_out(plane, tenant_id, operation, trace_id_of(scope))
    except JobengineError as error:
        return on_error(StrictRequest(scope), error)
    except Exception as error:  # noqa: BLE001 - the same as around every route
        return on_surprise(StrictRequest(scope), error)
