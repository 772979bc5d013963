import re
import subprocess
import sys
import tracemalloc
from io import BytesIO
from itertools import repeat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.audit.offline import ENTRIES, EXPORT, LINES, Ask, replaced, resealed
from tests.unit.audit.samples import (
    KEY,
    ORIGIN,
    OTHER_KEY,
    VKEY,
    entry,
    entry_id,
    export,
    note,
    salts,
)

from jobengine.audit.checkpoint import Checkpoint, sign, verifier_key
from jobengine.audit.export import entry_line, head_line
from jobengine.audit.merkle import subtree_root
from jobengine.audit.model import Opening, seal
from jobengine_verify.cli import main
from jobengine_verify.notes import CannotCheck, parse_key
from jobengine_verify.verify import Intact, Tampered, check_export

SMALL = export(ENTRIES[:2])
READER = parse_key(VKEY)
SOURCE = Path(__file__).parents[3] / "src" / "jobengine_verify"


def without(place: int) -> bytes:
    return b"".join(LINES[: place + 1] + LINES[place + 2 :])


def test_an_export_as_it_was_made_is_intact(ask: Ask) -> None:
    """Exit code 0, with what was checked."""
    code, out = ask(EXPORT)

    assert code == 0
    assert out.startswith("INTACT: 200 entries")
    assert f"log: {ORIGIN}, tenant: acme" in out


def test_an_empty_log_is_intact(ask: Ask) -> None:
    """A checkpoint of nothing needs no entries, and tolerates none."""
    assert ask(export([]))[0] == 0
    assert ask(head_line(note([])) + LINES[1])[0] == 1


def test_a_missing_last_newline_is_no_change(ask: Ask) -> None:
    """Every byte that was signed is there."""
    assert ask(EXPORT[:-1])[0] == 0


def test_a_platform_log_is_intact(ask: Ask) -> None:
    """Entries without a tenant form a log too."""
    entries = [seal(entry(number, tenant_id=None), salts()) for number in range(3)]

    code, out = ask(export(entries))

    assert (code, "tenant: -" in out) == (0, True)


def test_no_byte_of_an_export_can_change() -> None:
    """Over each byte of a small export: a changed entry is tampered, a changed head never passes."""
    head = len(SMALL.splitlines(keepends=True)[0])
    for at in range(len(SMALL)):
        changed = SMALL[:at] + bytes([SMALL[at] ^ 1]) + SMALL[at + 1 :]
        try:
            assert isinstance(check_export(BytesIO(changed), READER), Tampered), at
        except CannotCheck:
            assert at < head


@settings(max_examples=60, deadline=None)
@given(st.integers(len(LINES[0]), len(EXPORT) - 1), st.integers(0, 7))
def test_no_bit_of_a_long_export_can_flip(at: int, bit: int) -> None:
    """Anywhere in 200 entries one bit is enough."""
    changed = EXPORT[:at] + bytes([EXPORT[at] ^ 1 << bit]) + EXPORT[at + 1 :]

    assert isinstance(check_export(BytesIO(changed), READER), Tampered)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, len(EXPORT) - 2))
def test_no_end_can_be_cut_off(length: int) -> None:
    """Wherever the file ends early, it is noticed."""
    try:
        assert isinstance(check_export(BytesIO(EXPORT[:length]), READER), Tampered)
    except CannotCheck:
        assert length < len(LINES[0])


@pytest.mark.parametrize("place", [0, 99, 199])
def test_a_dropped_entry_is_tampering(ask: Ask, place: int) -> None:
    """Fewer entries than the checkpoint says are tampered, wherever one is missing."""
    code, out = ask(without(place))

    assert code == 1
    assert "the file holds 199 entries, the checkpoint says 200" in out
    assert "index 199 is missing, or one of index 0 to 198 was taken out" in out


def test_a_file_without_entries_is_tampering(ask: Ask) -> None:
    """Nothing at all is fewer than what the checkpoint says."""
    code, out = ask(LINES[0])

    assert (code, "first bad entry: index 0 is missing\n" in out) == (1, True)


@pytest.mark.parametrize("place", [0, 99, 199])
def test_a_doubled_entry_is_tampering(ask: Ask, place: int) -> None:
    """More entries than the checkpoint says are tampered; one at the end is named."""
    code, out = ask(b"".join(LINES[: place + 2] + LINES[place + 1 :]))

    assert code == 1
    assert "more entries than the 200 of the checkpoint" in out
    assert (f"index 200, entry_id {entry_id(199)}" in out) == (place == 199)


def test_swapped_entries_are_tampering(ask: Ask) -> None:
    """The order is signed too."""
    code, out = ask(b"".join([*LINES[:50], LINES[51], LINES[50], *LINES[52:]]))

    assert code == 1
    assert "one of index 0 to 199; the file does not tell which" in out


