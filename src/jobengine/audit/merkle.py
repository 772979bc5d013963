"""The Merkle tree of RFC 9162 section 2.1: growing it, proving from it, and checking the proofs.

A tree is kept as its *frontier* (the roots of its maximal complete subtrees) and, for proofs, as the roots of all its
complete subtrees: node (level, index) covers the leaves from ``index << level`` up to ``index + 1 << level``, so level
0 are the leaf hashes. Nodes never change once they exist, whatever is appended.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain

Node = tuple[int, int]

HASH_BYTES = 32
EMPTY_ROOT = sha256(b"").digest()


def leaf_hash(leaf: bytes) -> bytes:
    """Return the hash of a leaf (RFC 9162 section 2.1.1).

    >>> leaf_hash(b"").hex()[:16]
    '6e340b9cffb37a98'
    """
    return sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of the node above *left* and *right* (RFC 9162 section 2.1.1)."""
    return sha256(b"\x01" + left + right).digest()


@dataclass(frozen=True, slots=True)
class Frontier:
    """All that is needed to append to a tree and know its root: one hash for each 1 bit of *size*, largest first.

    >>> tree = Frontier().extend([leaf_hash(b"a"), leaf_hash(b"b"), leaf_hash(b"c")])
    >>> tree.size, len(tree.hashes), tree.root() == node_hash(*tree.hashes)
    (3, 2, True)
    """

    size: int = 0
    hashes: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if self.size < 0 or len(self.hashes) != self.size.bit_count():
            raise ValueError(f"{len(self.hashes)} hashes are not the frontier of {self.size} leaves")
        if any(len(item) != HASH_BYTES for item in self.hashes):
            raise ValueError(f"a hash has {HASH_BYTES} bytes")

    def append(self, hashed: bytes) -> "Frontier":
        """Return the frontier with one more leaf hash."""
        return self.extend((hashed,))

    def extend(self, leaf_hashes: Iterable[bytes]) -> "Frontier":
        """Return the frontier with *leaf_hashes* appended in order."""
        return new_nodes(self, leaf_hashes)[0]

    def root(self) -> bytes:
        """Return the root hash of the tree; that of the empty tree is SHA-256 of nothing."""
        return _fold(self.hashes) if self.hashes else EMPTY_ROOT


def new_nodes(frontier: Frontier, leaf_hashes: Iterable[bytes]) -> tuple[Frontier, dict[Node, bytes]]:
    """Append *leaf_hashes*; return the new frontier and every node above the leaves that became complete.

    >>> grown, nodes = new_nodes(Frontier(), [leaf_hash(b"a"), leaf_hash(b"b"), leaf_hash(b"c")])
    >>> list(nodes)
    [(1, 0)]
    """
    size, stack = frontier.size, list(frontier.hashes)
    nodes: dict[Node, bytes] = {}
    for leaf in leaf_hashes:
        hashed, level, index = leaf, 0, size
        while index & 1:  # a right child: its parent is complete
            hashed = sha256(b"\x01" + stack.pop() + hashed).digest()
            level, index = level + 1, index >> 1
            nodes[level, index] = hashed
        stack.append(hashed)
        size += 1
    return Frontier(size, tuple(stack)), nodes


def frontier_nodes(size: int) -> list[Node]:
    """List the nodes whose hashes are the frontier of a tree of *size* leaves.

    >>> frontier_nodes(7)
    [(2, 0), (1, 2), (0, 6)]
    """
    return list(_complete_nodes((0, size)))


def subtree_root(leaf_hashes: Sequence[bytes]) -> bytes:
    """Return the root of the tree over *leaf_hashes* (MTH of RFC 9162 section 2.1.1)."""
    return Frontier().extend(leaf_hashes).root()


def inclusion_proof(index: int, size: int, node: Callable[[int, int], bytes]) -> list[bytes]:
    """Prove that leaf *index* is in the tree of *size* leaves (PATH of RFC 9162 section 2.1.3.1).

    *node* gives the hash of a complete subtree by level and index; it is asked for `inclusion_nodes` only.
    Raises ValueError when there is no such leaf.
    """
    return [_range_root(covered, node) for covered in _inclusion_ranges(index, size)]


def inclusion_nodes(index: int, size: int) -> list[Node]:
    """List the nodes that `inclusion_proof` asks for, so that a store can fetch them at once: O(log size).

    >>> inclusion_nodes(0, 7)
    [(0, 1), (1, 1), (1, 2), (0, 6)]
    """
    return list(chain.from_iterable(map(_complete_nodes, _inclusion_ranges(index, size))))


