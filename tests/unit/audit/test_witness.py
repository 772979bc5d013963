"""What a witness accepts, and what it signs (C2SP tlog-witness, tlog-cosignature)."""

from collections.abc import Mapping

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jobengine.audit.checkpoint import (
    COSIGNATURE,
    Checkpoint,
    InvalidSignature,
    MalformedNote,
    UnknownSigner,
    parse_verifier_key,
    sign,
    verifier_key,
    verify,
)
from jobengine.audit.merkle import EMPTY_ROOT, Frontier, consistency_proof, leaf_hash, new_nodes
from jobengine.audit.witness import (
    Inconsistent,
    MalformedSubmission,
    NotSigned,
    Stale,
    Submission,
    UnknownLog,
    WitnessRefused,
    cosign,
    judge,
    parse_submission,
    read_cosignature,
    witness_key,
)

ORIGIN = "jobengine/log/1"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
KEYS = {ORIGIN: [verifier_key(ORIGIN, KEY)]}
LEAVES = [leaf_hash(bytes([number])) for number in range(20)]


def head(size: int, leaves: list[bytes] = LEAVES) -> Checkpoint:
    return Checkpoint(ORIGIN, size, Frontier().extend(leaves[:size]).root())


def submitted(old: int, size: int, *, key: Ed25519PrivateKey = KEY, leaves: list[bytes] = LEAVES) -> Submission:
    nodes = {(0, place): hashed for place, hashed in enumerate(leaves)} | new_nodes(Frontier(), leaves)[1]
    proof = consistency_proof(old, size, lambda level, index: nodes[level, index]) if old <= size else []
    return Submission(old, tuple(proof), sign(head(size, leaves), key))


def seen(*heads: Checkpoint) -> Mapping[str, Checkpoint]:
    return {one.origin: one for one in heads}


@pytest.mark.parametrize(("old", "size"), [(0, 0), (0, 1), (0, 20), (1, 2), (7, 7), (7, 20), (8, 16)])
def test_a_log_that_only_grows_is_accepted(old: int, size: int) -> None:
    """From nothing, from any size, and again at the same size; the text of a submission has one reading."""
    shown = submitted(old, size)
    before = seen(head(old)) if old else {}

    assert judge(shown, KEYS, before.get) == head(size)
    assert parse_submission(str(shown)) == shown


FORK = [*LEAVES[:5], leaf_hash(b"another"), *LEAVES[6:]]
REFUSALS: dict[str, tuple[Submission, Checkpoint | None, type[WitnessRefused]]] = {
    "a size that the witness did not see": (submitted(3, 9), head(7), Stale),
    "a first submission with an old size": (submitted(3, 9), None, Stale),
    "an older head": (submitted(5, 5), head(9), Stale),
    "another tree of the same size": (submitted(9, 9, leaves=FORK), head(9), Stale),
    "a fork": (submitted(9, 15, leaves=FORK), head(9), Inconsistent),
    "a proof too much": (Submission(0, (bytes(32),), submitted(0, 9).note), None, Inconsistent),
    "no proof": (Submission(7, (), submitted(7, 9).note), head(7), Inconsistent),
    "an empty tree with a root": (
        Submission(0, (), sign(Checkpoint(ORIGIN, 0, bytes(32)), KEY)), None, Stale,
    ),
    "an old size above the new": (submitted(10, 9), head(10), MalformedSubmission),
    "a stranger's signature": (submitted(0, 9, key=OTHER), None, NotSigned),
    "another log": (Submission(0, (), sign(Checkpoint("x/y", 0, EMPTY_ROOT), KEY)), None, UnknownLog),
    "no note": (Submission(0, (), "x\n"), None, MalformedSubmission),
}  # fmt: skip


@pytest.mark.parametrize(("shown", "latest", "refused"), REFUSALS.values(), ids=REFUSALS)
def test_whatever_does_not_follow_is_refused(
    shown: Submission, latest: Checkpoint | None, refused: type[WitnessRefused]
) -> None:
    """A step back, a fork, a stranger and nonsense, each in its own way; a stale log learns the size to prove from."""
    with pytest.raises(refused) as raised:
        judge(shown, KEYS, seen(*filter(None, [latest])).get)
    if isinstance(raised.value, Stale):
        assert raised.value.size == (latest.size if latest else 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "old 1",
        "old 01\n\nx",
        "old -1\n\nx",
        "new 1\n\nx",
        "old 1\nAAAA\n\nx",
        "old 1\n%%\n\nx",
        f"old {10**19}\n\nx",
    ],
)
def test_what_is_no_submission_is_malformed(text: str) -> None:
    """A line, hashes and an empty line, and nothing that is written in a second way."""
    with pytest.raises(MalformedSubmission):
        parse_submission(text)


def test_no_more_hashes_are_read_than_a_proof_can_have() -> None:
    """Sixty-three lead through any tree."""
    hashes = f"{'A' * 43}=\n"
    assert len(parse_submission(f"old 1\n{hashes * 63}\nx").proof) == 63
    with pytest.raises(MalformedSubmission):
        parse_submission(f"old 1\n{hashes * 64}\nx")


def test_a_cosignature_says_what_was_seen_and_when() -> None:
    """It verifies with the witness's vkey alone, beside the log's own line, which stays good."""
    note, key = sign(head(9), KEY), witness_key("w.example/1", OTHER)
    line = cosign(head(9), OTHER, "w.example/1", 1_700_000_000)

    assert read_cosignature(f"{line}\n", note, key) == (line, 1_700_000_000)
    assert parse_verifier_key(str(key), COSIGNATURE) == key
    assert verify(f"{note}{line}\n", KEYS[ORIGIN][0]) == head(9)


def test_a_cosignature_of_something_else_is_none() -> None:
    """Of another head, by another witness, of a damaged line, and of the other kind of key."""
    line = cosign(head(9), OTHER, "w.example/1", 1_700_000_000)
    key = witness_key("w.example/1", OTHER)
    with pytest.raises(InvalidSignature):
        read_cosignature(f"{line}\n", sign(head(8), KEY), key)
    with pytest.raises(UnknownSigner):
        read_cosignature(f"{line}\n", sign(head(9), KEY), witness_key("w.example/2", OTHER))
    with pytest.raises(MalformedNote):
        read_cosignature(f"{line[:-8]}\n", sign(head(9), KEY), key)
    with pytest.raises(MalformedNote):
        parse_verifier_key(str(key))


def test_a_witness_has_another_key_id_than_a_log_with_the_same_key() -> None:
    """The id is over the name and the kind of the key, 0x04, and so is the vkey."""
    assert witness_key("w", OTHER).key_id != verifier_key("w", OTHER).key_id
    assert str(witness_key("w", OTHER)).split("+", 2)[2].startswith("B")
