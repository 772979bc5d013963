"""The vectors of docs/ledger.md, against the service and against the offline verifier."""

import json
from datetime import datetime
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jobengine.audit.actions import Action, Outcome
from jobengine.audit.checkpoint import parse_checkpoint, parse_verifier_key, sign_text, verifier_key, verify_text
from jobengine.audit.merkle import (
    Frontier,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    new_nodes,
    subtree_root,
    verify_consistency,
    verify_inclusion,
)
from jobengine.audit.model import Actor, AuditEntry, Opening, Resource, commitment, restore, seal
from jobengine.clock import parse_time
from jobengine_verify.canonical import write
from jobengine_verify.notes import open_checkpoint, parse_key
from jobengine_verify.tree import Tree
from jobengine_verify.verify import Among, Intact, Missing, Named, Tampered, check_export

FOLDER = Path(__file__).parents[2] / "vectors"
Vector = dict[str, Any]


def vectors(kind: str) -> Any:
    texts = [file.read_text("utf-8") for file in sorted(FOLDER.glob(f"[0-9][0-9]-{kind}-*.json"))]
    assert texts
    return pytest.mark.parametrize("vector", [json.loads(text) for text in texts], ids=lambda _: kind)


def test_there_are_twenty_two_vectors_of_known_kinds() -> None:
    """No file lies in the folder that no test reads, but the one that explains the others."""
    kinds = [file.name.split("-")[1] for file in FOLDER.iterdir() if file.name != "README.md"]

    assert len(kinds) == 22
    assert set(kinds) == {"leaf", "tree", "nodes", "inclusion", "consistency", "note", "export"}


@vectors("leaf")
def test_an_entry_seals_to_the_leaf_of_the_vector(vector: Vector) -> None:
    """Entry and salts give the leaf, its hash, and the openings; leaf and openings give the view."""
    salts = iter(vector["salts"])
    sealed = seal(entry_of(vector["entry"]), lambda: bytes.fromhex(next(salts)))
    kept = [opening for opening in sealed.openings if opening.field in vector["kept"]]

    assert sealed.leaf.decode() == vector["leaf"]
    assert sealed.leaf_hash.hex() == vector["leaf_hash"]
    assert [[item.field, item.salt.hex(), item.text] for item in sealed.openings] == vector["openings"]
    assert restore(sealed.leaf, kept, vector["view"]["sequence"]) == vector["view"]


@vectors("leaf")
def test_the_leaf_of_a_vector_checks_without_the_service(vector: Vector) -> None:
    """The verifier's writer and a bare hash function come to the same bytes."""
    leaf = json.loads(vector["leaf"])
    committed = {f"properties.{key}": value for key, value in leaf["properties"].items()} | leaf

    assert write(leaf) == vector["leaf"]
    assert sha256(b"\x00" + vector["leaf"].encode()).hexdigest() == vector["leaf_hash"]
    for field, salt, text in vector["openings"]:
        assert committed[field] == commitment(Opening(field, bytes.fromhex(salt), text))


def entry_of(members: Vector) -> AuditEntry:
    made: Vector = {
        "occurred_at": parse_time(members["occurred_at"]),
        "action": Action(members["action"]),
        "outcome": Outcome(members["outcome"]),
        "actor": Actor(**members["actor"]),
        "resource": Resource(**members["resource"]) if members["resource"] else None,
    }
    assert isinstance(made["occurred_at"], datetime)
    return AuditEntry(**(members | made))


@vectors("tree")
def test_leaves_grow_to_the_roots_of_the_vector(vector: Vector) -> None:
    """Each prefix of the leaves has its root, in service and verifier."""
    hashes, tree = [leaf_hash(bytes.fromhex(leaf)) for leaf in vector["leaves"]], Tree()
    roots = [tree.root().hex()]
    for hashed in hashes:
        tree.extend([hashed])
        roots.append(tree.root().hex())

    assert [hashed.hex() for hashed in hashes] == vector["leaf_hashes"]
    assert [subtree_root(hashes[:size]).hex() for size in range(len(hashes) + 1)] == vector["roots"]
    assert roots == vector["roots"]


@vectors("nodes")
def test_leaves_complete_the_nodes_of_the_vector(vector: Vector) -> None:
    """The stored form of a tree is its frontier and its complete subtrees."""
    frontier, nodes = new_nodes(Frontier(), [leaf_hash(bytes.fromhex(leaf)) for leaf in vector["leaves"]])

    assert {f"{level}/{index}": hashed.hex() for (level, index), hashed in nodes.items()} == vector["nodes"]
    assert [hashed.hex() for hashed in frontier.hashes] == vector["frontier"]


BYTES = [leaf_hash(bytes([number])) for number in range(21)]


def node(level: int, index: int) -> bytes:
    return subtree_root(BYTES[index << level : index + 1 << level])


@vectors("inclusion")
def test_inclusion_proofs_are_those_of_the_vector(vector: Vector) -> None:
    """Each proof is made and accepted as published."""
    size, root = vector["size"], bytes.fromhex(vector["root"])
    for case in vector["proofs"]:
        proof = [bytes.fromhex(item) for item in case["hashes"]]

        assert inclusion_proof(case["index"], size, node) == proof
        assert verify_inclusion(case["index"], size, bytes.fromhex(case["leaf_hash"]), proof, root)


@vectors("consistency")
def test_consistency_proofs_are_those_of_the_vector(vector: Vector) -> None:
    """Each proof is made and accepted as published."""
    size, root = vector["size"], bytes.fromhex(vector["root"])
    for case in vector["proofs"]:
        proof = [bytes.fromhex(item) for item in case["hashes"]]

        assert consistency_proof(case["from"], size, node) == proof
        assert verify_consistency(case["from"], size, bytes.fromhex(case["root"]), root, proof)


@vectors("note")
def test_a_text_is_signed_to_the_note_of_the_vector(vector: Vector) -> None:
    """Seed, name and text give the note and the vkey, and the note verifies."""
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector["seed"]))

    assert sign_text(vector["text"], vector["signer"], key) == vector["note"]
    assert str(verifier_key(vector["signer"], key)) == vector["vkey"]
    assert verify_text(vector["note"], parse_verifier_key(vector["vkey"])) == vector["text"]


def test_the_checkpoint_of_the_vectors_is_that_of_their_tree() -> None:
    """The signed root is the one the twenty-one bytes grow to."""
    vector = json.loads(next(FOLDER.glob("*-note-checkpoint.json")).read_text("utf-8"))
    opened = open_checkpoint(vector["note"], parse_key(vector["vkey"]))

    assert (opened.size, opened.root) == (21, subtree_root(BYTES))
    assert parse_checkpoint(vector["text"]).root == opened.root


@vectors("export")
def test_an_export_is_judged_as_the_vector_says(vector: Vector) -> None:
    """Exit code and first bad entry are those published."""
    key = parse_key(vector["vkey"])
    since = open_checkpoint(vector["since"], key) if vector["since"] else None

    tiles = BytesIO(bytes.fromhex(vector["tiles"])) if "tiles" in vector else None

    outcome = check_export(BytesIO(vector["export"].encode()), key, since, tiles)

    assert (vector["exit"], vector["first_bad"]) == judged(outcome)


def judged(outcome: Intact | Tampered) -> tuple[int, int | list[int] | None]:
    match outcome:
        case Tampered(first_bad=Named(index) | Missing(index)):
            return 1, index
        case Tampered(first_bad=Among(first, last)):
            return 1, [first, last]
        case Tampered():
            return 1, None
        case Intact():
            return 0, None
