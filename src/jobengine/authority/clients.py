"""Clients of the authority: generated ids and secrets, of which only a keyed hash is kept."""

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeAlias

from jobengine.authority.scopes import Role
from jobengine.errors import ValidationFailed
from jobengine.tenancy.model import is_tenant_id

MAX_NAME_CHARACTERS: Final = 200

_NO_HASH: Final = bytes(hashlib.sha256().digest_size)


@dataclass(frozen=True, slots=True)
class Client:
    """A program that may ask for tokens; *owner* is the person or team that answers for it."""

    client_id: str
    owner: str
    name: str
    tenants: tuple[str, ...]
    roles: tuple[Role, ...]
    secret_hash: bytes = field(repr=False)
    disabled_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class NewClient:
    """A client just made, with its secret, which is shown this once and kept nowhere."""

    client: Client
    secret: str = field(repr=False)


def generate_credentials() -> tuple[str, str]:
    """Return a fresh client id and a secret of 256 random bits, both of ``[A-Za-z0-9_-]+``.

    The prefixes let a scanner for leaked secrets tell one from the other, and neither starts like an option.
    """
    return f"jec_{secrets.token_urlsafe(15)}", f"jes_{secrets.token_urlsafe(32)}"


def new_client(
    name: str, *, tenants: Iterable[str], roles: Iterable[str], pepper: bytes, owner: str | None = None
) -> NewClient:
    """Make a client; its owner is its name unless one is given. Raises ValidationFailed for what it cannot be.

    >>> made = new_client("nightly", tenants=["acme"], roles=["Orch.Viewer"], pepper=bytes(32))
    >>> made.client.owner, made.client.roles
    ('nightly', (<Role.VIEWER: 'Orch.Viewer'>,))
    """
    client_id, secret = generate_credentials()
    client = Client(
        client_id=client_id,
        name=_checked_name("name", name),
        owner=_checked_name("owner", name if owner is None else owner),
        tenants=_checked_tenants(tenants),
        roles=_checked_roles(roles),
        secret_hash=hash_secret(secret, pepper),
    )
    return NewClient(client, secret)


def _checked_name(path: str, text: str) -> str:
    if not 1 <= len(text) <= MAX_NAME_CHARACTERS or not text.isprintable() or text != text.strip():
        message = f"must be 1 to {MAX_NAME_CHARACTERS} printable characters without spaces around them"
        raise ValidationFailed(path, message)
    return text


def _checked_tenants(tenants: Iterable[str]) -> tuple[str, ...]:
    unique = tuple(dict.fromkeys(tenants))
    if not unique or not all(is_tenant_id(tenant) for tenant in unique):
        raise ValidationFailed("tenants", "must hold at least one tenant id of a-z, 0-9 and -, up to 63 characters")
    return unique


def _checked_roles(roles: Iterable[str]) -> tuple[Role, ...]:
    try:
        unique = tuple(dict.fromkeys(Role(role) for role in roles))
    except ValueError:
        unique = ()
    if not unique:
        raise ValidationFailed("roles", f"must hold at least one of {', '.join(Role)}")
    return unique


def hash_secret(secret: str, pepper: bytes) -> bytes:
    """Return HMAC-SHA256 of *secret* under *pepper*.

    Secrets are generated with 256 bits, so that slow hashing would protect nothing and let anybody burn our processor.
    """
    return hmac.digest(pepper, secret.encode(), "sha256")


@dataclass(frozen=True, slots=True)
class Authenticated:
    """The client is who it says it is."""

    client: Client


@dataclass(frozen=True, slots=True)
class NotAuthenticated:
    """Nobody is: the *cause* is for the audit alone, callers see one answer for all of them."""

    cause: str


Authentication: TypeAlias = Authenticated | NotAuthenticated


def authenticate(client: Client | None, secret: str, pepper: bytes) -> Authentication:
    """Check *secret*, with the same work whether the client exists, is disabled, or was never made.

    >>> authenticate(None, "jes_guess", bytes(32))
    NotAuthenticated(cause='client_unknown')
    """
    kept = _NO_HASH if client is None else client.secret_hash
    matches = hmac.compare_digest(hash_secret(secret, pepper), kept)
    if client is None:
        return NotAuthenticated("client_unknown")
    if not matches:
        return NotAuthenticated("secret_wrong")
    if client.disabled_at is not None:
        return NotAuthenticated("client_disabled")
    return Authenticated(client)
