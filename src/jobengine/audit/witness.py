"""Witnesses: what a log asks of them, how they decide, and what they sign (C2SP tlog-witness, cosignature/v1).

WitnessRefused             the checkpoint was not cosigned
├─ MalformedSubmission     not a request, or one that contradicts itself
├─ UnknownLog              nobody told the witness of this log
├─ NotSigned               none of the log's keys signed it
├─ Stale                   the witness has seen another size, or another tree of this size
└─ Inconsistent            the proof does not lead from what the witness saw to what it is shown
"""

import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature as _Mismatch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from jobengine.audit.checkpoint import (
    COSIGNATURE,
    Checkpoint,
    InvalidSignature,
    MalformedNote,
    NoteError,
    Signature,
    UnknownSigner,
    VerifierKey,
    parse_checkpoint,
    parse_note,
    parse_signatures,
    verify,
)
from jobengine.audit.merkle import EMPTY_ROOT, HASH_BYTES, verify_consistency

MOST_HASHES: Final = 63
_OLD: Final = re.compile(r"old (0|[1-9][0-9]{0,18})")
_STAMP_BYTES: Final = 8
_SIGNATURE_BYTES: Final = 64


class WitnessRefused(Exception):
    """The checkpoint was not cosigned."""


class MalformedSubmission(WitnessRefused):
    """Not a request to a witness, or one that contradicts itself."""


class UnknownLog(WitnessRefused):
    """Nobody told the witness of this log."""


class NotSigned(WitnessRefused):
    """None of the log's keys signed the checkpoint."""


class Stale(WitnessRefused):
    """The witness has seen another *size*, or another tree of this one."""

    def __init__(self, size: int) -> None:
        super().__init__(f"the last checkpoint that was cosigned has the size {size}")
        self.size = size


class Inconsistent(WitnessRefused):
    """The proof does not lead from what the witness saw to what it is shown."""


@dataclass(frozen=True, slots=True)
class Submission:
    """What a log sends to ``add-checkpoint``: a note, and the proof that it continues its tree of *old_size*."""

    old_size: int
    proof: tuple[bytes, ...]
    note: str

    def __str__(self) -> str:
        hashes = "".join(f"{b64encode(item).decode()}\n" for item in self.proof)
        return f"old {self.old_size}\n{hashes}\n{self.note}"


def parse_submission(text: str) -> Submission:
    r"""Read the body of ``add-checkpoint``. Raises MalformedSubmission.

    >>> parse_submission("old 0\n\nnote\n").old_size
    0
    """
    head, separator, note = text.partition("\n\n")
    first, *hashes = head.split("\n")
    found = _OLD.fullmatch(first)
    if found is None or not separator or len(hashes) > MOST_HASHES:
        raise MalformedSubmission("not a line with the old size, a proof, an empty line and a checkpoint")
    return Submission(int(found[1]), tuple(map(_read_hash, hashes)), note)


def judge(
    submission: Submission, keys: Mapping[str, Sequence[VerifierKey]], latest: Callable[[str], Checkpoint | None]
) -> Checkpoint:
    """Return the checkpoint that a witness may cosign and must keep; raises WitnessRefused.

    *keys* are those of each log it watches, *latest* gives what it cosigned last of one, both by origin.
    """
    try:
        origin = parse_checkpoint(parse_note(submission.note).text).origin
    except NoteError as error:
        raise MalformedSubmission(str(error)) from None
    if origin not in keys:
        raise UnknownLog("this log is not watched here")
    shown = _signed(submission.note, keys[origin])
    seen = latest(origin) or Checkpoint(origin, 0, EMPTY_ROOT)
    if submission.old_size > shown.size:
        raise MalformedSubmission("the old size is larger than the new one")
    if submission.old_size != seen.size or (seen.size == shown.size and seen.root != shown.root):
        raise Stale(seen.size)
    if not verify_consistency(seen.size, shown.size, seen.root, shown.root, submission.proof):
        raise Inconsistent("the proof does not lead from the checkpoint seen last to this one")
    return shown


def cosign(checkpoint: Checkpoint, key: Ed25519PrivateKey, name: str, at: int) -> str:
    """Return the line by which the witness called *name* says what it saw at *at*, in seconds since 1970."""
    signature = at.to_bytes(_STAMP_BYTES) + key.sign(_message(checkpoint.body(), at))
    return str(Signature(name, witness_key(name, key).key_id, signature))


def witness_key(name: str, key: Ed25519PrivateKey) -> VerifierKey:
    """Return the public half of a witness's key."""
    return VerifierKey(name, key.public_key().public_bytes_raw(), COSIGNATURE)


def read_cosignature(lines: str, note: str, key: VerifierKey) -> tuple[str, int]:
    """Return the line by which *key* cosigned the checkpoint of *note*, and when it did; other keys' are ignored.

    Raises MalformedNote, UnknownSigner, or InvalidSignature when a line that names the key is not good.
    """
    text = parse_note(note).text
    for line in parse_signatures(lines):
        if (line.name, line.key_id) != (key.name, key.key_id):
            continue
        if len(line.signature) != _STAMP_BYTES + _SIGNATURE_BYTES:
            raise MalformedNote("not a timestamped signature")
        at = int.from_bytes(line.signature[:_STAMP_BYTES])
        try:
            public = Ed25519PublicKey.from_public_bytes(key.public_key)
            public.verify(line.signature[_STAMP_BYTES:], _message(text, at))
        except _Mismatch:
            raise InvalidSignature(f"{key.name} did not cosign this checkpoint") from None
        return str(line), at
    raise UnknownSigner(f"not cosigned by {key.name}")


def _message(body: str, at: int) -> bytes:
    return f"cosignature/v1\ntime {at}\n{body}".encode()


def _signed(note: str, keys: Sequence[VerifierKey]) -> Checkpoint:
    for key in keys:
        try:
            return verify(note, key)
        except NoteError:
            continue
    raise NotSigned("no key of this log signed the checkpoint")


def _read_hash(line: str) -> bytes:
    try:
        hashed = b64decode(line, validate=True)
    except (Base64Error, ValueError):
        hashed = b""
    if len(hashed) != HASH_BYTES or b64encode(hashed).decode() != line:
        raise MalformedSubmission("not a hash in base64")
    return hashed
