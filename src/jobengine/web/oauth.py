"""The authority over HTTP: tokens (RFC 6749), introspection (7662), revocation (7009), metadata (8414, 7517).

Bodies are read raw and by our own strict reader, and errors are those of RFC 6749, not problem documents.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from litestar import MediaType, Request, Response, Router, get, post
from litestar.exceptions import HTTPException
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Operation, RequestBody, Schema

from jobengine.authority.clients import Client
from jobengine.authority.entries import Denial, revocation_entry
from jobengine.authority.forms import MAX_BODY_BYTES, Method
from jobengine.authority.grants import Grant, GrantRefused, decide_grant, only_tenant
from jobengine.authority.guard import Verified
from jobengine.authority.keys import jwks
from jobengine.authority.oauth_errors import invalid_request
from jobengine.authority.scopes import Scope
from jobengine.bootstrap import Plane
from jobengine.clock import utc_now
from jobengine.errors import JobengineError, Unauthenticated
from jobengine.storage.authority import recording, revoke
from jobengine.tenancy.model import Family, Principal
from jobengine.web.grants import GRANT, GRANTING, Caller, identify, issue, refuse, visit_of
from jobengine.web.problems import GRANTS_AT, NO_STORE, OAUTH_STATUS, on_oauth_error

JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"
_FOR_FIVE_MINUTES: Final[Mapping[str, str]] = {"Cache-Control": "public, max-age=300"}
_METHODS: Final = [Method.BASIC.value, Method.BODY.value]


class TokenAnswer(msgspec.Struct):
    """A token, and what it is good for."""

    access_token: str
    token_type: str
    expires_in: int
    scope: str


class Introspection(msgspec.Struct, omit_defaults=True):
    """What a live token says; one that is not live, or none of the caller's business, only says so."""

    active: bool
    scope: str | None = None
    client_id: str | None = None
    sub: str | None = None
    aud: str | list[str] | None = None
    iss: str | None = None
    exp: int | None = None
    iat: int | None = None
    jti: str | None = None
    token_type: str | None = None
    tenant: str | None = None
    roles: list[str] | None = None
    quota_reason: str | None = None
    quota_ticket: str | None = None
    backfill_reason: str | None = None
    backfill_ticket: str | None = None
    operator_reason: str | None = None
    operator_ticket: str | None = None
    audit_leaf: str | None = None


class Metadata(msgspec.Struct):
    """Where the authority's endpoints are and what they take (RFC 8414 section 2)."""

    issuer: str
    token_endpoint: str
    jwks_uri: str
    introspection_endpoint: str
    revocation_endpoint: str
    scopes_supported: list[str]
    response_types_supported: list[str]
    grant_types_supported: list[str]
    token_endpoint_auth_methods_supported: list[str]
    introspection_endpoint_auth_methods_supported: list[str]
    revocation_endpoint_auth_methods_supported: list[str]


class PublicKey(msgspec.Struct):
    """One public key (RFC 7517 section 4)."""

    kty: str
    crv: str
    x: str
    y: str
    kid: str
    use: str
    alg: str


class KeySet(msgspec.Struct):
    """The keys that may have signed a token that is still good (RFC 7517 section 5)."""

    keys: list[PublicKey]


class OAuthProblem(msgspec.Struct):
    """A refused request (RFC 6749 section 5.2)."""

    error: str
    error_description: str


def _form(*required: str, **parameters: str) -> RequestBody:
    told = {"client_id": "unless sent by HTTP Basic", "client_secret": "unless sent by HTTP Basic", **parameters}
    schema = Schema(
        type=OpenAPIType.OBJECT,
        required=list(required),
        properties={name: Schema(type=OpenAPIType.STRING, description=text) for name, text in told.items()},
    )
    return RequestBody(content={FORM: OpenAPIMediaType(schema=schema)}, required=True)


@dataclass
class _TokenOperation(Operation):
    """The framework documents the bodies that it reads itself; this one is read by us."""

    def __post_init__(self) -> None:
        reasons = {family.reason: f"why; the scopes for {family.name.lower()} require it" for family in Family}
        tickets = {family.ticket: f"the ticket that {family.reason} belongs to" for family in Family}
        self.request_body = _form(
            "grant_type",
            "scope",
            grant_type="client_credentials",
            scope="scopes between single spaces",
            tenant="one of the client's tenants; required if it has several",
            **reasons,
            **tickets,
        )


@dataclass
class _AboutTokenOperation(Operation):
    """The same for requests about a token."""

    def __post_init__(self) -> None:
        self.request_body = _form("token", token="an access token", token_type_hint="ignored")  # noqa: S106 - no secret


_REFUSALS: Final = {
    status: ResponseSpec(OAuthProblem, generate_examples=False, description="Refused (RFC 6749 section 5.2)")
    for status in OAUTH_STATUS.values()
}


