"""The RFC 9162 tree over leaf hashes, in one pass and little memory, and the tiles that tell where it differs."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from hashlib import sha256
from typing import BinaryIO

HASH_BYTES = 32
_WIDTH = 256


@dataclass(slots=True)
class Tree:
    """A tree that keeps the roots of its complete subtrees of 256 leaves and more, and the leaves after them.

    >>> Tree().root().hex()[:16]
    'e3b0c44298fc1c14'
    """

    size: int = 0
    _roots: list[bytes] = field(default_factory=list[bytes])
    _last: list[bytes] = field(default_factory=list[bytes])

    def extend(self, leaf_hashes: Sequence[bytes]) -> None:
        """Append some leaves."""
        self.size += len(leaf_hashes)
        self._last += leaf_hashes
        while len(self._last) >= _WIDTH:
            node, index = _subtree(self._last[:_WIDTH]), (self.size - len(self._last)) // _WIDTH
            while index % 2:
                node = sha256(b"\x01" + self._roots.pop() + node).digest()
                index //= 2
            self._roots.append(node)
            del self._last[:_WIDTH]

    def root(self) -> bytes:
        """Return the tree hash of all leaves so far."""
        if not self.size:
            return sha256(b"").digest()
        *rest, node = [*self._roots, _subtree(self._last)] if self._last else self._roots
        for left in reversed(rest):
            node = sha256(b"\x01" + left + node).digest()
        return node


def _subtree(level: list[bytes]) -> bytes:
    """Return the root over some leaves: joined in pairs, level after level, an odd one at the end goes up as it is."""
    while len(level) > 1:
        odd = level[len(level) & ~1 :]
        pairs = iter(level)
        level = [sha256(b"\x01" + left + right).digest() for left, right in zip(pairs, pairs, strict=False)] + odd
    return level[0]


class Tiles:
    """The leaf hashes of a log in a file beside its export: they tell where the entries differ, once they are proved.

    They prove nothing themselves; only if their root is one that was signed are they believed.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.first_other: int | None = None
        self._file = file
        self._tree: Tree | None = None

    def compare(self, entries: Tree, leaf_hashes: Sequence[bytes]) -> int | None:
        """Take what is to be appended to *entries* next; return which of them is the first that is not in the tiles."""
        raw = self._file.read(HASH_BYTES * len(leaf_hashes))
        expected = [raw[at : at + HASH_BYTES] for at in range(0, len(raw), HASH_BYTES)]
        if self._tree is not None:
            self._tree.extend(expected)
            return None
        if expected == leaf_hashes:
            return None
        pairs = enumerate(zip(leaf_hashes, [*expected, b""], strict=False))
        place = next(place for place, (found, wanted) in pairs if found != wanted)
        self.first_other = entries.size + place
        self._tree = deepcopy(entries)
        self._tree.extend(expected)
        return place

    def finish(self, entries: Tree) -> Tree:
        """Take what the file of entries lacks, and return the tree of the tiles."""
        if self._tree is None:
            self.first_other = entries.size
            self._tree = deepcopy(entries)
        while raw := self._file.read(HASH_BYTES * _WIDTH):
            self._tree.extend([raw[at : at + HASH_BYTES] for at in range(0, len(raw), HASH_BYTES)])
        return self._tree