@pytest.mark.parametrize(
    "changes",
    [
        {"occurred_at": entry(0).occurred_at.replace(year=2025)},
        {"after": {"limits": {"max_active": 51, "refill_per_second": 2.5}}},
        {"actor": entry(1).actor.__class__("client", "somebody-else", "cl_1")},
        {"entry_id": entry_id(4711)},
    ],
)
def test_a_rewritten_entry_is_tampering(ask: Ask, changes: dict[str, object]) -> None:
    """An entry back-dated or changed with care, in perfect form, still does not have its place in the tree."""
    assert ask(resealed(120, **changes))[0] == 1


def test_an_entry_of_another_tenant_is_named(ask: Ask) -> None:
    """One log is one tenant's."""
    code, out = ask(resealed(120, tenant_id="globex"))

    assert code == 1
    assert f"index 120, entry_id {entry_id(120)}" in out


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (b'","Quarter end load, day 120"]', b'","Nothing special"]', "the text of properties.quota.reason is not the"),
        (b'"ticket":["', b'"ticket_":["', "the text of ticket_ is not the"),
        (b'{"entry":{', b'{"entry": {', "not JSON"),
        (b'"outcome":"success"', b'"outcome":"\\u0073uccess"', "not in canonical form"),
        (b'"outcome":"success"', b'"outcome":"success","outcome":"failure"', "not in canonical form"),
        (b'"max_active":50', b'"max_active":50.0', "not in canonical form"),
        (b'"outcome":"success"', b'"outcome":', "not JSON"),
        (b"Quarter", b"\xff\xff", "not UTF-8"),
        (b"}\n", b"}\r\n", "not an entry and its openings"),
        (b"}\n", b"}}\n", "not an entry and its openings"),
        (b',"open":', b',"Open":', "not an entry and its openings"),
        (b'{"entry":', b'{"Entry":', "not an entry"),
        (b'"reason":{"salted_sha256"', b'"reason":{"salted_sha512"', "is not a salted hash"),
    ],
)
def test_an_entry_that_shows_its_change_is_named(ask: Ask, old: bytes, new: bytes, problem: str) -> None:
    """Where the bytes of a line speak against themselves, its index and entry_id are given."""
    assert LINES[121].count(old) >= 1

    code, out = ask(replaced(120, LINES[121].replace(old, new)))

    assert code == 1
    assert problem in out
    assert f"first bad entry: index 120, entry_id {entry_id(120)}" in out


@pytest.mark.parametrize("line", [b"\n", b"{}\n", b"[" * 100_000 + b"\n", b'{"entry":{},"open":{}}\n', b"\x00\n"])
def test_a_line_that_is_no_entry_is_named(ask: Ask, line: bytes) -> None:
    """What cannot be read at all is named by its index."""
    code, out = ask(replaced(7, line))

    assert code == 1
    assert "first bad entry: index 7, entry_id not readable" in out


def test_an_entry_is_named_by_its_own_id(ask: Ask) -> None:
    """Another entry's id in the changed members does not mislead the report."""
    sealed = seal(entry(9, after={"entry_id": entry_id(1)}), salts())
    forged = [Opening("ticket", bytes(16), "INC-1")]

    assert f"index 9, entry_id {entry_id(9)}" in ask(replaced(9, entry_line(sealed.leaf, forged)))[1]


def test_a_tampered_file_cannot_steer_the_terminal(ask: Ask) -> None:
    """What is shown of a file is printable and short."""
    forged = [Opening("\x1b[2J" + "x" * 9999, bytes(16), "text")]

    code, out = ask(replaced(9, entry_line(ENTRIES[9].leaf, forged)))

    assert code == 1
    assert "\x1b" not in out
    assert len(out) < 1000


def test_text_moved_into_the_salt_is_tampering(ask: Ask) -> None:
    """An opening with a longer salt has the right hash and the wrong text."""
    opening = next(opening for opening in ENTRIES[5].openings if opening.field == "ticket")
    moved = Opening("ticket", opening.salt + b"INC-", "4711")
    openings = [moved if other is opening else other for other in ENTRIES[5].openings]

    code, out = ask(replaced(5, entry_line(ENTRIES[5].leaf, openings)))

    assert code == 1
    assert (
        f"the text of ticket is not the one that was written\nfirst bad entry: index 5, entry_id {entry_id(5)}" in out
    )


def test_erased_texts_leave_the_log_intact(ask: Ask) -> None:
    """Without openings the entries still verify, and the report says how many texts are missing."""
    code, out = ask(replaced(5, entry_line(ENTRIES[5].leaf, [])))

    assert code == 0
    assert "texts withheld or erased: 4" in out


