"""What every endpoint of the authority does first and last: find out who asks, and write down what was refused."""

from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

from litestar import Request, Response
from litestar.exceptions import ClientException
from litestar.exceptions.http_exceptions import RequestEntityTooLarge

from jobengine.authority.clients import Authenticated, Client, NotAuthenticated, authenticate
from jobengine.authority.entries import Denial, Visit, denial_entry, grant_entry
from jobengine.authority.forms import MAX_BODY_BYTES, Credentials, Form, client_credentials, read_form
from jobengine.authority.grants import Grant
from jobengine.authority.keys import signing_key
from jobengine.authority.oauth_errors import Kind, OAuthError, invalid_client, invalid_request, throttled
from jobengine.authority.refusals import Counted, Single, Summary, Throttled, Unthrottled
from jobengine.authority.tokens import AccessToken, mint
from jobengine.bootstrap import Plane
from jobengine.clock import utc_now
from jobengine.ids import new_id
from jobengine.metrics import TOKEN_REQUESTS
from jobengine.storage.authority import find_client, recording
from jobengine.web.problems import oauth_problem
from jobengine.web.trace import trace_id_of

# Where a request remembers who turned out to send it, and what it was granted.
CLIENT: Final = "client"
GRANT: Final = "grant"
GRANTING: Final = "token"

_NEVER_IN_THE_QUERY: Final = frozenset(
    {"client_id", "client_secret", "client_assertion", "token", "access_token", "bearer_token"}
)
# A secret that cannot be one is as wrong as any other.
_WRONG_SECRETS: Final = frozenset({"client_unknown", "secret_wrong", "credentials_malformed"})


@dataclass(frozen=True, slots=True)
class Caller:
    """A client that proved who it is, and what it asks for."""

    client: Client
    form: Form


async def identify(plane: Plane, request: Request[Any, Any, Any], visit: Visit) -> Caller | Denial:
    """Read the request and authenticate its client; raises Unavailable."""
    form = await _read(request)
    if isinstance(form, OAuthError):
        return Denial(form)
    credentials = client_credentials(request.headers.getall("authorization", []), form)
    match plane.throttle.check(visit.address, utc_now()):
        case Throttled(seconds):
            return Denial(throttled(seconds))
        case Unthrottled():
            pass
    if isinstance(credentials, OAuthError):
        return _not_authenticated(plane, visit, credentials)
    async with plane.database.system() as tx:
        client = await find_client(tx, credentials.client_id)
    match authenticate(client, credentials.secret, plane.pepper):
        case Authenticated(client):
            request.state[CLIENT] = client
            return Caller(client, form)
        case NotAuthenticated(cause):
            return _not_authenticated(plane, visit, invalid_client(cause), credentials)


async def _read(request: Request[Any, Any, Any]) -> Form | OAuthError:
    sent = {name for name, _ in parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)}
    if sent & _NEVER_IN_THE_QUERY:
        return invalid_request("credentials and tokens never belong into the query", "credentials_in_query")
    try:
        body = await request.body()
    except RequestEntityTooLarge:
        message = f"the body is larger than {MAX_BODY_BYTES} bytes"
        return invalid_request(message, "form_too_large", Kind.TOO_LARGE)
    except ClientException:
        return invalid_request("the length of the body is not well made", "form_unreadable")
    return read_form(request.headers.getall("content-type", []), body)


def _not_authenticated(plane: Plane, visit: Visit, error: OAuthError, credentials: Credentials | None = None) -> Denial:
    claimed = None if credentials is None else credentials.client_id
    if error.cause in _WRONG_SECRETS:
        match plane.throttle.note_wrong(visit.address, utc_now()):
            case Throttled(seconds):
                return Denial(throttled(seconds), claimed=claimed)
            case Unthrottled():
                pass
    return Denial(error, claimed=claimed)


async def refuse(plane: Plane, denial: Denial, visit: Visit) -> Response[Any]:
    """Answer *denial* once it is recorded, singly or as one of a flood; raises Unavailable when it cannot be."""
    source, now = denial.source(visit.address), utc_now()
    if visit.endpoint == GRANTING:
        TOKEN_REQUESTS.labels(denial.error.error).inc()
    match plane.refusals.note(source, denial.log, now):
        case Single():
            try:
                async with recording(plane.database, denial.log) as (tx, audit):
                    await audit.record(denial_entry(denial, visit, tx.now))
            except Exception:
                plane.refusals.add(Summary(source, denial.log, 1, now, now))
                raise
        case Counted():
            pass
    return oauth_problem(denial.error)


async def issue(plane: Plane, grant: Grant, visit: Visit) -> AccessToken:
    """Sign the token of *grant*; raises Unavailable, and there is no token, unless the grant is recorded."""
    token_id = new_id()
    async with recording(plane.database, grant.tenant_id) as (tx, audit):
        sealed = await audit.record(grant_entry(grant, visit, token_id, tx.now))
        key = signing_key(plane.keys, tx.now)
        leaf = sealed.leaf_hash.hex()
        tx.when_committed(TOKEN_REQUESTS.labels("granted").inc)
        return mint(grant, plane.realm, key, tx.now, token_id=token_id, audit_leaf=leaf)


def visit_of(request: Request[Any, Any, Any], endpoint: str) -> Visit:
    """Return where *request* came from."""
    address = request.client.host if request.client else "unknown"
    return Visit(endpoint, address, trace_id_of(request.scope))
