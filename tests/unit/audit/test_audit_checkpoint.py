from base64 import b64decode, b64encode

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.audit.samples import KEY, ORIGIN, OTHER_KEY, VKEY

from jobengine.audit.checkpoint import (
    Checkpoint,
    InvalidSignature,
    MalformedNote,
    NoteError,
    Signature,
    UnknownSigner,
    VerifierKey,
    parse_checkpoint,
    parse_note,
    parse_verifier_key,
    sign,
    sign_text,
    verifier_key,
    verify,
    verify_text,
)
from jobengine_verify.notes import CannotCheck, Forged, open_checkpoint, parse_key

# Published by golang.org/x/mod/sumdb/note, the first implementation of the format.
GO_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_SKEY = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
GO_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
GO_LINE = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
GO_NOTE = f"{GO_TEXT}\n{GO_LINE}"

# Published with another implementation of C2SP signed-note.
EXAMPLE_VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
EXAMPLE_NOTE = (
    "This is an example message.\n\n"
    "— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)
# The example of C2SP tlog-checkpoint.
EXAMPLE_CHECKPOINT = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"

CHECKPOINT = Checkpoint(ORIGIN, 4711, bytes(range(32)))
NOTE = sign(CHECKPOINT, KEY)
OUR_KEY = parse_verifier_key(VKEY)


def test_go_notes_are_read_and_written_alike() -> None:
    """The published key and note of the Go implementation verify, and signing gives the same bytes."""
    seed = b64decode(GO_SKEY.split("+", 4)[4])[1:]
    key = Ed25519PrivateKey.from_private_bytes(seed)

    assert verify_text(GO_NOTE, parse_verifier_key(GO_VKEY)) == GO_TEXT
    assert sign_text(GO_TEXT, "PeterNeumann", key) == GO_NOTE
    assert str(verifier_key("PeterNeumann", key)) == GO_VKEY


def test_a_note_of_another_implementation_verifies() -> None:
    """A second published key and note verify."""
    assert verify_text(EXAMPLE_NOTE, parse_verifier_key(EXAMPLE_VKEY)) == "This is an example message.\n"


def test_the_published_checkpoint_is_read_and_written_alike() -> None:
    """The example of the specification parses into its parts and back."""
    parsed = parse_checkpoint(EXAMPLE_CHECKPOINT)

    assert (parsed.origin, parsed.size) == ("example.com/behind-the-sofa", 20852163)
    assert parsed.body() == EXAMPLE_CHECKPOINT


def test_a_signed_checkpoint_verifies_and_parses() -> None:
    """What a log signs is what a reader gets, in service and verifier."""
    assert verify(NOTE, OUR_KEY) == CHECKPOINT
    assert str(parse_note(NOTE)) == NOTE
    opened = open_checkpoint(NOTE, parse_key(VKEY))
    assert (opened.origin, opened.size, opened.root) == (CHECKPOINT.origin, CHECKPOINT.size, CHECKPOINT.root)


def test_no_part_of_a_vkey_is_a_vkey() -> None:
    """Every piece cut from a key text, and every text with one character changed, is refused."""
    pieces = {GO_VKEY[start:end] for start in range(len(GO_VKEY)) for end in range(start + 1, len(GO_VKEY) + 1)}
    changed = {GO_VKEY[:at] + chr(ord(GO_VKEY[at]) + 1) + GO_VKEY[at + 1 :] for at in range(len(GO_VKEY))}
    for text in (pieces | changed) - {GO_VKEY}:
        with pytest.raises(MalformedNote):
            parse_verifier_key(text)
        with pytest.raises(CannotCheck):
            parse_key(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        GO_VKEY.replace("c74f20a3", "C74F20A3"),
        GO_VKEY + "\n",
        "Peter Neumann" + GO_VKEY.removeprefix("PeterNeumann"),
    ],
)
def test_a_damaged_vkey_is_refused(text: str) -> None:
    """Wrong lengths, algorithms, key ids and names are no keys."""
    with pytest.raises(MalformedNote):
        parse_verifier_key(text)
    with pytest.raises(CannotCheck):
        parse_key(text)


@pytest.mark.parametrize(
    "note",
    [
        "",
        GO_TEXT,
        GO_TEXT + "\n",
        GO_NOTE[:-1],
        "\x01" + GO_NOTE,
        GO_NOTE.replace("\n", "\r\n"),
        GO_TEXT + "\n" + GO_LINE.replace("PeterNeumann", "Bad Name"),
        GO_TEXT + "\n" + GO_LINE.replace("PeterNeumann", "Bad+Name"),
        GO_TEXT + "\n" + GO_LINE.replace("—", "-"),
        GO_TEXT + "\n" + GO_LINE.replace("AM=\n", "AN=\n"),
        GO_TEXT + "\n" + GO_LINE.replace("AM=\n", "A*=\n"),
        GO_TEXT + "\n— PeterNeumann x08gow==\n",
        GO_NOTE + "Unexpected line.\n",
        GO_TEXT + "\n" + GO_LINE * 101,
        "x" * 2**20 + GO_NOTE,
    ],
)
def test_a_text_that_is_no_note_is_refused(note: str) -> None:
    """Nothing is read from a malformed note."""
    with pytest.raises(MalformedNote):
        verify_text(note, parse_verifier_key(GO_VKEY))
    with pytest.raises((CannotCheck, Forged)):
        open_checkpoint(note, parse_key(GO_VKEY))


