"""Signed tree heads: C2SP tlog-checkpoint bodies in C2SP signed notes, with Ed25519 keys named by the log's origin.

NoteError                 the text must not be used
├─ MalformedNote          not a signed note, not a checkpoint, or not a verifier key
├─ UnknownSigner          nothing in it was signed by the expected key
└─ InvalidSignature       it names the expected key, which did not sign this text
"""

import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature as _Mismatch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from jobengine.audit.merkle import HASH_BYTES

ED25519 = b"\x01"
COSIGNATURE = b"\x04"
"""Kinds of keys: of notes (C2SP signed-note), and of witnesses (C2SP tlog-cosignature)."""

_KEY_BYTES = 32
_KEY_ID_BYTES = 4
_MAX_NOTE_CHARACTERS = 2**20
_MAX_SIGNATURES = 100
_BODY_LINES = 3

_VKEY = re.compile(r"([^+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/=]+)")
_SIGNATURE = re.compile(r"— (\S+) ([A-Za-z0-9+/=]+)")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")


class NoteError(ValueError):
    """The text must not be used."""


class MalformedNote(NoteError):
    """The text is not what it should be, whoever signed it."""


class UnknownSigner(NoteError):
    """No signature of the note is by the expected key."""


class InvalidSignature(NoteError):
    """A signature names the expected key, which did not sign this text."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A log's tree head: *root* is the hash of the tree over its first *size* leaves."""

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        _check_name(self.origin)
        if self.size < 0 or len(self.root) != HASH_BYTES:
            raise MalformedNote("a checkpoint has a size of 0 or more and a root of 32 bytes")

    def body(self) -> str:
        r"""Return the note text (C2SP tlog-checkpoint).

        >>> Checkpoint("example.com/log", 0, bytes(32)).body()
        'example.com/log\n0\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n'
        """
        return f"{self.origin}\n{self.size}\n{b64encode(self.root).decode()}\n"


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """The public key of a log, under the name it signs with, its origin; or of a witness. As text, one C2SP vkey."""

    name: str
    public_key: bytes
    kind: bytes = ED25519

    def __post_init__(self) -> None:
        _check_name(self.name)
        if len(self.public_key) != _KEY_BYTES:
            raise MalformedNote("an Ed25519 public key has 32 bytes")

    @property
    def key_id(self) -> bytes:
        """The four bytes that name this key in a signature line (C2SP signed-note)."""
        return sha256(self.name.encode() + b"\n" + self.kind + self.public_key).digest()[:_KEY_ID_BYTES]

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{b64encode(self.kind + self.public_key).decode()}"


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line of a note."""

    name: str
    key_id: bytes
    signature: bytes

    def __str__(self) -> str:
        return f"— {self.name} {b64encode(self.key_id + self.signature).decode()}"


@dataclass(frozen=True, slots=True)
class SignedNote:
    """A text and who signed it; nothing of it is true before it is verified."""

    text: str
    signatures: tuple[Signature, ...]

    def __str__(self) -> str:
        return self.text + "\n" + "".join(f"{line}\n" for line in self.signatures)


def verifier_key(name: str, key: Ed25519PrivateKey) -> VerifierKey:
    """Return the public half of *key* for the log of origin *name*."""
    return VerifierKey(name, key.public_key().public_bytes_raw())


def parse_verifier_key(text: str, kind: bytes = ED25519) -> VerifierKey:
    """Read one C2SP vkey of a kind: ``<name>+<key id in hex>+<base64 of kind and key>``. Raises MalformedNote.

    >>> parse_verifier_key("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW").key_id.hex()
    'c74f20a3'
    """
    found = _VKEY.fullmatch(text)
    if found is None:
        raise MalformedNote("not a verifier key")
    encoded = _decoded(found[3])
    if encoded[:1] != kind:
        raise MalformedNote(f"not a verifier key of the kind {kind.hex()}")
    key = VerifierKey(found[1], encoded[1:], kind)
    if key.key_id.hex() != found[2]:
        raise MalformedNote("the key id is not that of the key")
    return key


def sign(checkpoint: Checkpoint, key: Ed25519PrivateKey) -> str:
    """Return *checkpoint* as a signed note, signed by *key* under the checkpoint's origin."""
    return sign_text(checkpoint.body(), checkpoint.origin, key)


