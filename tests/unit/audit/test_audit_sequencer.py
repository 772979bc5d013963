import os
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.audit.samples import ORIGIN, entry_id

from jobengine.audit.checkpoint import Checkpoint
from jobengine.audit.merkle import Frontier, inclusion_proof, leaf_hash, subtree_root, verify_inclusion
from jobengine.audit.sequencer import Head, Row, sequence

EMPTY = Head(ORIGIN, Frontier())
INTAKE = [(entry_id(number), leaf_hash(number.to_bytes(2))) for number in range(200)]


def test_entries_get_their_places_in_order() -> None:
    """The first entry of a log stands at 0, and a later step goes on where the earlier ended."""
    first = sequence(EMPTY, INTAKE[:3])
    second = sequence(first.head, INTAKE[3:5])

    assert first.rows == tuple(Row(place, *INTAKE[place]) for place in range(3))
    assert [row.sequence for row in second.rows] == [3, 4]
    assert second.head.checkpoint() == Checkpoint(ORIGIN, 5, subtree_root([hashed for _, hashed in INTAKE[:5]]))


def test_nothing_waiting_changes_nothing() -> None:
    """An empty step keeps the head, and an empty log has a checkpoint too."""
    step = sequence(EMPTY, [])

    assert (step.rows, step.head, step.nodes) == ((), EMPTY, {})
    assert step.head.checkpoint().size == 0


@given(st.lists(st.integers(0, 200), max_size=6))
def test_batches_do_not_show_in_the_tree(cuts: list[int]) -> None:
    """However the entries are batched, head, rows and nodes are the same."""
    whole = sequence(EMPTY, INTAKE)
    edges = [0, *sorted(cuts), len(INTAKE)]
    head, rows, nodes = EMPTY, (), {}
    for start, end in pairwise(edges):
        step = sequence(head, INTAKE[start:end])
        head, rows, nodes = step.head, rows + step.rows, nodes | step.nodes

    assert (head, rows, nodes) == (whole.head, whole.rows, whole.nodes)


def test_stored_rows_and_nodes_give_proofs() -> None:
    """What a step stores is all that an inclusion proof needs."""
    step = sequence(EMPTY, INTAKE)
    proof = inclusion_proof(77, 200, lambda level, at: step.nodes[level, at] if level else step.rows[at].leaf_hash)

    assert verify_inclusion(77, 200, INTAKE[77][1], proof, step.head.checkpoint().root)


@pytest.mark.parametrize("intake", [[INTAKE[0], INTAKE[0]], [(entry_id(1), b"short")], [(entry_id(1), os.urandom(33))]])
def test_a_batch_with_a_fault_places_nothing(intake: list[tuple[str, bytes]]) -> None:
    """An entry that waits twice, or something that is no hash, stops the step."""
    with pytest.raises(ValueError):
        sequence(EMPTY, intake)
