"""The decision of a token request, once the client has proved who it is."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from jobengine.authority.clients import Client
from jobengine.authority.forms import Form
from jobengine.authority.intent import Intent, IntentRefused, read_intent
from jobengine.authority.oauth_errors import OAuthError, invalid_client, invalid_request
from jobengine.authority.scopes import Role, Scope, allowed_scopes, parse_scope

LONGEST_PLAIN_LIFE: Final = timedelta(seconds=900)
LONGEST_PRIVILEGED_LIFE: Final = timedelta(seconds=300)

_KNOWN: Final = frozenset[str](Scope)


@dataclass(frozen=True, slots=True)
class GrantPolicy:
    """What the operator of the service may set; lives above the limits are refused with ValueError."""

    backfill_ticket_required: bool = False
    plain_life: timedelta = LONGEST_PLAIN_LIFE
    privileged_life: timedelta = LONGEST_PRIVILEGED_LIFE

    def __post_init__(self) -> None:
        """Keep the lives within the limits of the contract."""
        if not timedelta(seconds=1) <= self.plain_life <= LONGEST_PLAIN_LIFE:
            raise ValueError(f"plain_life must be 1 to {LONGEST_PLAIN_LIFE.seconds} seconds")
        if not timedelta(seconds=1) <= self.privileged_life <= LONGEST_PRIVILEGED_LIFE:
            raise ValueError(f"privileged_life must be 1 to {LONGEST_PRIVILEGED_LIFE.seconds} seconds")


@dataclass(frozen=True, slots=True)
class Grant:
    """Everything a token will say about its holder."""

    client_id: str
    owner: str
    tenant_id: str
    scopes: tuple[Scope, ...]
    roles: tuple[Role, ...]
    intent: Intent
    life: timedelta

    @property
    def scope(self) -> str:
        """The scopes as the answer and the token write them."""
        return " ".join(self.scopes)


@dataclass(frozen=True, slots=True)
class GrantRefused:
    """A refused request of a known client; *tenant_id* tells whose log it belongs to, None means the platform's."""

    error: OAuthError
    tenant_id: str | None


def decide_grant(client: Client, form: Form, now: datetime, policy: GrantPolicy) -> Grant | GrantRefused:
    """Decide a ``client_credentials`` request (RFC 6749 section 4.4) of an authenticated *client*.

    >>> from jobengine.authority.scopes import Role
    >>> client = Client("jec_1", "ops", "nightly", ("acme",), (Role.VIEWER,), b"")
    >>> form = Form({"grant_type": "client_credentials", "scope": "orch:quota"})
    >>> decide_grant(client, form, datetime(2026, 1, 1), GrantPolicy()).error.error
    'invalid_scope'
    """
    tenant = _choose_tenant(client, form)
    tenant_id = tenant if isinstance(tenant, str) else only_tenant(client)
    if client.disabled_at is not None and client.disabled_at <= now:
        return GrantRefused(invalid_client("client_disabled"), tenant_id)
    if error := _check_grant_type(form):
        return GrantRefused(error, tenant_id)
    if isinstance(tenant, OAuthError):
        return GrantRefused(tenant, tenant_id)
    scopes = _choose_scopes(client, form)
    if isinstance(scopes, OAuthError):
        return GrantRefused(scopes, tenant_id)
    intent = read_intent(form, scopes, backfill_ticket_required=policy.backfill_ticket_required)
    if isinstance(intent, IntentRefused):
        cause = f"{intent.parameter}:{intent.code}"
        return GrantRefused(invalid_request(intent.message, cause), tenant_id)
    life = policy.privileged_life if intent.claims else policy.plain_life
    return Grant(client.client_id, client.owner, tenant, scopes, client.roles, intent, life)


def _check_grant_type(form: Form) -> OAuthError | None:
    match form.get("grant_type"):
        case None:
            return invalid_request("grant_type is required", "grant_type_missing")
        case "client_credentials":
            return None
        case _:
            message = "grant_type must be client_credentials"
            return OAuthError("unsupported_grant_type", message, "grant_type_unsupported")


def only_tenant(client: Client) -> str | None:
    """Return the tenant of a client that has one, None of a client that has several."""
    return client.tenants[0] if len(client.tenants) == 1 else None


def _choose_tenant(client: Client, form: Form) -> str | OAuthError:
    asked = form.get("tenant") or only_tenant(client)
    if asked is None:
        return invalid_request("tenant is required: this client has several", "tenant_required")
    if asked not in client.tenants:
        return invalid_request("tenant must be one of the tenants of this client", "tenant_not_allowed")
    return asked


def _choose_scopes(client: Client, form: Form) -> tuple[Scope, ...] | OAuthError:
    text = form.get("scope")
    if text is None:
        return _invalid_scope("scope is required", "scope_missing")
    try:
        asked = parse_scope(text)
    except ValueError:
        return _invalid_scope("scope must be scopes between single spaces", "scope_malformed")
    known = tuple(Scope(token) for token in asked if token in _KNOWN)
    if len(known) < len(asked):
        return _invalid_scope("scope names a scope that does not exist", "scope_unknown")
    allowed = allowed_scopes(client.roles)
    for scope in known:
        if scope not in allowed:
            return _invalid_scope(f"the roles of this client do not allow {scope}", "scope_not_allowed")
    return known


def _invalid_scope(description: str, cause: str) -> OAuthError:
    return OAuthError("invalid_scope", description, cause)