def test_signatures_of_others_are_ignored() -> None:
    """Witnesses may add their lines, and 100 lines are not too many."""
    witness = str(Signature("witness.example", b"\x04abc", bytes(72))) + "\n"
    namesake = str(Signature("PeterNeumann", b"abcd", bytes(64))) + "\n"

    assert verify_text(GO_TEXT + "\n" + witness + namesake + GO_LINE * 98, parse_verifier_key(GO_VKEY)) == GO_TEXT
    cosigned = NOTE + witness
    assert verify(cosigned, OUR_KEY) == CHECKPOINT
    assert open_checkpoint(cosigned, parse_key(VKEY)).size == CHECKPOINT.size


def test_one_bad_signature_of_the_key_spoils_the_note() -> None:
    """A good line beside a bad one of the same key does not help."""
    bad = str(Signature(OUR_KEY.name, OUR_KEY.key_id, bytes(64))) + "\n"
    for note in (NOTE + bad, NOTE.replace("\n\n", "\n\n" + bad), NOTE.replace("4711", "4712")):
        with pytest.raises(InvalidSignature):
            verify(note, OUR_KEY)
        with pytest.raises(Forged):
            open_checkpoint(note, parse_key(VKEY))


def test_another_key_is_an_unknown_signer() -> None:
    """A note that somebody else signed, under whatever name, is not the log's."""
    resigned = sign(CHECKPOINT, OTHER_KEY)
    elsewhere = sign(Checkpoint("audit.example/log/else", 1, bytes(32)), KEY)
    for note in (resigned, elsewhere):
        with pytest.raises(UnknownSigner):
            verify(note, OUR_KEY)
        with pytest.raises(CannotCheck):
            open_checkpoint(note, parse_key(VKEY))


def test_a_log_speaks_only_for_itself() -> None:
    """A checkpoint of one log, signed by the same key under another log's name, is refused."""
    swapped = sign_text(Checkpoint("audit.example/log/else", 1, bytes(32)).body(), ORIGIN, KEY)
    with pytest.raises(UnknownSigner):
        verify(swapped, OUR_KEY)
    with pytest.raises(CannotCheck):
        open_checkpoint(swapped, parse_key(VKEY))


@given(st.integers(0, len(NOTE.encode()) * 8 - 1))
def test_no_bit_of_a_checkpoint_can_flip(bit: int) -> None:
    """Whatever bit changes, neither reader accepts the note."""
    changed = (int.from_bytes(NOTE.encode()) ^ 1 << bit).to_bytes(len(NOTE.encode())).decode(errors="replace")
    with pytest.raises(NoteError):
        verify(changed, OUR_KEY)
    with pytest.raises((CannotCheck, Forged)):
        open_checkpoint(changed, parse_key(VKEY))


ROOT = b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    "body",
    [
        "",
        f"{ORIGIN}\n1\n",
        f"{ORIGIN}\n1\n{ROOT}",
        f"\n1\n{ROOT}\n",
        f"{ORIGIN}\n01\n{ROOT}\n",
        f"{ORIGIN}\n-1\n{ROOT}\n",
        f"{ORIGIN}\n1e3\n{ROOT}\n",
        f"{ORIGIN}\n{'9' * 20}\n{ROOT}\n",
        f"{ORIGIN}\n1\n{ROOT[:-4]}\n",
        f"{ORIGIN}\n1\n{b64encode(bytes(31)).decode()}\n",
        f"{ORIGIN}\n1\n{ROOT}\n\n",
        f"has space\n1\n{ROOT}\n",
        f"has+plus\n1\n{ROOT}\n",
    ],
)
def test_a_body_that_is_no_checkpoint_is_refused(body: str) -> None:
    """Sizes, roots and origins have one form."""
    with pytest.raises(MalformedNote):
        parse_checkpoint(body)


def test_extension_lines_are_passed_over() -> None:
    """A later version may add lines; they are signed and say nothing to this one."""
    note = sign_text(CHECKPOINT.body() + "extension\n", ORIGIN, KEY)

    assert verify(note, OUR_KEY) == CHECKPOINT
    assert open_checkpoint(note, parse_key(VKEY)).root == CHECKPOINT.root


def test_a_name_no_line_can_carry_is_refused() -> None:
    """Names with spaces or pluses, keys and roots of other lengths cannot be made."""
    for name in ("", "a b", "a+b", "a\u2003b", "a\x00b"):
        with pytest.raises(MalformedNote):
            VerifierKey(name, bytes(32))
    with pytest.raises(MalformedNote):
        VerifierKey(ORIGIN, bytes(31))
    with pytest.raises(MalformedNote):
        Checkpoint(ORIGIN, -1, bytes(32))
    with pytest.raises(MalformedNote):
        sign_text("no newline at the end", ORIGIN, KEY)
