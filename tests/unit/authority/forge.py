"""A forge that signs whatever a test wants a token to say, beside the guard that trusts its key."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from joserfc.jwk import ECKey

from jobengine.authority.guard import Guard
from jobengine.authority.keys import SigningKey, verification_keys
from jobengine.authority.tokens import Realm
from jobengine.tenancy.model import Principal

Json = Mapping[str, object]
ABSENT = object()


def b64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unb64url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def changed(claims: Json, **changes: object) -> dict[str, object]:
    """Return *claims* with some of them changed, and without those that become ABSENT."""
    return {name: value for name, value in {**claims, **changes}.items() if value is not ABSENT}


def as_bytes(part: Json | bytes) -> bytes:
    return part if isinstance(part, bytes) else json.dumps(part).encode()


@dataclass(frozen=True)
class Forge:
    """One key, one realm, one moment."""

    key: SigningKey
    realm: Realm
    now: datetime

    @property
    def header(self) -> dict[str, object]:
        return {"alg": "ES256", "typ": "at+jwt", "kid": self.key.kid}

    @property
    def claims(self) -> dict[str, object]:
        """What a good token says, and nothing it need not say."""
        return {
            "iss": self.realm.issuer,
            "aud": self.realm.audience,
            "sub": "jec_1",
            "client_id": "jec_1",
            "iat": int(self.now.timestamp()),
            "exp": int(self.now.timestamp()) + 300,
            "jti": "0198c0de-0000-7000-8000-000000000000",
            "scope": "orch:read",
            "tenant": "acme",
            "roles": ["Orch.Viewer"],
        }

    def sign(self, payload: Json | bytes | None = None, header: Json | bytes | None = None) -> str:
        """Sign any header and payload, as objects or as raw bytes; the good ones where none are given."""
        return self.sign_with(self.key.private, payload, header)

    def sign_with(self, key: ECKey, payload: Json | bytes | None = None, header: Json | bytes | None = None) -> str:
        parts = (self.header if header is None else header, self.claims if payload is None else payload)
        signed = ".".join(b64url(as_bytes(part)) for part in parts)
        assert key.private_key is not None
        r, s = decode_dss_signature(key.private_key.sign(signed.encode(), ECDSA(hashes.SHA256())))
        return f"{signed}.{b64url(r.to_bytes(32) + s.to_bytes(32))}"

    @property
    def guard(self) -> Guard:
        return Guard(self.realm, verification_keys([self.key], self.now))

    def verify(self, token: str, now: datetime | None = None) -> Principal:
        return self.guard.verify(token, now or self.now)
