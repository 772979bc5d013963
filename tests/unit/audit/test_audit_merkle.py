from collections.abc import Callable
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymerkle import InmemoryTree

from jobengine.audit.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_nodes,
    consistency_proof,
    inclusion_nodes,
    inclusion_proof,
    leaf_hash,
    new_nodes,
    node_hash,
    subtree_root,
    verify_consistency,
    verify_inclusion,
)
from jobengine_verify.tree import Tree

SIZES = range(131)
LEAVES = [leaf_hash(number.to_bytes(2)) for number in range(max(SIZES))]

# The leaves and roots that Certificate Transparency implementations share.
SHARED_LEAVES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
SHARED_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def defined_root(leaves: list[bytes]) -> bytes:
    """Compute MTH word for word as RFC 9162 section 2.1.1 defines it."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(defined_root(leaves[:split]), defined_root(leaves[split:]))


def stored_nodes(leaves: list[bytes]) -> Callable[[int, int], bytes]:
    _, nodes = new_nodes(Frontier(), leaves)
    return lambda level, index: nodes[level, index] if level else leaves[index]


def flipped(value: bytes, bit: int) -> bytes:
    return (int.from_bytes(value) ^ 1 << bit).to_bytes(len(value))


@pytest.fixture(scope="module")
def roots() -> list[bytes]:
    return [subtree_root(LEAVES[:size]) for size in SIZES]


def test_roots_are_those_other_implementations_share() -> None:
    """The published leaves give the published roots."""
    leaves = [leaf_hash(bytes.fromhex(leaf)) for leaf in SHARED_LEAVES]

    assert [subtree_root(leaves[:size]).hex() for size in range(1, 9)] == SHARED_ROOTS


def test_an_empty_tree_hashes_nothing() -> None:
    """The root of no leaves is SHA-256 of the empty string."""
    assert Frontier().root() == EMPTY_ROOT == sha256(b"").digest()


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=140), st.data())
def test_a_frontier_grows_to_the_defined_root(leaves: list[bytes], data: st.DataObject) -> None:
    """However the leaves arrive, the root is that of the definition, and the verifier's tree agrees."""
    cut = data.draw(st.integers(0, len(leaves)))
    tree = Tree()
    tree.extend(leaves[:cut])
    tree.extend(leaves[cut:])

    grown = Frontier().extend(leaves[:cut]).extend(leaves[cut:])

    assert (grown.size, grown.root()) == (len(leaves), defined_root(leaves))
    assert tree.root() == grown.root()


def test_appending_one_by_one_is_extending() -> None:
    """One leaf at a time leads to the same frontier as all at once."""
    tree = Frontier()
    for leaf in LEAVES:
        tree = tree.append(leaf)

    assert tree == Frontier().extend(LEAVES)


def test_another_library_computes_the_same_roots() -> None:
    """For 1 to 257 leaves the root is that of pymerkle."""
    oracle, frontier = InmemoryTree("sha256"), Frontier()
    for number in range(1, 258):
        oracle.append_entry(number.to_bytes(2))
        frontier = frontier.append(leaf_hash(number.to_bytes(2)))

        assert frontier.root() == oracle.get_root(number)


@pytest.mark.parametrize(
    ("size", "hashes"), [(1, ()), (2, (EMPTY_ROOT, EMPTY_ROOT)), (-1, ()), (1, (b"short",)), (0, (EMPTY_ROOT,))]
)
def test_hashes_that_do_not_fit_the_size_are_refused(size: int, hashes: tuple[bytes, ...]) -> None:
    """A stored frontier that cannot be one is noticed before anything is built on it."""
    with pytest.raises(ValueError):
        Frontier(size, hashes)


def test_new_nodes_are_the_roots_of_complete_subtrees() -> None:
    """Each node that completes hashes exactly its own leaves, and each complete subtree appears once."""
    _, nodes = new_nodes(Frontier(), LEAVES[:100])

    assert nodes == {
        (level, index): defined_root(LEAVES[index << level : index + 1 << level])
        for level in range(1, 7)
        for index in range(100 >> level)
    }


@given(st.integers(0, 130), st.integers(0, 130))
def test_steps_complete_each_node_once(first: int, second: int) -> None:
    """Growing in two steps makes the nodes of growing in one, none of them twice."""
    first, second = sorted((first, second))
    middle, early = new_nodes(Frontier(), LEAVES[:first])
    _, late = new_nodes(middle, LEAVES[first:second])

    assert early.keys() & late.keys() == set()
    assert early | late == new_nodes(Frontier(), LEAVES[:second])[1]


