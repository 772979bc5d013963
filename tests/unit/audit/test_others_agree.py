"""Trees, proofs and notes of implementations that are not ours."""

from itertools import pairwise

import pymerkle
import pytest
from pymerkle import InmemoryTree

from jobengine.audit.checkpoint import parse_checkpoint, parse_verifier_key, verify_text
from jobengine.audit.merkle import (
    Frontier,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    new_nodes,
    verify_consistency,
    verify_inclusion,
)
from jobengine_verify.notes import CannotCheck, open_checkpoint, parse_key
from jobengine_verify.tree import Tree

SIZE = 1_025
LEAVES = [leaf_hash(number.to_bytes(2)) for number in range(SIZE)]
NODES = new_nodes(Frontier(), LEAVES)[1]

# Checkpoints that the log of golang.org/x/mod/sumdb published, made by the first implementation of signed notes.
GO_KEY = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
GO_CHECKPOINTS = [
    (
        3935567,
        "SapHtgdNCeF00Cx8kqztePV24kgzNg++Xovae42HAMw=",
        "Az3grsm7Wm4CVNR1RHq9BFnu9jzcRlU2uw7lr0gfUWgO6+rqPNjT+fUTl9gH0NRTgdwW9nItuQSMbhSaLCsk8YeYSAs=",
    ),
    (
        6476701,
        "mb8QLQIs0Z0yP5Cstq6guj87oXWeC9gEM8oVikmm9Wk=",
        "Az3grsLX85Gz+s1SiTbgkuqxgItqFq7gsMUEyVnrsa9LM7Us9S+1xbFIGu95949rj4nPRYfvimWEPWL+o3GeoWwOoAw=",
    ),
    (
        15067302,
        "gJyioq6dwR9n+NjEWORfYmH+ubeYm3kH42BBQ0bTpYI=",
        "Az3grp1rvWOs5NKlr/xR4GLN/CDyzzakmt1o61uSxYKpK1SerqOP2ClbX/peKUZjYnyomH5Xz7GZG3TpB7OeKn4E2ww=",
    ),
    (
        28891140,
        "++pUIeKTwGvykMUkmM3AT97PwQipMT6H/p7t86E0Sp0=",
        "Az3grqNvOILDz7xwAKugtVFZwd+I9IyB/mHrUYzcVaS9zKsRVdRLNGLFpnAcLhyoBBkdIYEzK/+7Eu4wanYttLrPsQo=",
    ),
    (
        65209736,
        "5+uGFjx6xBZG8ip1+wi77v+grwbhhukIrxEUS8PXvRo=",
        "Az3grnbssgK7ubgFX36gVETtNv0U23qxyAhAMai2QUfeGa3nB/akvkMdlUErfcZz7l/R3cVtYspg3dxXABkGZZKdsQ8=",
    ),
]


def node(level: int, index: int) -> bytes:
    return NODES[level, index] if level else LEAVES[index]


@pytest.fixture(scope="module")
def oracle() -> InmemoryTree:
    """The same leaves in a tree of pymerkle."""
    tree = InmemoryTree("sha256")
    for number in range(SIZE):
        tree.append_entry(number.to_bytes(2))
    return tree


def roots() -> list[bytes]:
    """Return the roots of the first 0 to 1,025 leaves, as the service grows them."""
    grown = [Frontier()]
    for leaf in LEAVES:
        grown.append(grown[-1].append(leaf))
    return [frontier.root() for frontier in grown]


def test_roots_are_those_of_pymerkle(oracle: InmemoryTree) -> None:
    """For 1 to 1,025 leaves, in the service and in the verifier."""
    tree = Tree()
    for size, root in enumerate(roots()[1:], 1):
        tree.extend([LEAVES[size - 1]])

        assert oracle.get_root(size) == root == tree.root(), size


def test_inclusion_proofs_are_those_of_pymerkle(oracle: InmemoryTree) -> None:
    """For trees of 1 to 1,025 leaves: the first leaf, one in the middle, and the last."""
    for size, root in enumerate(roots()[1:], 1):
        for index in {0, size * 5 // 7, size - 1}:
            proof = inclusion_proof(index, size, node)
            theirs = oracle.prove_inclusion(index + 1, size).serialize()["path"]

            # Theirs begins with the leaf, and orders the others by its own rule.
            assert sorted(theirs) == sorted(hashed.hex() for hashed in [LEAVES[index], *proof]), (size, index)
            assert verify_inclusion(index, size, LEAVES[index], proof, root)


def test_consistency_proofs_of_pymerkle_hold_between_our_roots(oracle: InmemoryTree) -> None:
    """For trees of 2 to 1,025 leaves: from the tree before, from a half, and from one leaf, as do ours."""
    known = roots()
    for size in range(2, SIZE + 1):
        for first in {1, (size + 1) // 2, size - 1}:
            proof = consistency_proof(first, size, node)

            # Theirs cuts the later tree in another way than RFC 9162, and raises where it does not hold.
            pymerkle.verify_consistency(known[first], known[size], oracle.prove_consistency(first, size))
            assert verify_consistency(first, size, known[first], known[size], proof)


@pytest.mark.parametrize(("size", "root", "signature"), GO_CHECKPOINTS)
def test_checkpoints_of_another_log_verify(size: int, root: str, signature: str) -> None:
    """Size, root and signature of checkpoints that were published, and not one of them with another size."""
    text = f"go.sum database tree\n{size}\n{root}\n"
    published = f"{text}\n— sum.golang.org {signature}\n"

    assert verify_text(published, parse_verifier_key(GO_KEY)) == text
    with pytest.raises(Exception, match="did not sign"):
        verify_text(published.replace(f"\n{size}\n", f"\n{size + 1}\n"), parse_verifier_key(GO_KEY))
    # That log signs under another name than its origin, which ours never do: the signature is good, the log is not.
    with pytest.raises(CannotCheck, match=r"the checkpoint is of the log go\.sum database tree"):
        open_checkpoint(published, parse_key(GO_KEY))


def test_published_checkpoints_grow() -> None:
    """Their texts are read as checkpoints: in the order of their sizes, each with its root."""
    read = [parse_checkpoint(f"sum.golang.org\n{size}\n{root}\n") for size, root, _ in GO_CHECKPOINTS]

    assert all(earlier.size < later.size for earlier, later in pairwise(read))
    assert len({checkpoint.root for checkpoint in read}) == len(read)
