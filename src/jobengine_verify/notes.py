"""Signed checkpoints: C2SP signed-note and tlog-checkpoint, with Ed25519 and nothing else."""

import re
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_ED25519 = b"\x01"
_KEY_BYTES = 32
_ID_BYTES = 4
_MAX_SIGNATURES = 100

_VKEY = re.compile(r"([^\s+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/]{44})")
_LINE = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/]+={0,2})")
_BODY = re.compile(r"([^\n]+)\n(0|[1-9][0-9]{0,18})\n([A-Za-z0-9+/]{43}=)\n(?:[^\n]+\n)*")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")


class CannotCheck(Exception):
    """The check could not be made: a wrong key, or something that cannot be read."""


class Forged(Exception):
    """A signature names the key, which did not make it."""


@dataclass(frozen=True, slots=True)
class Key:
    """A log's verifier key."""

    name: str
    key_id: bytes
    public: bytes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log signed: its first *size* entries have the tree hash *root*."""

    origin: str
    size: int
    root: bytes


def parse_key(text: str) -> Key:
    """Read one C2SP vkey line; raises CannotCheck."""
    found = _VKEY.fullmatch(text)
    if found is None:
        raise CannotCheck("the key is not a C2SP verifier key: NAME+ID+KEY")
    name, encoded = found[1], b64decode(found[3])
    key_id = sha256(name.encode() + b"\n" + encoded).digest()[:_ID_BYTES]
    if encoded[:1] != _ED25519 or key_id.hex() != found[2]:
        raise CannotCheck("the key is damaged, or not an Ed25519 key")
    return Key(name, key_id, encoded[1:])


def signer(note: str, keys: Sequence[Key]) -> Key:
    """Return the first of *keys*, at least one, that *note* names, or else the first of all; raises CannotCheck."""
    _, signatures = _split(note)
    named = {(name, raw[:_ID_BYTES]) for name, raw in signatures}
    return next((key for key in keys if (key.name, key.key_id) in named), keys[0])


def open_checkpoint(note: str, key: Key) -> Checkpoint:
    """Return the checkpoint that *key* signed.

    Raises CannotCheck when *note* names no signature of it, Forged when the one it names is not good.
    """
    text, signatures = _split(note)
    ours = [raw[_ID_BYTES:] for name, raw in signatures if name == key.name and raw[:_ID_BYTES] == key.key_id]
    if not ours:
        raise CannotCheck(f"the checkpoint is not signed by {key.name}+{key.key_id.hex()}: wrong key, or another log")
    for signature in ours:
        try:
            Ed25519PublicKey.from_public_bytes(key.public).verify(signature, text.encode())
        except InvalidSignature:
            raise Forged("the checkpoint was changed after it was signed") from None
    return _checkpoint(text, key)


def _checkpoint(text: str, key: Key) -> Checkpoint:
    found = _BODY.fullmatch(text)
    if found is None:
        raise CannotCheck("the signed text is not a checkpoint")
    # One key may sign for several logs, each under its own name; without this, one log could stand in for another.
    if found[1] != key.name:
        raise CannotCheck(f"the checkpoint is of the log {found[1]}, the key of {key.name}")
    return Checkpoint(found[1], int(found[2]), b64decode(found[3]))


def _split(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    text, separator, signatures = note.rpartition("\n\n")
    lines = signatures.removesuffix("\n").split("\n")
    if not separator or not signatures.endswith("\n") or _CONTROL.search(note) or len(lines) > _MAX_SIGNATURES:
        raise CannotCheck("the checkpoint is not a signed note")
    return text + "\n", [_signature(line) for line in lines]


def _signature(line: str) -> tuple[str, bytes]:
    found = _LINE.fullmatch(line)
    try:
        raw = b64decode(found[2], validate=True) if found else b""
    except ValueError:
        raw = b""
    if found is None or b64encode(raw).decode() != found[2]:
        raise CannotCheck("the checkpoint has a signature line that cannot be read")
    return found[1], raw
