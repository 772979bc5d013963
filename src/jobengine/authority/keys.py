"""Signing keys: ES256 for access tokens, Ed25519 for audit checkpoints, and when each of them may do what.

A token key is published from the moment it is made, signs from ``active_from`` until the next one does, and verifies
until ``retire_at``, when the last token it signed is over.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final, TypedDict

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_der_private_key
from joserfc.jwk import ECKey, OKPKey

from jobengine.audit.signing import LogKeys
from jobengine.authority.master_key import SealBroken, seal, unseal
from jobengine.errors import Unavailable

ALGORITHM: Final = "ES256"
CHECKPOINT_AHEAD: Final = timedelta(seconds=10)
"""How long before its first checkpoint a key is made, so that every process has read it."""
LONGEST_TOKEN_LIFE: Final = timedelta(hours=24)
"""No token lives longer; the longest are those bound to one attempt at a batch, which end with its lease."""

_NEVER: Final = datetime.max.replace(tzinfo=UTC)
_CURVE: Final = "P-256"
_TOKEN_PURPOSE: Final = "access-token"  # noqa: S105 - a label, not a secret
_CHECKPOINT_PURPOSE: Final = "checkpoint"


class PublicJwk(TypedDict):
    """A public key as RFC 7517 writes it."""

    kty: str
    crv: str
    x: str
    y: str
    kid: str
    use: str
    alg: str


class Jwks(TypedDict):
    """A set of public keys as RFC 7517 writes it."""

    keys: list[PublicJwk]


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key for access tokens; *kid* is its RFC 7638 thumbprint, *retire_at* is set once a successor exists."""

    kid: str
    private: ECKey = field(repr=False, compare=False)
    created_at: datetime
    active_from: datetime
    retire_at: datetime | None = None

    def retired(self, now: datetime) -> bool:
        """Tell whether the key no longer verifies anything."""
        return self.retire_at is not None and self.retire_at <= now

    @property
    def public_jwk(self) -> PublicJwk:
        """The public members, ready to be published."""
        x, y = self.private["x"], self.private["y"]
        return PublicJwk(kty="EC", crv=_CURVE, x=str(x), y=str(y), kid=self.kid, use="sig", alg=ALGORITHM)


def generate_signing_key(now: datetime, active_from: datetime) -> SigningKey:
    """Return a fresh key on P-256 that may sign from *active_from* on."""
    private = ECKey.generate_key(_CURVE)
    return SigningKey(private.thumbprint(), private, created_at=now, active_from=active_from)


def seal_signing_key(key: SigningKey, kek: bytes) -> bytes:
    """Encrypt the private half for storage; it opens only under the same *kek* and as the same kid."""
    return seal(kek, key.private.as_der(private=True), name=key.kid, purpose=_TOKEN_PURPOSE)


def unseal_signing_key(
    sealed: bytes, kek: bytes, *, kid: str, created_at: datetime, active_from: datetime, retire_at: datetime | None
) -> SigningKey:
    """Return the stored key; raises SealBroken when it was not sealed by us as *kid*."""
    private = load_der_private_key(unseal(kek, sealed, name=kid, purpose=_TOKEN_PURPOSE), password=None)
    if not isinstance(private, EllipticCurvePrivateKey):
        raise SealBroken(f"{_TOKEN_PURPOSE} key {kid} is of another kind")
    return SigningKey(kid, ECKey.import_key(private), created_at, active_from, retire_at)


def signing_key(keys: Iterable[SigningKey], now: datetime) -> SigningKey:
    """Return the key that signs at *now*: the active one that ends last. Raises Unavailable without one."""
    active = [key for key in keys if key.active_from <= now and not key.retired(now)]
    if not active:
        raise Unavailable("no signing key is active")
    return max(active, key=lambda key: key.retire_at or _NEVER)


def verification_keys(keys: Iterable[SigningKey], now: datetime) -> dict[str, ECKey]:
    """Return the public halves that may verify at *now*, by kid, those not yet active included."""
    return {key.kid: ECKey.import_key(key.private.public_key) for key in keys if not key.retired(now)}


