"""The master key: one secret outside the database, from which every other one is derived or under which it is sealed.

Whoever holds the database alone can neither sign a token or a checkpoint, nor try out client secrets.
"""

import base64
import binascii
import hmac
import secrets
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES: Final = 32

_INFO: Final = b"jobengine master key v1: "
_NONCE_BYTES: Final = 12


class Label(StrEnum):
    """What a derived key is for; a label is never given a second meaning."""

    PEPPER = "pepper"
    KEK = "kek"
    PAGE_TOKEN = "page-token"  # noqa: S105 - a label, not a secret
    PLAN_TOKEN = "plan-token"  # noqa: S105 - a label, not a secret
    CHECK = "check"


class SealBroken(ValueError):
    """Sealed bytes do not open: another master key, another purpose, or somebody changed them."""


@dataclass(frozen=True, slots=True)
class MasterKey:
    """The 256 bits everything hangs on."""

    secret: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> "MasterKey":
        """Return a fresh key."""
        return cls(secrets.token_bytes(KEY_BYTES))

    @classmethod
    def from_file(cls, content: bytes) -> "MasterKey":
        """Read what ``to_file`` wrote, with or without white space around it; raises ValueError for anything else.

        >>> MasterKey.from_file(MasterKey(bytes(32)).to_file()) == MasterKey(bytes(32))
        True
        """
        try:
            secret = base64.b64decode(content.strip(), validate=True)
        except binascii.Error:
            secret = b""
        if len(secret) != KEY_BYTES:
            raise ValueError(f"a master key file holds {KEY_BYTES} bytes in base64")
        return cls(secret)

    def to_file(self) -> bytes:
        """Return the content of the key file: one line of base64."""
        return base64.b64encode(self.secret) + b"\n"

    def derive(self, label: Label) -> bytes:
        """Return the 32-byte subkey for *label* (HKDF-SHA256, RFC 5869)."""
        return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=_INFO + label.encode()).derive(self.secret)

    def is_the_one(self, stored_check: bytes) -> bool:
        """Tell whether *stored_check*, the subkey ``check`` kept at first start, comes from this key."""
        return hmac.compare_digest(self.derive(Label.CHECK), stored_check)


def seal(kek: bytes, plaintext: bytes, *, name: str, purpose: str) -> bytes:
    """Encrypt *plaintext* with AES-256-GCM under a random nonce, bound to *name* and *purpose*."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(kek).encrypt(nonce, plaintext, _context(name, purpose))


def unseal(kek: bytes, sealed: bytes, *, name: str, purpose: str) -> bytes:
    """Return what was sealed under the same *kek*, *name* and *purpose*; raises SealBroken otherwise.

    >>> unseal(bytes(32), seal(bytes(32), b"key", name="k1", purpose="access-token"), name="k1", purpose="access-token")
    b'key'
    """
    try:
        return AESGCM(kek).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _context(name, purpose))
    except (InvalidTag, ValueError):
        raise SealBroken(f"{purpose} key {name} does not open under this master key") from None


def _context(name: str, purpose: str) -> bytes:
    return f"{purpose}\n{name}".encode()