def sign_text(text: str, name: str, key: Ed25519PrivateKey) -> str:
    """Return *text* as a note signed by *key* under *name* (C2SP signed-note). Raises MalformedNote."""
    _check_text(text)
    line = Signature(name, verifier_key(name, key).key_id, key.sign(text.encode()))
    return str(SignedNote(text, (line,)))


def parse_note(note: str) -> SignedNote:
    """Split a signed note at its last empty line, verifying nothing. Raises MalformedNote."""
    if len(note) > _MAX_NOTE_CHARACTERS:
        raise MalformedNote("the note is too long")
    text, separator, signatures = note.rpartition("\n\n")
    if not separator or not signatures.endswith("\n"):
        raise MalformedNote("a note ends with an empty line and its signature lines")
    text += "\n"
    _check_text(text)
    return SignedNote(text, parse_signatures(signatures))


def parse_signatures(lines: str) -> tuple[Signature, ...]:
    """Read signature lines, each with its newline, verifying nothing. Raises MalformedNote."""
    found = lines.removesuffix("\n").split("\n")
    if not lines.endswith("\n") or len(found) > _MAX_SIGNATURES:
        raise MalformedNote("the note has too many signatures, or a broken one")
    return tuple(map(_parse_signature, found))


def verify_text(note: str, key: VerifierKey) -> str:
    """Return the text of *note* if *key* signed it; signatures of other keys are ignored.

    Raises MalformedNote, UnknownSigner, or InvalidSignature when any signature that names the key is not good.
    """
    parsed = parse_note(note)
    ours = [line for line in parsed.signatures if (line.name, line.key_id) == (key.name, key.key_id)]
    if not ours:
        raise UnknownSigner(f"not signed by {key.name}+{key.key_id.hex()}")
    for line in ours:
        try:
            Ed25519PublicKey.from_public_bytes(key.public_key).verify(line.signature, parsed.text.encode())
        except _Mismatch:
            raise InvalidSignature(f"{key.name}+{key.key_id.hex()} did not sign this text") from None
    return parsed.text


def verify(note: str, key: VerifierKey) -> Checkpoint:
    """Return the checkpoint in *note* if the log named by *key* signed it.

    Raises as `verify_text`; a checkpoint of another origin raises UnknownSigner, because a log signs under its own
    name and one key may serve several logs.
    """
    checkpoint = parse_checkpoint(verify_text(note, key))
    if checkpoint.origin != key.name:
        raise UnknownSigner(f"a checkpoint of {checkpoint.origin}, signed as {key.name}")
    return checkpoint


def parse_checkpoint(body: str) -> Checkpoint:
    """Read a checkpoint's note text (C2SP tlog-checkpoint), ignoring extension lines. Raises MalformedNote."""
    lines = body.removesuffix("\n").split("\n")
    if not body.endswith("\n") or len(lines) < _BODY_LINES or not all(lines):
        raise MalformedNote("a checkpoint has at least three lines, none empty")
    if _SIZE.fullmatch(lines[1]) is None:
        raise MalformedNote("the tree size is not a decimal number")
    return Checkpoint(lines[0], int(lines[1]), _decoded(lines[2]))


def _parse_signature(line: str) -> Signature:
    found = _SIGNATURE.fullmatch(line)
    if found is None:
        raise MalformedNote("not a signature line")
    _check_name(found[1])
    raw = _decoded(found[2])
    if len(raw) <= _KEY_ID_BYTES:
        raise MalformedNote("a signature holds a key id and more")
    return Signature(found[1], raw[:_KEY_ID_BYTES], raw[_KEY_ID_BYTES:])


def _decoded(text: str) -> bytes:
    """Decode base64 that has exactly one spelling: a second one would be a second text for the same signature."""
    try:
        raw = b64decode(text, validate=True)
    except (Base64Error, ValueError):
        raise MalformedNote("not base64") from None
    if b64encode(raw).decode() != text:
        raise MalformedNote("not the shortest base64")
    return raw


def _check_name(name: str) -> None:
    if not name or "+" in name or any(sign.isspace() for sign in name) or _CONTROL.search(name):
        raise MalformedNote(f"{name!r} cannot be the name of a log: it is empty or has a space or a plus")


def _check_text(text: str) -> None:
    if not text.endswith("\n") or _CONTROL.search(text):
        raise MalformedNote("a note's text ends with a newline and has no other control characters")
