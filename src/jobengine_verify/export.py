"""An export, read line by line: its checkpoint, then its entries, each by its own bytes."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, BinaryIO, cast

from jobengine_verify.canonical import NotCanonical, read
from jobengine_verify.likeness import Likeness, commitments, is_plain
from jobengine_verify.notes import CannotCheck

MAX_LINE_BYTES = 16 * 2**20

_BLOCK_BYTES = 2**16
_HEAD = '{"format":1,"checkpoint":'
_ENTRY = '{"entry":'
_OPEN = ',"open":'
_WITHHELD = '{"withheld":'
_ENTRY_ID = re.compile(r'"entry_id":"([0-9A-Za-z-]{1,64})"')
_HASH = re.compile(r"[0-9a-f]{64}")
_SALT = re.compile(r"[0-9a-f]{32}")


class BadEntry(Exception):
    """A line that the log cannot have written."""


def read_head(file: BinaryIO) -> str:
    """Return the signed note in line 1; raises CannotCheck."""
    line = file.readline(MAX_LINE_BYTES)
    try:
        text = line.decode().removesuffix("\n")
        note, end = read(text, len(_HEAD))
    except ValueError:
        note, text, end = None, "", 0
    if not text.startswith(_HEAD) or text[end:] != "}" or not isinstance(note, str):
        raise CannotCheck("not an export: line 1 carries no checkpoint of format 1")
    return note


@dataclass(frozen=True, slots=True)
class Block:
    """Some lines, without their ends; *plain* ones hold no control character and no escape.

    Bytes that are not UTF-8 are lone surrogates.
    """

    lines: Sequence[str]
    plain: bool

    def line_of(self, place: int) -> str:
        """Return which of some good lines gave the leaf hash at *place*, or else the one after them, which is bad."""
        for line in self.lines:
            place -= line.count(",") + 1 if line.startswith(_WITHHELD) else 1
            if place < 0:
                return line
        return self.lines[-1]


def read_blocks(file: BinaryIO) -> Iterator[Block]:
    """Yield the lines after the first; of one that is too long only a part, so that memory is bounded."""
    rest = b""
    while len(rest) <= MAX_LINE_BYTES and (read := file.read(_BLOCK_BYTES)):
        whole, newline, tail = read.rpartition(b"\n")
        if newline:
            yield _block(rest + whole)
            rest = tail
        else:
            rest += read
    if rest:
        yield _block(rest)


def _block(lines: bytes) -> Block:
    return Block(lines.decode(errors="surrogateescape").split("\n"), is_plain(lines))


def entry_id_in(line: str) -> str | None:
    """Return the id of the entry in a line, None where it cannot be read; in a damaged line it is a guess."""
    try:
        return str(read(line, len(_ENTRY))[0]["entry_id"])
    except (NotCanonical, TypeError, LookupError):
        found = _ENTRY_ID.search(line)
        return found[1] if found else None


class Lines:
    """Checks lines on their own and gives the hashes that they put into the tree.

    *closed* counts the texts that were not opened, *withheld* the entries of which only the hash is there.
    """

    def __init__(self) -> None:
        self.tenant_id: str | None = None
        self.withheld = 0
        self._closed = 0
        self._likeness = Likeness()
        self._begun = False

    @property
    def closed(self) -> int:
        """How many texts are committed to and not opened."""
        return self._closed + self._likeness.closed

    def leaf_hashes(self, block: Block) -> tuple[list[bytes], str | None]:
        """Return the leaf hashes of a block in their order, up to the first bad line, and what is wrong with that."""
        hashes: list[bytes] = []
        leaf_hash, take = self._likeness.leaf_hash, hashes.append
        try:
            for line in block.lines:
                if (block.plain or is_plain(line.encode())) and (hashed := leaf_hash(line)):
                    take(hashed)
                else:
                    hashes += self._withheld(line) if line.startswith(_WITHHELD) else [self._entry(line)]
        except UnicodeEncodeError:
            return hashes, "the line is not UTF-8"
        except (BadEntry, NotCanonical) as error:
            return hashes, str(error)
        return hashes, None

    def _withheld(self, line: str) -> list[bytes]:
        hashes, end = read(line, len(_WITHHELD))
        if line[end:] != "}" or not isinstance(hashes, list) or not hashes:
            raise NotCanonical("the line is not a run of withheld entries")
        texts = cast("list[Any]", hashes)
        if not all(isinstance(text, str) and _HASH.fullmatch(text) for text in texts):
            raise NotCanonical("the line is not a run of withheld entries")
        self.withheld += len(texts)
        return [bytes.fromhex(text) for text in texts]

    def _entry(self, line: str) -> bytes:
        leaf, opened, end = _split(line)
        committed = {field: _salted_hash(value, field) for field, value in commitments(leaf).items()}
        for field, opening in opened.items():
            if not _opens(opening, committed.pop(field, None)):
                raise BadEntry(f"the text of {field} is not the one that was written")
        if self._begun and leaf["tenant_id"] != self.tenant_id:
            raise BadEntry("the entry is not of the tenant of those before it")
        # Decoding UTF-8 and encoding it again changes nothing: these are the bytes of the file.
        hashed = sha256(b"\x00" + line[len(_ENTRY) : end].encode()).digest()
        self.tenant_id, self._begun = leaf["tenant_id"], True
        self._closed += len(committed)
        self._likeness.learn(line, leaf, opened)
        return hashed


def _split(line: str) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Return the entry of a line, its openings, and where the entry ends."""
    if len(line.encode()) > MAX_LINE_BYTES or not line.startswith(_ENTRY):
        raise NotCanonical("the line is not an entry")
    leaf, end = read(line, len(_ENTRY))
    opened, last = read(line, end + len(_OPEN))
    if not line.startswith(_OPEN, end) or line[last:] != "}":
        raise NotCanonical("the line is not an entry and its openings")
    if not _object(leaf).keys() >= {"entry_id", "properties", "tenant_id"}:
        raise NotCanonical("the line is not an entry")
    _object(leaf["properties"])
    return _object(leaf), _object(opened), end


def _salted_hash(value: Any, field: str) -> str:
    match value:
        case {"salted_sha256": str() as digest, **rest} if not rest and _HASH.fullmatch(digest):
            return digest
        case _:
            raise BadEntry(f"{field} is not a salted hash")


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise NotCanonical("the line is not an entry and its openings")
    return cast("dict[str, Any]", value)


def _opens(opening: Any, expected: str | None) -> bool:
    # The salt's length is fixed: else the beginning of a text could be passed off as a part of the salt.
    match opening:
        case [str() as salt, str() as text] if _SALT.fullmatch(salt):
            return sha256(bytes.fromhex(salt) + text.encode()).hexdigest() == expected
        case _:
            return False
