"""An export, read line by line: its checkpoint, then its entries, each by its own bytes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, BinaryIO, cast

from jobengine_verify.canonical import NotCanonical, read
from jobengine_verify.notes import CannotCheck

MAX_LINE_BYTES = 16 * 2**20

_HEAD = '{"format":1,"checkpoint":'
_ENTRY = '{"entry":'
_OPEN = ',"open":'
_ENTRY_ID = re.compile(rb'"entry_id":"([0-9A-Za-z-]{1,64})"')
_HASH = re.compile(r"[0-9a-f]{64}")
_SALT = re.compile(r"[0-9a-f]{32}")
_TEXTS = ("reason", "ticket")
_SUFFIXES = (".reason", ".ticket")


class BadEntry(Exception):
    """A line that the log cannot have written: *problem* says why, *entry_id* whose it is as far as it can be read."""

    def __init__(self, problem: str, entry_id: str | None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.entry_id = entry_id


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of an export that is well formed and whose opened texts are those the leaf commits to."""

    entry_id: str
    tenant_id: str | None
    leaf_hash: bytes
    withheld: int


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


def read_entries(file: BinaryIO) -> Iterator[Entry]:
    """Yield the entries of the lines after the first; raises BadEntry. Memory is bounded by the longest line."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        try:
            yield _entry(*_split(line))
        except UnicodeDecodeError:
            raise BadEntry("the line is not UTF-8", _id_in(line)) from None
        except NotCanonical as error:
            raise BadEntry(f"the line is {error}", _id_in(line)) from None


def _split(line: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Return the entry of a line, its openings, and the hash of the entry's verbatim bytes."""
    text = line.decode()
    if len(line) > MAX_LINE_BYTES or not text.startswith(_ENTRY):
        raise NotCanonical("not an entry")
    leaf, end = read(text, len(_ENTRY))
    opened, last = read(text, end + len(_OPEN))
    if not text.startswith(_OPEN, end) or text[last:] not in {"}\n", "}"}:
        raise NotCanonical("not an entry and its openings")
    if not _object(leaf).keys() >= {"entry_id", "properties"}:
        raise NotCanonical("not an entry")
    # Decoding UTF-8 and encoding it again changes nothing: these are the bytes of the file.
    return _object(leaf), _object(opened), sha256(b"\x00" + text[len(_ENTRY) : end].encode()).digest()


def _entry(leaf: dict[str, Any], opened: dict[str, Any], hashed: bytes) -> Entry:
    entry_id = str(leaf["entry_id"])
    committed = {name: _salted_hash(value, name, entry_id) for name, value in _commitments(leaf).items()}
    for field, opening in opened.items():
        if not _opens(opening, committed.pop(field, None)):
            raise BadEntry(f"the text of {field} is not the one that was written", entry_id)
    return Entry(entry_id, leaf.get("tenant_id"), hashed, len(committed))


def _commitments(leaf: dict[str, Any]) -> dict[str, Any]:
    """Return what stands in *leaf* for its committed texts, by the name an opening has for them."""
    properties = _object(leaf["properties"])
    named = {name: leaf.get(name) for name in _TEXTS}
    named |= {f"properties.{key}": value for key, value in properties.items() if key.endswith(_SUFFIXES)}
    return {name: value for name, value in named.items() if value is not None}


def _salted_hash(value: Any, name: str, entry_id: str) -> str:
    match value:
        case {"salted_sha256": str() as digest, **rest} if not rest and _HASH.fullmatch(digest):
            return digest
        case _:
            raise BadEntry(f"{name} is not a salted hash", entry_id)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise NotCanonical("not an entry and its openings")
    return cast("dict[str, Any]", value)


def _id_in(line: bytes) -> str | None:
    """Guess the entry's id in a line that cannot be read as a whole."""
    found = _ENTRY_ID.search(line)
    return found[1].decode() if found else None


def _opens(opening: Any, expected: str | None) -> bool:
    # The salt's length is fixed: else the beginning of a text could be passed off as a part of the salt.
    match opening:
        case [str() as salt, str() as text] if _SALT.fullmatch(salt):
            return sha256(bytes.fromhex(salt) + text.encode()).hexdigest() == expected
        case _:
            return False
