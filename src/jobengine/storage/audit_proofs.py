"""Proofs from the stored tree: each needs a few nodes, which one query fetches."""

from collections.abc import Sequence
from dataclasses import dataclass

from jobengine.audit.merkle import (
    Frontier,
    Node,
    consistency_nodes,
    consistency_proof,
    frontier_nodes,
    inclusion_nodes,
    inclusion_proof,
)
from jobengine.audit.tiles import Tile
from jobengine.errors import Conflict, JobengineError, NotFound, ValidationFailed
from jobengine.storage.audit import LogHead, read_head
from jobengine.storage.database import Transaction


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """Shows that one entry is the leaf *leaf_index* of the tree of *head* (RFC 9162 section 2.1.3)."""

    leaf_index: int
    head: LogHead
    hashes: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class ConsistencyProof:
    """Shows that the tree of *to_size* leaves continues that of *from_size* (RFC 9162 section 2.1.4)."""

    from_size: int
    from_root: bytes
    to_size: int
    to_root: bytes
    hashes: Sequence[bytes]
    head: LogHead


async def prove_inclusion(tx: Transaction, entry_id: str) -> InclusionProof:
    """Prove that an entry is in the log; raises NotFound, and Conflict while the entry waits for its place."""
    entry = await tx.find("audit_get", entry_id=entry_id)
    if entry is None:
        raise NotFound("there is no such audit entry")
    place: int | None = entry["sequence"]
    if place is None:
        raise Conflict("the entry waits for its place in the tree, which takes a second at the most; ask again")
    # After the place, never before it: the head may have moved in between, and must be past the place.
    head = await read_head(tx)
    if place >= head.size:
        raise _damaged()
    stored = await _stored(tx, inclusion_nodes(place, head.size))
    return InclusionProof(place, head, inclusion_proof(place, head.size, lambda level, index: stored[level, index]))


async def prove_consistency(tx: Transaction, from_size: int, to_size: int | None) -> ConsistencyProof:
    """Prove that the log of *to_size* entries (None: of all) begins with that of *from_size*.

    Raises ValidationFailed unless 0 <= from <= to <= the size of the log.
    """
    head = await read_head(tx)
    to_size = head.size if to_size is None else to_size
    for name, size, most in (("to", to_size, head.size), ("from", from_size, to_size)):
        if not 0 <= size <= most:
            raise ValidationFailed(name, f"must be a number of entries from 0 to {most}")
    fronts = {size: frontier_nodes(size) for size in (from_size, to_size)}
    wanted = {*consistency_nodes(from_size, to_size), *fronts[from_size], *fronts[to_size]}
    stored = await _stored(tx, list(wanted))
    roots = [Frontier(size, tuple(stored[node] for node in fronts[size])).root() for size in (from_size, to_size)]
    hashes = consistency_proof(from_size, to_size, lambda level, index: stored[level, index])
    return ConsistencyProof(from_size, roots[0], to_size, roots[1], hashes, head)


async def root_at(tx: Transaction, size: int) -> bytes:
    """Return the root over the first *size* entries, from the stored nodes; raises JobengineError without them."""
    nodes = frontier_nodes(size)
    stored = await _stored(tx, nodes)
    return Frontier(size, tuple(stored[node] for node in nodes)).root()


async def read_tile(tx: Transaction, tile: Tile) -> bytes:
    """Return the bytes of a tile (C2SP tlog-tiles); raises NotFound for one that the tree has not grown to yet."""
    head = await read_head(tx)
    if not tile.is_within(head.size):
        raise NotFound("the tree has not grown to this tile")
    nodes = tile.nodes()
    stored = await _stored(tx, nodes)
    return b"".join(stored[node] for node in nodes)


async def read_nodes(tx: Transaction, wanted: Sequence[Node]) -> dict[Node, bytes]:
    """Return those of the *wanted* nodes that are stored."""
    rows = await tx.all(
        "audit_nodes",
        leaves=[index for level, index in wanted if level == 0],
        levels=[level for level, _ in wanted if level],
        indices=[index for level, index in wanted if level],
    )
    return {(row["level"], row["index"]): row["hash"] for row in rows}


async def _stored(tx: Transaction, wanted: Sequence[Node]) -> dict[Node, bytes]:
    found = await read_nodes(tx, wanted)
    if len(found) < len(wanted):
        raise _damaged()
    return found


def _damaged() -> JobengineError:
    return JobengineError("the stored tree is damaged; GET /audit/verify tells where")