def test_a_checkpoint_changed_after_signing_is_tampering(ask: Ask) -> None:
    """The size in the head fits the entries that are left, and the signature does not."""
    cut = b"".join(LINES[:-1]).replace(rb"\n200\n", rb"\n199\n", 1)

    code, out = ask(cut)

    assert code == 1
    assert "the checkpoint was changed after it was signed" in out


def test_a_log_signed_by_another_key_cannot_be_checked(ask: Ask) -> None:
    """Somebody who rewrites and signs again has another key."""
    code, out = ask(export(ENTRIES[:-1], OTHER_KEY))

    assert code == 2
    assert "wrong key, or another log" in out


def test_another_log_of_the_same_key_cannot_be_checked(ask: Ask) -> None:
    """A good export of a neighbouring log is not an export of this one."""
    other = head_line(note(ENTRIES, origin="audit.example/log/else")) + b"".join(LINES[1:])

    assert ask(other)[0] == 2
    assert ask(other, key=str(verifier_key("audit.example/log/else", KEY)))[0] == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"\xff\xfe",
        b"not an export",
        b'{"format":2' + SMALL[11:],
        b'{"format":1,"checkpoint":7}\n',
        b'{"format":1,"checkpoint":"no note"}\n',
        b'{"checkpoint":"x","format":1}\n',
        SMALL.split(b"\n", 1)[1],
    ],
)
def test_what_is_no_export_cannot_be_checked(ask: Ask, data: bytes) -> None:
    """Exit code 2, and the reason on standard error."""
    code, out = ask(data)

    assert code == 2
    assert out.startswith("CANNOT CHECK: ")


@pytest.mark.parametrize("key", ["", "nonsense", VKEY[:-1], VKEY.replace(ORIGIN, "x"), "@/no/such/file"])
def test_a_key_that_is_none_cannot_check(ask: Ask, key: str) -> None:
    """A damaged key is not an answer about the export."""
    assert ask(SMALL, key=key)[0] == 2


def test_the_key_may_stand_in_a_file(ask: Ask, tmp_path: Path) -> None:
    """@FILE names a file with the one vkey line that the service gives."""
    file = tmp_path / "log.vkey"
    file.write_text(VKEY + "\n")

    assert ask(SMALL, key=f"@{file}")[0] == 0


@pytest.mark.parametrize("arguments", [[], ["export"], ["export", "--key"], ["no/such/file", "--key", VKEY]])
def test_a_call_that_asks_nothing_is_refused(arguments: list[str]) -> None:
    """Usage errors and missing files are exit code 2 as well, never 0 or 1."""
    assert main(arguments) == 2


def test_help_is_not_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """--help explains the exit codes."""
    assert main(["--help"]) == 0
    assert "0: intact, 1: tampered, 2: cannot be checked" in re.sub(r"\s+", " ", capsys.readouterr().out)


@pytest.mark.parametrize("size", [2_000, 6_000])
def test_memory_does_not_grow_with_the_log(size: int) -> None:
    """Three times the entries take no more memory: the verifier keeps a block of lines and a few hashes."""
    line = LINES[1]

    class Repeated(BytesIO):
        """Gives the same entry again and again, and keeps none of what it gave."""

        def read(self, _: int | None = -1, /) -> bytes:
            return next(lines, b"")

    lines = repeat(line, size)
    signed = sign(Checkpoint(ORIGIN, size, subtree_root([ENTRIES[0].leaf_hash] * size)), KEY)
    file = Repeated(head_line(signed))
    check_export(BytesIO(EXPORT), READER)  # what is made once for all
    tracemalloc.start()
    try:
        assert isinstance(check_export(file, READER), Intact)
        assert tracemalloc.get_traced_memory()[1] < 1_500_000
    finally:
        tracemalloc.stop()


def test_the_verifier_needs_nothing_of_the_service(tmp_path: Path) -> None:
    """Copied elsewhere alone, it runs and answers."""
    (tmp_path / "jobengine_verify").mkdir()
    for file in SOURCE.glob("*.py"):
        (tmp_path / "jobengine_verify" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "export.ndjson").write_bytes(SMALL)
    alone = f"""
import runpy, sys
sys.modules |= dict.fromkeys(["jobengine", "rfc8785"])  # None: importing them fails
sys.argv = ["jobengine-verify", "export.ndjson", "--key", {VKEY!r}]
runpy.run_module("jobengine_verify", run_name="__main__")
"""

    done = subprocess.run([sys.executable, "-c", alone], cwd=tmp_path, capture_output=True, check=False)

    assert (done.returncode, done.stdout[:6]) == (0, b"INTACT")
