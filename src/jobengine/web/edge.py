"""The edge of a request: who calls, in which tenant, in one transaction, answered once for each idempotency key."""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.params import ParameterKwarg
from litestar.typing import FieldDefinition

from jobengine.audit.act import Act
from jobengine.authority.guard import bearer_token
from jobengine.bootstrap import Plane
from jobengine.errors import InsufficientScope, LostRace, Malformed, NotFound, Unauthenticated, ValidationFailed
from jobengine.ids import is_id
from jobengine.storage.authority import has_tenant
from jobengine.storage.database import Transaction
from jobengine.storage.idempotency import IdempotencyKeys, Kept
from jobengine.tenancy.model import Principal
from jobengine.tenancy.resolver import TenantResolver
from jobengine.web.pages import Pager
from jobengine.web.problems import PROBLEMS, problem
from jobengine.web.strict_json import read_json
from jobengine.web.trace import trace_id_of
from jobengine.web.written import Written

JSON = "application/json"
CALLER = "caller"
_MAX_NAME = 200
_NOT_OF_THE_QUERY = {"edge", "data", "request", "scope"}
TENANT_HEADERS = (b"x-stellaops-tenant", b"x-stella-tenant")
_TOKEN_PARAMETERS = {"access_token", "token", "bearer_token"}
_IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,128}")
# JSON is UTF-8 whatever a parameter says; one that says otherwise means something else.
_JSON_TYPE = re.compile(r'(?i:application/([a-z0-9.-]+\+)?json)(\s*;\s*(?i:charset)="?(?i:utf-?8)"?)?\s*')
# What else the framework takes for a number: `1e2`, `+5`, `5.0`.
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_ETAG = re.compile(r'(?:W/)?"(\d{1,18})"')


class StrictRequest(Request[Any, Any, Any]):
    """A request whose JSON is read as the contract says."""

    async def json(self) -> Any:
        """Return the body as the type that the handler takes; raises `unsupported_media_type` for what is not JSON."""
        sent = next(iter(_sent(self, b"content-type")), JSON)
        if sent != JSON and not _JSON_TYPE.fullmatch(sent):
            raise Malformed(f"send the body as {JSON}, in UTF-8", code="unsupported_media_type")
        field = self.route_handler.parsed_data_field
        into: Any = field.annotation if field else Any
        return read_json(await self.body(), into)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a handler says: a status of success and a resource, or the code of a refusal that is to be kept."""

    status: int
    body: object = None
    headers: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that grants nothing and is committed all the same."""

    code: str
    detail: str
    members: Mapping[str, object]
    headers: Mapping[str, str] | None = None


Work = Callable[[Transaction, Act], Awaitable[Answer | Refusal]]


def needs(*scopes: str) -> dict[str, Any]:
    """Say which scopes (any one of them) a route needs; a route that says nothing is closed."""
    return {"scopes": scopes}


async def authorize(connection: Request[Any, Any, Any]) -> None:
    """Let in only whom the route lets in: token, tenant, scope, and known query parameters, in this order.

    It runs before the body is read. A guard of the framework would copy the whole route for each request.
    """
    plane: Plane = connection.app.state.plane
    queried = connection.scope["query_string"] != b""
    if queried and _TOKEN_PARAMETERS & connection.query_params.keys():
        raise Malformed("an access token never belongs into the query")
    token = bearer_token(_sent(connection, b"authorization"))
    if token is None:
        raise Unauthenticated("send an access token: Authorization: Bearer …")
    principal = plane.verify(token)
    resolved = TenantResolver().resolve(principal, _sent(connection, *TENANT_HEADERS))
    if resolved.selected:
        async with plane.database.system() as tx:
            if not await has_tenant(tx, resolved.tenant_id):
                raise NotFound("there is no such tenant")
    connection.scope["state"][CALLER] = (principal, resolved.tenant_id)
    handler = connection.route_handler
    scopes: tuple[str, ...] = handler.opt["scopes"]
    if not any(principal.has(scope) for scope in scopes):
        # The challenge names what would be enough (RFC 6750 section 3): the first, where any one of several would do.
        raise InsufficientScope(f"this needs the scope {' or '.join(scopes)}", required_scope=scopes[0])
    if "\x00" in connection.scope["path"]:
        raise NotFound("there is no such path or object")
    if queried:
        _check_query(connection, handler)


def _sent(connection: Request[Any, Any, Any], *headers: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in connection.scope["headers"] if name in headers]


