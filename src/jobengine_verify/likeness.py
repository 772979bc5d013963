"""Lines like one that was checked in full: one expression shows it, at a tenth of the cost.

Most lines of an export differ from another one in their values alone. From a line that was read, found canonical and
compared with its commitments, an expression is made: the same members in the same order, the same tenant, and in place
of each value any value of its kind in its one spelling. A line that matches it is canonical for the same reasons. The
hashes are computed for every line. Whatever does not match, or does not open, is left to the full check, which judges.
"""

import re
from binascii import unhexlify
from collections import defaultdict
from collections.abc import Callable, Collection
from hashlib import sha256
from typing import Any, cast

from jobengine_verify.canonical import write

TEXTS = ("reason", "ticket")
SUFFIXES = (".reason", ".ticket")
COMMITMENT = "salted_sha256"

_MOST_LIKES = 256  # so that a file of nothing but differences costs no more than this many expressions,
_MOST_CHARACTERS = 8192  # none of them long
_BEFORE_ACTION = '{"entry":{"action":"'
_ACTION = len(_BEFORE_ACTION)

# All are possessive or of fixed length: no text makes them look twice.
_STRING = '"[^"]*+"'
_NUMBER = r"(?:0|-?[1-9][0-9]{0,14}+(?![0-9.])|-?(?:0|[1-9][0-9]{0,8}+)\.[0-9]{0,5}[1-9])"
_BOOLEAN = "(?:true|false)"
_HASH = "[0-9a-f]{64}"
# Any characters, because they are compared with what the text and its salt hash to.
_OPENED_HASH = "(.{64})"
_OPENING = r'\["([0-9a-f]{32})","([^"]*+)"\]'
# What a string may hold only in another spelling; the end of a line stands in none.
# Each of them becomes a space, which none of them is.
_SPELLED = bytes(
    ord(" ") if chr(code) == "\\" or (code < ord(" ") and chr(code) != "\n") else code for code in range(256)
)


class Like:
    """What lines must match, where in them the *openings* are, and how many commitments are *closed*."""

    def __init__(self, leaf: dict[str, Any], opened: Collection[str]) -> None:
        size = len(opened)
        entry = _leaf(leaf, opened)
        openings = ",".join(f"{re.escape(write(field))}:{_OPENING}" for field in opened)
        self.match = re.compile(rf'\{{"entry":({entry}),"open":\{{{openings}\}}\}}', re.DOTALL).fullmatch
        # Where in a match the hash, the salt and the text of each opening are.
        self.openings = [(1 + place, size + 1 + 2 * place, size + 2 + 2 * place) for place in range(size)]
        self.closed = len(commitments(leaf)) - size


class Likeness:
    """The expressions learned so far, those of an action together; *closed* counts texts that were not opened."""

    def __init__(self) -> None:
        self.closed = 0
        self._likes: defaultdict[str, list[Like]] = defaultdict(list)
        self._room = _MOST_LIKES

    def learn(self, line: str, leaf: dict[str, Any], opened: dict[str, Any]) -> None:
        """Make the expression of *line*, which was checked in full and holds *leaf* and *opened*."""
        if not self._room or len(line) > _MOST_CHARACTERS or not line.startswith(_BEFORE_ACTION):
            return
        if [field for field in commitments(leaf) if field in opened] == list(opened):
            self._room -= 1
            self._likes[line[_ACTION : line.find('"', _ACTION)]].insert(0, Like(leaf, opened))

    def leaf_hash(self, line: str) -> bytes | None:
        """Return the leaf hash of a plain line that is like another and whose texts are as committed to, else None."""
        for like in self._likes.get(line[_ACTION : line.find('"', _ACTION)], ()):
            if found := like.match(line):
                parts = found.groups()
                for expected, salt, text in like.openings:
                    if sha256(unhexlify(parts[salt]) + parts[text].encode()).hexdigest() != parts[expected]:
                        return None
                self.closed += like.closed
                return sha256(b"\x00" + parts[0].encode()).digest()
        return None


def is_plain(lines: bytes) -> bool:
    """Tell whether no string in *lines* holds a control character or an escape: only then `Likeness` may be asked."""
    return lines.translate(_SPELLED) == lines


def commitments(leaf: dict[str, Any]) -> dict[str, Any]:
    """Return what stands in *leaf* for its committed texts, by the field of their openings, in the leaf's order."""
    found: dict[str, Any] = {}
    for name, value in leaf.items():
        if name == "properties":
            properties = cast("dict[str, Any]", value).items()
            found |= {f"properties.{key}": value for key, value in properties if key.endswith(SUFFIXES)}
        elif name in TEXTS:
            found[name] = value
    return {field: value for field, value in found.items() if value is not None}


def _leaf(leaf: dict[str, Any], opened: Collection[str]) -> str:
    def text(field: str, value: object) -> str:
        if value is None:
            return "null"
        return rf'\{{"{COMMITMENT}":"{_OPENED_HASH if field in opened else _HASH}"\}}'

    def carried(key: str, value: Any) -> str:
        return text(f"properties.{key}", value) if key.endswith(SUFFIXES) else _any(value)

    def member(name: str, value: Any) -> str:
        if name in TEXTS:
            return text(name, value)
        if name == "properties":
            return _object(value, carried)
        return re.escape(write(value)) if name == "tenant_id" else _any(value)

    return _object(leaf, member)


def _object(members: dict[str, Any], member: Callable[[str, Any], str]) -> str:
    parts = [f"{re.escape(write(name))}:{member(name, value)}" for name, value in members.items()]
    return rf"\{{{','.join(parts)}\}}"


def _any(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return _BOOLEAN
        case int() | float():
            return _NUMBER
        case str():
            return _STRING
        case dict():
            return _object(cast("dict[str, Any]", value), lambda _, item: _any(item))
        case _:
            return r"\[" + ",".join(map(_any, value)) + r"\]"
