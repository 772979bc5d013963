"""From the claims of a verified token to a Principal: every claim has its type, or the token is refused."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final, cast

from jobengine.authority.intent import valid_intents
from jobengine.authority.scopes import parse_scope
from jobengine.ids import is_id
from jobengine.tenancy.model import Principal, is_tenant_id

_MAX_IDENTIFIER_CHARACTERS: Final = 256
_LEAF: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_FENCING_TOKEN: Final = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)
_LAST_SECOND: Final = int(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp())


def read_principal(claims: Mapping[str, object]) -> Principal:
    """Return who *claims* speak of; raises ValueError naming the claim that RFC 9068 requires or that is ill-formed.

    A token may lack a tenant, a scope or a reason: whoever needs one refuses it then. A reason or ticket that breaks
    its rules counts as absent. Without ``owner`` the subject answers for itself.
    """
    return Principal(
        client_id=identifier(claims, "client_id"),
        owner=identifier(claims, "owner" if "owner" in claims else "sub"),
        tenant_id=_optional(claims, "tenant", is_tenant_id),
        scopes=_scopes(claims),
        roles=_roles(claims),
        token_id=identifier(claims, "jti"),
        intents=valid_intents(claims),
        expires_at=moment(claims, "exp"),
        audit_leaf=_optional(claims, "audit_leaf", lambda text: _LEAF.fullmatch(text) is not None),
        batch=_optional(claims, "batch", _is_batch),
    )


def identifier(claims: Mapping[str, object], name: str) -> str:
    """Return a required claim that is 1 to 256 printable characters; raises ValueError for anything else."""
    match claims.get(name):
        case str(text) if 1 <= len(text) <= _MAX_IDENTIFIER_CHARACTERS and text.isprintable():
            return text
        case _:
            raise _ill_formed(name)


def moment(claims: Mapping[str, object], name: str) -> datetime:
    """Return a required claim that is a NumericDate in whole seconds; raises ValueError for anything else.

    >>> moment({"exp": 0}, "exp")
    datetime.datetime(1970, 1, 1, 0, 0, tzinfo=datetime.timezone.utc)
    """
    match claims.get(name):
        case bool():
            raise _ill_formed(name)
        case int(seconds) if 0 <= seconds <= _LAST_SECOND:
            return datetime.fromtimestamp(seconds, UTC)
        case _:
            raise _ill_formed(name)


def audiences(claims: Mapping[str, object]) -> frozenset[str]:
    """Return whom the token is for, one or many (RFC 7519 section 4.1.3); raises ValueError for anything else."""
    match claims.get("aud"):
        case str(audience):
            return frozenset({audience})
        case list():
            return frozenset(_strings(claims["aud"], "aud"))
        case _:
            raise _ill_formed("aud")


def _ill_formed(name: str) -> ValueError:
    return ValueError(f"lacks a well-formed claim {name}")


def _optional(claims: Mapping[str, object], name: str, is_good: Callable[[str], bool]) -> str | None:
    if name not in claims:
        return None
    match claims[name]:
        case str(text) if is_good(text):
            return text
        case _:
            raise _ill_formed(name)


def _scopes(claims: Mapping[str, object]) -> frozenset[str]:
    if "scope" not in claims:
        return frozenset()
    match claims["scope"]:
        case str(text):
            try:
                return frozenset(parse_scope(text))
            except ValueError:
                raise _ill_formed("scope") from None
        case _:
            raise _ill_formed("scope")


def _roles(claims: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(_strings(claims["roles"], "roles")) if "roles" in claims else ()


def _strings(value: object, name: str) -> list[str]:
    if isinstance(value, list):
        items = cast("list[object]", value)
        strings = [item for item in items if isinstance(item, str)]
        if len(strings) == len(items):
            return strings
    raise _ill_formed(name)


def _is_batch(text: str) -> bool:
    batch_id, _, fencing_token = text.partition(":")
    return is_id(batch_id) and _FENCING_TOKEN.fullmatch(fencing_token) is not None