def _check_query(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    known = _query_fields(handler)
    for name in connection.query_params:
        values = connection.query_params.getall(name)
        if name not in known or name in connection.path_params:
            raise ValidationFailed(name[:_MAX_NAME], "is not a parameter of this request")
        if len(values) > 1:
            raise ValidationFailed(name, "is given more than once")
        if "\x00" in values[0]:
            raise ValidationFailed(name, "holds the character U+0000")
        if int in (known[name].annotation, *known[name].args) and not _INTEGER.fullmatch(values[0]):
            raise ValidationFailed(name, "must be an integer, written in digits")


def _query_fields(handler: BaseRouteHandler) -> dict[str, FieldDefinition]:
    """Return the parameters by their names on the wire: `from` cannot be the name of an argument."""
    fields = handler.parsed_fn_signature.parameters
    return {
        (isinstance(field.kwarg_definition, ParameterKwarg) and field.kwarg_definition.name) or name: field
        for name, field in fields.items()
        if name not in _NOT_OF_THE_QUERY
    }


@dataclass(frozen=True, slots=True)
class Edge:
    """One authorised request."""

    plane: Plane
    request: Request[Any, Any, Any]
    principal: Principal
    tenant_id: str
    trace_id: str

    async def read(
        self, work: Callable[[Transaction], Awaitable[object]], *, tenant_id: str | None = None
    ) -> Response[Any]:
        """Answer 200 with what *work* returns; *tenant_id* is another one than the caller's: the platform."""
        async with self.plane.database.transaction(tenant_id or self.tenant_id) as tx:
            found = await work(tx)
        return respond(found if isinstance(found, Answer) else Answer(200, found), self.trace_id)

    async def change(self, work: Work, *, tenant_id: str | None = None) -> Response[Any]:
        """Do *work* in one transaction and answer; a repeat under the same Idempotency-Key gets the first answer.

        *tenant_id* is another log's than the caller's tenant: the platform's. A lost race is run once more.
        """
        try:
            return await self._change(work, tenant_id or self.tenant_id)
        except LostRace:
            return await self._change(work, tenant_id or self.tenant_id)

    async def _change(self, work: Work, tenant_id: str) -> Response[bytes]:
        async with self.plane.database.transaction(tenant_id) as tx:
            keys = await self._idempotency(tx)
            if keys and (kept := await keys.begin()):
                return _replay(kept)
            act = Act(self.principal, tx.tenant_id, self.trace_id, tx.now)
            response = respond(await work(tx, act), self.trace_id)
            if keys:
                await keys.end(_kept(response))
            return response

    def pager(self, **filters: object) -> Pager:
        """Return the pager of this list for this tenant and these *filters*."""
        binding = repr((self.tenant_id, self.request.scope["path"], sorted(filters.items(), key=lambda item: item[0])))
        return Pager(self.plane.page_key, binding)

    def if_match(self) -> int | None:
        """Return the version that ``If-Match`` names, None without the header or with ``*``; a foreign one is -1."""
        sent = self.request.headers.get("if-match")
        if sent is None or sent == "*":
            return None
        found = _ETAG.fullmatch(sent.strip())
        return int(found[1]) if found else -1

    @property
    def has_idempotency_key(self) -> bool:
        """Tell whether the caller wants the first answer again for a repeat."""
        return _sent(self.request, b"idempotency-key") != []

    async def _idempotency(self, tx: Transaction) -> IdempotencyKeys | None:
        sent = self.request.headers.getall("idempotency-key", [])
        if not sent:
            return None
        if len(sent) > 1 or not _IDEMPOTENCY_KEY.fullmatch(sent[0]):
            raise ValidationFailed("Idempotency-Key", "must be one value of 1 to 128 visible ASCII characters")
        said = f"{self.request.method} {self.request.scope['query_string'].decode('latin-1')}\n".encode()
        digest = sha256(said + await self.request.body()).digest()
        return IdempotencyKeys(tx, self.principal.client_id, sent[0], self.request.scope["path"], digest)


async def provide_edge(request: Request[Any, Any, Any]) -> Edge:
    """Make the edge of an authorised request."""
    principal, tenant_id = request.scope["state"][CALLER]
    return Edge(request.app.state.plane, request, principal, tenant_id, trace_id_of(request.scope))


def known_id(text: str, what: str) -> str:
    """Return *text* if it can be the id of anything; raises NotFound, the same as for an id that names nothing."""
    if not is_id(text):
        raise NotFound(f"there is no such {what}")
    return text


def respond(answer: Answer | Refusal, trace_id: str) -> Response[bytes]:
    """Write an answer or a refusal."""
    if isinstance(answer, Refusal):
        return problem(answer.code, answer.detail, trace_id, answer.members, answer.headers)
    body = b"" if answer.body is None else msgspec.json.encode(answer.body)
    media_type = JSON if body else "text/plain"
    return Written(body, status_code=answer.status, media_type=media_type, headers=dict(answer.headers or {}))


def _kept(response: Response[bytes]) -> Kept:
    status = response.status_code or HTTPStatus.OK
    succeeded = status not in {status for status, _ in PROBLEMS.values()}
    return Kept(status, {name: str(value) for name, value in response.headers.items()}, response.content, succeeded)


def _replay(kept: Kept) -> Response[bytes]:
    headers = {**kept.headers, "Idempotent-Replayed": "true"}
    media_type = JSON if kept.body else "text/plain"
    return Written(kept.body, status_code=kept.status, media_type=media_type, headers=headers)