@post(GRANTS_AT, operation_class=_TokenOperation, responses=_REFUSALS, status_code=200)
async def token(request: Request[Any, Any, Any]) -> Response[TokenAnswer]:
    """Give a client an access token, with the reason that its scopes ask for."""
    plane: Plane = request.app.state.plane
    visit = visit_of(request, GRANTING)
    match await identify(plane, request, visit):
        case Denial() as denial:
            return await refuse(plane, denial, visit)
        case Caller(client, form):
            decision = decide_grant(client, form, utc_now(), plane.grant_policy)
    match decision:
        case GrantRefused(error, tenant_id):
            return await refuse(plane, Denial(error, client, tenant_id), visit)
        case Grant():
            request.state[GRANT] = decision
            made = await issue(plane, decision, visit)
            return _json(TokenAnswer(made.text, "Bearer", made.expires_in, decision.scope), NO_STORE)


@post("/oauth2/introspect", operation_class=_AboutTokenOperation, responses=_REFUSALS, status_code=200)
async def introspect(request: Request[Any, Any, Any]) -> Response[Introspection]:
    """Tell what a token says, to a client of its tenant."""
    plane: Plane = request.app.state.plane
    visit = visit_of(request, "introspect")
    match await identify(plane, request, visit):
        case Denial() as denial:
            return await refuse(plane, denial, visit)
        case Caller(client, form):
            text = form.get("token")
    if text is None:
        return await refuse(plane, _token_missing(client), visit)
    match _live(plane, text):
        case Verified(principal, claims) if principal.tenant_id in client.tenants:
            return _json(_told(principal, claims), NO_STORE)
        case _:
            return _json(Introspection(active=False), NO_STORE)


@post("/oauth2/revoke", operation_class=_AboutTokenOperation, responses=_REFUSALS, status_code=200)
async def revoke_token(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Make one of the client's own tokens worthless; any other text changes nothing and is answered alike."""
    plane: Plane = request.app.state.plane
    visit = visit_of(request, "revoke")
    match await identify(plane, request, visit):
        case Denial() as denial:
            return await refuse(plane, denial, visit)
        case Caller(client, form):
            text = form.get("token")
    if text is None:
        return await refuse(plane, _token_missing(client), visit)
    match _live(plane, text):
        case Verified(principal) if principal.client_id == client.client_id and principal.tenant_id is not None:
            async with recording(plane.database, principal.tenant_id) as (tx, audit):
                if await revoke(tx, principal.token_id, client.client_id, principal.expires_at):
                    await audit.record(revocation_entry(client, principal, visit, tx.now))
            plane.revocations.add(principal.token_id)
        case _:
            pass
    return Response(b"", media_type=MediaType.TEXT, headers=dict(NO_STORE))


@get("/.well-known/oauth-authorization-server")
async def metadata(request: Request[Any, Any, Any]) -> Response[Metadata]:
    """Tell where the authority's endpoints are and what they take."""
    plane: Plane = request.app.state.plane
    issuer = plane.realm.issuer
    base = issuer.rstrip("/")
    told = Metadata(
        issuer=issuer,
        token_endpoint=f"{base}/oauth2/token",
        jwks_uri=f"{base}/.well-known/jwks.json",
        introspection_endpoint=f"{base}/oauth2/introspect",
        revocation_endpoint=f"{base}/oauth2/revoke",
        scopes_supported=[scope.value for scope in Scope],
        response_types_supported=[],
        grant_types_supported=["client_credentials"],
        token_endpoint_auth_methods_supported=_METHODS,
        introspection_endpoint_auth_methods_supported=_METHODS,
        revocation_endpoint_auth_methods_supported=_METHODS,
    )
    return _json(told, _FOR_FIVE_MINUTES)


@get("/.well-known/jwks.json")
async def key_set(request: Request[Any, Any, Any]) -> Response[KeySet]:
    """Show the public keys of access tokens; a new key stands here long before it signs."""
    plane: Plane = request.app.state.plane
    return _json(jwks(plane.keys, utc_now()), _FOR_FIVE_MINUTES)


def _token_missing(client: Client) -> Denial:
    return Denial(invalid_request("token is required", "token_missing"), client, only_tenant(client))


def _live(plane: Plane, text: str) -> Verified | None:
    try:
        return plane.read_token(text)
    except Unauthenticated:
        return None


def _told(principal: Principal, claims: Mapping[str, object]) -> Introspection:
    shown = {name: claims[name] for name in Introspection.__struct_fields__ if name in claims}
    intents = {name: principal.intents.get(name) for family in Family for name in (family.reason, family.ticket)}
    return msgspec.convert({**shown, **intents, "active": True, "token_type": "Bearer"}, Introspection)


def _json(document: object, headers: Mapping[str, str]) -> Response[Any]:
    return Response(msgspec.json.encode(document), media_type=JSON, headers=dict(headers))


oauth = Router(
    "/",
    route_handlers=[token, introspect, revoke_token, metadata, key_set],
    exception_handlers={JobengineError: on_oauth_error, HTTPException: on_oauth_error, Exception: on_oauth_error},
    request_max_body_size=MAX_BODY_BYTES,
    tags=["authority"],
)