def consistency_proof(first: int, second: int, node: Callable[[int, int], bytes]) -> list[bytes]:
    """Prove that the tree of *second* leaves begins with the tree of *first* (PROOF of RFC 9162 section 2.1.4.1).

    *node* is asked for `consistency_nodes` only; nothing is to be proved from an empty tree or between equal ones.
    Raises ValueError unless 0 <= first <= second.
    """
    return [_range_root(covered, node) for covered in _consistency_ranges(first, second)]


def consistency_nodes(first: int, second: int) -> list[Node]:
    """List the nodes that `consistency_proof` asks for: O(log second).

    >>> consistency_nodes(3, 7)
    [(0, 2), (0, 3), (1, 0), (1, 2), (0, 6)]
    """
    return list(chain.from_iterable(map(_complete_nodes, _consistency_ranges(first, second))))


def verify_inclusion(index: int, size: int, hashed: bytes, proof: Sequence[bytes], root: bytes) -> bool:
    """Tell whether *proof* shows leaf hash *hashed* at *index* of the tree with *root* (RFC 9162 section 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    position, last, computed = index, size - 1, hashed
    for item in proof:
        if last == 0:
            return False
        if position & 1 or position == last:
            computed = node_hash(item, computed)
            position, last = _skip_lone(position, last)
        else:
            computed = node_hash(computed, item)
        position, last = position >> 1, last >> 1
    return last == 0 and computed == root


def verify_consistency(first: int, second: int, first_root: bytes, second_root: bytes, proof: Sequence[bytes]) -> bool:
    """Tell whether *proof* shows that the second tree extends the first (RFC 9162 section 2.1.4.2)."""
    if not 0 < first < second:  # nothing to be proved, or nothing to prove it from
        expected = {0: EMPTY_ROOT, second: second_root}.get(first)
        return first_root == expected and not proof
    # Where the first tree is one complete subtree of the second, its root is not sent.
    path = proof if first & (first - 1) else [first_root, *proof]
    return bool(path) and _climb(first, second, path) == (first_root, second_root)


def _climb(first: int, second: int, path: Sequence[bytes]) -> tuple[bytes, bytes] | None:
    """Return both roots as *path* gives them; None when it is too long or too short."""
    old = new = path[0]
    position, last = _skip_right(first - 1, second - 1)
    for item in path[1:]:
        if last == 0:
            return None
        if position & 1 or position == last:
            old, new = node_hash(item, old), node_hash(item, new)
            position, last = _skip_lone(position, last)
        else:
            new = node_hash(new, item)
        position, last = position >> 1, last >> 1
    return (old, new) if last == 0 else None


def _skip_lone(position: int, last: int) -> tuple[int, int]:
    """Climb while the node is the last of an uneven level: it has no sibling there."""
    while position and not position & 1:
        position, last = position >> 1, last >> 1
    return position, last


def _skip_right(position: int, last: int) -> tuple[int, int]:
    while position & 1:
        position, last = position >> 1, last >> 1
    return position, last


def _inclusion_ranges(index: int, size: int) -> list[tuple[int, int]]:
    if not 0 <= index < size:
        raise ValueError(f"no leaf {index} in a tree of {size}")
    ranges: list[tuple[int, int]] = []
    start, end = 0, size
    while end - start > 1:
        split = _split(start, end)
        if index < split:
            ranges.append((split, end))
            end = split
        else:
            ranges.append((start, split))
            start = split
    return ranges[::-1]


def _consistency_ranges(first: int, second: int) -> list[tuple[int, int]]:
    if not 0 <= first <= second:
        raise ValueError(f"a tree of {second} does not begin with one of {first}")
    if first == 0:
        return []
    ranges: list[tuple[int, int]] = []
    start, end = 0, second
    while end != first:
        split = _split(start, end)
        if first <= split:
            ranges.append((split, end))
            end = split
        else:
            ranges.append((start, split))
            start = split
    # A subtree that begins at 0 is the first tree itself: the verifier has its root.
    return ranges[::-1] if start == 0 else [(start, end), *ranges[::-1]]


def _split(start: int, end: int) -> int:
    """Return where the right subtree begins: after the largest power of two below the width."""
    return start + (1 << (end - start - 1).bit_length() - 1)


def _complete_nodes(covered: tuple[int, int]) -> Iterator[Node]:
    start, end = covered
    while start < end:
        level = (end - start).bit_length() - 1
        yield level, start >> level
        start += 1 << level


def _range_root(covered: tuple[int, int], node: Callable[[int, int], bytes]) -> bytes:
    return _fold([node(level, index) for level, index in _complete_nodes(covered)])


def _fold(roots: Sequence[bytes]) -> bytes:
    root = roots[-1]
    for left in reversed(roots[:-1]):
        root = node_hash(left, root)
    return root