def jwks(keys: Iterable[SigningKey], now: datetime) -> Jwks:
    """Return the key set to publish at *now*, oldest first, public members only (RFC 7517)."""
    published = sorted((key for key in keys if not key.retired(now)), key=lambda key: key.created_at)
    return {"keys": [key.public_jwk for key in published]}


@dataclass(frozen=True, slots=True)
class RotationPlan:
    """How long a new key is published before it signs, and how long the old one verifies after it stopped."""

    publish_ahead: timedelta = timedelta(minutes=15)
    longest_token_life: timedelta = LONGEST_TOKEN_LIFE
    clock_skew: timedelta = timedelta(minutes=1)

    def first_use(self, keys: Iterable[SigningKey], now: datetime) -> datetime:
        """Return when a key made at *now* may sign: once it is known everywhere, or at once where no other can sign."""
        if any(key.active_from <= now and not key.retired(now) for key in keys):
            return now + self.publish_ahead + self.clock_skew
        return now


def rotate(
    keys: Iterable[SigningKey],
    now: datetime,
    plan: RotationPlan = RotationPlan(),
    generate: Callable[[datetime, datetime], SigningKey] = generate_signing_key,
) -> tuple[SigningKey, ...]:
    """Return *keys* without those retired at *now*, with a new one, and with the end of the others set.

    The first key of all signs at once.
    """
    kept = [key for key in keys if not key.retired(now)]
    new = generate(now, plan.first_use(kept, now))
    end = new.active_from + plan.longest_token_life + plan.clock_skew
    # A key that already has a successor stops signing when that one starts; its end stays what it is.
    ended = (key if key.retire_at is not None else replace(key, retire_at=end) for key in kept)
    return (*ended, new)


@dataclass(frozen=True, slots=True)
class CheckpointKey:
    """A key for audit checkpoints; *kid* is its RFC 7638 thumbprint.

    It signs from *active_from* to *retire_at*, when its successor does; what it signed it verifies for ever.
    """

    kid: str
    private: Ed25519PrivateKey = field(repr=False, compare=False)
    created_at: datetime
    active_from: datetime
    retire_at: datetime | None = None


def generate_checkpoint_key(now: datetime, active_from: datetime | None = None) -> CheckpointKey:
    """Return a fresh Ed25519 key that signs from *active_from* on, or at once."""
    private = Ed25519PrivateKey.generate()
    return CheckpointKey(OKPKey.import_key(private).thumbprint(), private, now, active_from or now)


def log_keys(keys: Iterable[CheckpointKey], now: datetime) -> LogKeys:
    """Return the keys as logs use them at *now*; raises Unavailable where none has begun to sign."""
    known = sorted(keys, key=lambda key: (key.active_from, key.created_at))
    begun = [key for key in known if key.active_from <= now]
    if not begun:
        raise Unavailable("no key for checkpoints is active")
    # One that begins in a moment may already have signed, by the clock of another process.
    return LogKeys({key.kid: key.private for key in known}, begun[-1].kid)


def seal_checkpoint_key(key: CheckpointKey, kek: bytes) -> bytes:
    """Encrypt the private half for storage; it opens only under the same *kek* and as the same kid."""
    return seal(kek, key.private.private_bytes_raw(), name=key.kid, purpose=_CHECKPOINT_PURPOSE)


def unseal_checkpoint_key(
    sealed: bytes, kek: bytes, *, kid: str, created_at: datetime, active_from: datetime, retire_at: datetime | None
) -> CheckpointKey:
    """Return the stored key; raises SealBroken when it was not sealed by us as *kid*."""
    raw = unseal(kek, sealed, name=kid, purpose=_CHECKPOINT_PURPOSE)
    return CheckpointKey(kid, Ed25519PrivateKey.from_private_bytes(raw), created_at, active_from, retire_at)