@pytest.mark.parametrize("size", SIZES[1:])
def test_every_leaf_is_proved_to_be_in(size: int, roots: list[bytes]) -> None:
    """Inclusion proofs verify for each leaf, and for no other leaf, size, root or length."""
    node = stored_nodes(LEAVES[:size])
    for index in range(size):
        proof = inclusion_proof(index, size, node)

        assert verify_inclusion(index, size, LEAVES[index], proof, roots[size])
        assert not verify_inclusion(index, size, flipped(LEAVES[index], 7), proof, roots[size])
        assert not verify_inclusion(index, size, LEAVES[index], proof, flipped(roots[size], 255))
        assert not verify_inclusion(index, size, LEAVES[index], [*proof, EMPTY_ROOT], roots[size])
        assert not proof or not verify_inclusion(index, size, LEAVES[index], proof[:-1], roots[size])
        assert not verify_inclusion(index ^ 1, size, LEAVES[index], proof, roots[size]) or size == 1


@pytest.mark.parametrize("second", SIZES)
def test_every_earlier_tree_is_proved_to_be_continued(second: int, roots: list[bytes]) -> None:
    """Consistency proofs verify between all sizes, and for no other root or length."""
    node = stored_nodes(LEAVES[:second])
    for first in range(second + 1):
        proof = consistency_proof(first, second, node)

        assert verify_consistency(first, second, roots[first], roots[second], proof)
        assert not verify_consistency(first, second, flipped(roots[first], 0), roots[second], proof)
        assert not verify_consistency(first, second, roots[first], roots[second], [*proof, EMPTY_ROOT])
        if 0 < first < second:
            assert not verify_consistency(first, second, roots[first], flipped(roots[second], 9), proof)
            assert not verify_consistency(first, second, roots[first], roots[second], proof[1:])
            assert not verify_consistency(first, second, roots[first], roots[second], proof[:-1])


@pytest.mark.parametrize("size", range(2, 12))
def test_no_bit_of_a_proof_can_flip(size: int, roots: list[bytes]) -> None:
    """Each single bit of each proof counts."""
    node = stored_nodes(LEAVES[:size])
    for place in range(1, size):
        inclusion, consistency = inclusion_proof(place, size, node), consistency_proof(place, size, node)
        for position, bit in [(position, bit) for position in range(len(inclusion)) for bit in range(256)]:
            changed = [flipped(item, bit) if at == position else item for at, item in enumerate(inclusion)]

            assert not verify_inclusion(place, size, LEAVES[place], changed, roots[size])
        for position, bit in [(position, bit) for position in range(len(consistency)) for bit in range(256)]:
            changed = [flipped(item, bit) if at == position else item for at, item in enumerate(consistency)]

            assert not verify_consistency(place, size, roots[place], roots[size], changed)


@given(st.integers(1, 10**6), st.data())
def test_a_proof_reads_logarithmically_many_nodes(size: int, data: st.DataObject) -> None:
    """Even at a million leaves the listed nodes are few, complete, and all that is asked for."""
    index, first = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    asked: list[tuple[int, int]] = []

    def node(level: int, position: int) -> bytes:
        asked.append((level, position))
        return EMPTY_ROOT

    inclusion_proof(index, size, node)
    consistency_proof(first, size, node)

    assert asked == inclusion_nodes(index, size) + consistency_nodes(first, size)
    assert len(asked) <= 4 * 20
    assert all(position + 1 << level <= size for level, position in asked)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (5, 5), (-1, 5)])
def test_a_leaf_outside_the_tree_has_no_proof(index: int, size: int) -> None:
    """Nothing is proved, or accepted, beyond the tree."""
    with pytest.raises(ValueError):
        inclusion_nodes(index, size)

    assert not verify_inclusion(index, size, EMPTY_ROOT, [], EMPTY_ROOT)


@pytest.mark.parametrize(("first", "second"), [(6, 5), (-1, 5)])
def test_a_tree_never_shrinks_in_a_proof(first: int, second: int) -> None:
    """A larger tree cannot be shown to be continued by a smaller one."""
    with pytest.raises(ValueError):
        consistency_nodes(first, second)

    assert not verify_consistency(first, second, EMPTY_ROOT, EMPTY_ROOT, [])
    assert not verify_consistency(first, second, EMPTY_ROOT, EMPTY_ROOT, [EMPTY_ROOT])
