"""Access tokens: ES256 JSON Web Tokens in the profile of RFC 9068."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from joserfc import jws

from jobengine.authority.grants import Grant
from jobengine.authority.keys import ALGORITHM, LONGEST_TOKEN_LIFE, SigningKey
from jobengine.authority.scopes import Role, Scope

TOKEN_TYPE: Final = "at+jwt"  # noqa: S105 - a media type, not a secret
EMBEDDED_WORKER: Final = "jobengine-worker"
"""The client id of our own workers; no generated id can be it."""


@dataclass(frozen=True, slots=True)
class Realm:
    """Who issues tokens and for whom."""

    issuer: str
    audience: str


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A token just signed; *claims* is what it says, *text* is what opens doors and is never shown."""

    text: str = field(repr=False)
    token_id: str
    issued_at: datetime
    expires_at: datetime
    claims: dict[str, object] = field(repr=False)

    @property
    def expires_in(self) -> int:
        """The life of the token in seconds."""
        return int((self.expires_at - self.issued_at).total_seconds())


def mint(
    grant: Grant, realm: Realm, key: SigningKey, now: datetime, *, token_id: str, audit_leaf: str | None
) -> AccessToken:
    """Sign the token of *grant*; *audit_leaf* is the leaf hash of the grant's audit entry.

    Raises ValueError for a token with a reason and without a leaf: its signature must commit to the record of it.
    """
    claims: dict[str, object] = {
        "client_id": grant.client_id,
        "sub": grant.client_id,
        "owner": grant.owner,
        "tenant": grant.tenant_id,
        "scope": grant.scope,
        "roles": list[str](grant.roles),
        **grant.intent.claims,
    }
    if grant.intent.claims:
        if audit_leaf is None:
            raise ValueError("a token with a reason needs the leaf of its grant")
        claims["audit_leaf"] = audit_leaf
    return _sign(claims, realm, key, now, token_id=token_id, life=grant.life)


@dataclass(frozen=True, slots=True)
class BatchAttempt:
    """One attempt at one batch, as its lease knows it."""

    tenant_id: str
    batch_id: str
    fencing_token: int
    client_id: str = EMBEDDED_WORKER


def mint_for_batch(
    attempt: BatchAttempt, realm: Realm, key: SigningKey, now: datetime, *, token_id: str, life: timedelta
) -> AccessToken:
    """Sign a token that may speak for *attempt* and nothing else; it is worth nothing once the lease is lost.

    Raises ValueError for a *life* longer than keys are kept for.
    """
    if life > LONGEST_TOKEN_LIFE:
        raise ValueError(f"no token may live longer than {LONGEST_TOKEN_LIFE}")
    claims: dict[str, object] = {
        "client_id": attempt.client_id,
        "sub": attempt.client_id,
        "owner": attempt.client_id,
        "tenant": attempt.tenant_id,
        "scope": Scope.EXECUTE.value,
        "roles": [Role.WORKER.value],
        "batch": f"{attempt.batch_id}:{attempt.fencing_token}",
    }
    return _sign(claims, realm, key, now, token_id=token_id, life=life)


def _sign(
    claims: dict[str, object], realm: Realm, key: SigningKey, now: datetime, *, token_id: str, life: timedelta
) -> AccessToken:
    issued_at = now.astimezone(UTC).replace(microsecond=0)
    expires_at = issued_at + timedelta(seconds=int(life.total_seconds()))
    stamped: dict[str, object] = {
        "iss": realm.issuer,
        "aud": realm.audience,
        "iat": int(issued_at.timestamp()),
        "exp": int(expires_at.timestamp()),
        "jti": token_id,
        **claims,
    }
    # Plain UTF-8: escaped, three long reasons would not fit into the 8 KiB the guard reads.
    payload = json.dumps(stamped, ensure_ascii=False, separators=(",", ":")).encode()
    header = {"alg": ALGORITHM, "typ": TOKEN_TYPE, "kid": key.kid}
    text = jws.serialize_compact(header, payload, key.private, algorithms=[ALGORITHM])
    return AccessToken(text, token_id, issued_at, expires_at, stamped)
