"""Giving entries their place: one pure step from a log's head and its waiting entries to the next head."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jobengine.audit.checkpoint import Checkpoint
from jobengine.audit.merkle import HASH_BYTES, Frontier, Node, new_nodes


@dataclass(frozen=True, slots=True)
class Head:
    """How far a log has grown; *origin* is its name for ever."""

    origin: str
    frontier: Frontier

    def checkpoint(self) -> Checkpoint:
        """Return what is to be signed for this head."""
        return Checkpoint(self.origin, self.frontier.size, self.frontier.root())


class Row(NamedTuple):
    """An entry in its place; *sequence* is the leaf's index, counted from 0."""

    sequence: int
    entry_id: str
    leaf_hash: bytes


@dataclass(frozen=True, slots=True)
class Step:
    """What one step stores: the placed entries, the next head, and the tree nodes that became complete.

    *nodes* hold the levels above the leaves; level 0 are the leaf hashes of the rows.
    """

    rows: tuple[Row, ...]
    head: Head
    nodes: dict[Node, bytes]


def sequence(head: Head, intake: Sequence[tuple[str, bytes]]) -> Step:
    """Append *intake*, pairs of entry id and leaf hash, in its order.

    Raises ValueError for a repeated entry or a hash that is not 32 bytes: nothing of that batch may be stored.
    """
    if len({entry_id for entry_id, _ in intake}) != len(intake):
        raise ValueError("an entry waits twice")
    if any(len(hashed) != HASH_BYTES for _, hashed in intake):
        raise ValueError(f"a leaf hash has {HASH_BYTES} bytes")
    frontier, nodes = new_nodes(head.frontier, (hashed for _, hashed in intake))
    rows = tuple(Row(place, *waiting) for place, waiting in enumerate(intake, head.frontier.size))
    return Step(rows, Head(head.origin, frontier), nodes)
