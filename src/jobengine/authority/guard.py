"""The guard: the one place where text becomes a Principal. Everything a token could mean twice is refused."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from jobengine.authority.claims import audiences, identifier, moment, read_principal
from jobengine.authority.keys import ALGORITHM
from jobengine.authority.strict_json import read_object
from jobengine.authority.tokens import TOKEN_TYPE, Realm
from jobengine.errors import Unauthenticated
from jobengine.tenancy.model import Principal

MAX_TOKEN_CHARACTERS: Final = 8 * 1024

_BEARER: Final = re.compile(r"(?i:bearer) +([A-Za-z0-9._~+/-]+=*)", re.ASCII)
_COMPACT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)


def bearer_token(authorization: Sequence[str]) -> str | None:
    """Return the token of the one Authorization header (RFC 6750 section 2.1), None where no bearer token was sent.

    Raises Unauthenticated (``invalid_token``) for two headers and for what is no token after ``Bearer``.

    >>> bearer_token(["bearer abc.def.ghi"]), bearer_token([]), bearer_token(["Basic YTpi"])
    ('abc.def.ghi', None, None)
    """
    if len(authorization) > 1:
        raise _invalid("Authorization was sent more than once")
    if not authorization or authorization[0].split(" ")[0].lower() != "bearer":
        return None
    found = _BEARER.fullmatch(authorization[0])
    if found is None:
        raise _invalid("the Authorization header holds no bearer token")
    return found[1]


@dataclass(frozen=True, slots=True)
class Verified:
    """A token that is good, as its *principal* and as the *claims* that were signed."""

    principal: Principal
    claims: Mapping[str, object] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Guard:
    """Verifies access tokens of *realm* with *keys*, the public keys by kid; whether one was revoked is not its matter.

    *leeway* is how far the clock that stamped a token may be ahead of ours; nothing lives longer for it.
    """

    realm: Realm
    keys: Mapping[str, ECKey] = field(repr=False)
    leeway: timedelta = timedelta(seconds=30)

    def verify(self, token: str, now: datetime) -> Principal:
        """Return the holder of *token*; raises Unauthenticated (``invalid_token``), which never repeats the token."""
        return self.read(token, now).principal

    def read(self, token: str, now: datetime) -> Verified:
        """Return what *token* says; raises Unauthenticated as `verify` does."""
        try:
            claims = self._signed_claims(token)
        except (ValueError, JoseError):
            raise _invalid("the access token is malformed, or was not signed here") from None
        try:
            principal = read_principal(claims)
            self._check_place(claims)
            self._check_time(claims, now)
        except ValueError as error:
            raise _invalid(f"the access token {error}") from None
        return Verified(principal, claims)

    def _signed_claims(self, token: str) -> dict[str, object]:
        if len(token) > MAX_TOKEN_CHARACTERS or _COMPACT.fullmatch(token) is None:
            raise ValueError("not a compact JWS")
        header, _, _ = (_decode_canonical(segment) for segment in token.split("."))
        # Neither the algorithm nor the key is the token's to choose: it only names one of the keys we already hold.
        match read_object(header):
            case {"alg": str(alg), "typ": str(typ), "kid": str(kid), **rest} if not rest and kid in self.keys:
                if (alg, typ) != (ALGORITHM, TOKEN_TYPE):
                    raise ValueError("not the algorithm and type of our tokens")
            case _:
                raise ValueError("not the header of our tokens")
        verified = jws.deserialize_compact(token, self.keys[kid], algorithms=[ALGORITHM])
        return read_object(verified.payload)

    def _check_place(self, claims: Mapping[str, object]) -> None:
        identifier(claims, "sub")
        if identifier(claims, "iss") != self.realm.issuer:
            raise ValueError("comes from another issuer")
        if self.realm.audience not in audiences(claims):
            raise ValueError("is for another audience")

    def _check_time(self, claims: Mapping[str, object], now: datetime) -> None:
        starts = [moment(claims, "iat")] + ([moment(claims, "nbf")] if "nbf" in claims else [])
        if any(start > now + self.leeway for start in starts):
            raise ValueError("is not valid yet")
        if now >= moment(claims, "exp"):
            raise ValueError("has expired")


def _invalid(detail: str) -> Unauthenticated:
    return Unauthenticated(detail, code="invalid_token")


def _decode_canonical(segment: str) -> bytes:
    decoded = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    if base64.urlsafe_b64encode(decoded).rstrip(b"=").decode("ascii") != segment:
        raise ValueError("not canonical base64url")
    return decoded
