"""A line that is checked by its likeness to another one is checked as strictly as one that is read in full."""

import json
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.audit.offline import ENTRIES
from tests.unit.audit.samples import entry, entry_lines, salts, sealed_entries

from jobengine.audit.export import entry_line
from jobengine.audit.model import Opening, seal
from jobengine_verify import likeness
from jobengine_verify.export import Lines, read_blocks
from jobengine_verify.likeness import Likeness

KNOWN = b"".join(entry_lines(sealed_entries(3)))
ENTRIES_FROM_SEVEN = sealed_entries(1, start=7)
LINE = next(iter(entry_lines(ENTRIES_FROM_SEVEN)))


def hashes(*parts: bytes) -> tuple[list[bytes], str | None]:
    """Check lines in one go; return their hashes and what is wrong with the first bad one."""
    checked, found = Lines(), []
    for part in parts:
        for block in read_blocks(BytesIO(part)):
            leaf_hashes, problem = checked.leaf_hashes(block)
            found += leaf_hashes
            if problem:
                return found, problem
    return found, None


def judged_alike(line: bytes) -> None:
    """Assert that a line is judged by its likeness to those before it as it is where every line is read in full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likeness, "_MOST_LIKES", 0)
        in_full, problem = hashes(KNOWN, line)
    by_likeness, found = hashes(KNOWN, line)

    assert (by_likeness, found) == (in_full, problem)


@settings(max_examples=200)
@given(st.integers(0, len(LINE) - 2), st.binary(max_size=3), st.integers(0, 3))
def test_a_changed_line_is_judged_alike(at: int, put: bytes, taken: int) -> None:
    """Whatever is put into a line or taken out of it."""
    judged_alike(LINE[:at] + put.replace(b"\n", b"") + LINE[at + taken : -1].replace(b"\n", b"") + b"\n")


NUMBERS = [b"2.50", b"-0", b"-1", b"0", b"00", b"1e3", b"0.1", b"0.0000001", b"1.0", b"9007199254740993", b"1" * 16]
WORDS = [b"true", b"null", b"NaN", b"", b"{}", b"[]", b'{"b":1,"a":2}', b'{"a":1,"a":1}', b'"globex"']
TEXTS = [b'"\\u0061"', b'"a\\"b"', b'"\x7f"', b'"\x00"', b'"\x01"', b'"\xc3\xbc"', b'"\xff"', b'"\xed\xa0\x80"']
PLACES = [b"2.5", b"50", b"10", b'"success"', b'"cl_1"', b"INC-4711", b"null"]


@settings(max_examples=100)
@given(st.sampled_from(PLACES), st.sampled_from([*NUMBERS, *WORDS, *TEXTS]))
def test_another_value_is_judged_alike(old: bytes, new: bytes) -> None:
    """Values in a second spelling, of another kind, or no values at all."""
    judged_alike(LINE.replace(old, new, 1))


def test_a_line_like_another_is_not_read_in_full() -> None:
    """One expression is enough, and gives the hash of the verbatim leaf."""
    likeness = Likeness()
    for line in KNOWN.decode().splitlines()[:1]:
        parsed = json.loads(line)
        likeness.learn(line, parsed["entry"], parsed["open"])

    assert likeness.leaf_hash(LINE.decode().rstrip()) == ENTRIES_FROM_SEVEN[0].leaf_hash
    assert likeness.leaf_hash(LINE.decode().rstrip().replace("day 7", "day 8")) is None


def test_texts_with_escapes_and_erased_ones_are_counted() -> None:
    """What the expressions do not know is read in full, and counts the same."""
    odd = seal(entry(9, reason='a "quoted" one'), salts())
    ticket = [opening for opening in ENTRIES[0].openings if opening.field == "ticket"]
    checked = Lines()
    data = [entry_line(ENTRIES[0].leaf, ticket), entry_line(ENTRIES[1].leaf, ()), *entry_lines([odd])]

    for block in read_blocks(BytesIO(b"".join(data * 3))):
        assert checked.leaf_hashes(block)[1] is None
    assert checked.closed == 3 * (3 + 4)


def test_kinds_without_end_cost_no_memory_without_end() -> None:
    """After so many different lines no more expressions are made, and all are still checked."""
    salt = salts()
    entries = [seal(entry(number, after={f"member_{number}": number}), salt) for number in range(400)]
    lines = list(entry_lines(entries))

    assert hashes(b"".join(lines)) == ([sealed.leaf_hash for sealed in entries], None)
    bad = entry_line(entries[399].leaf, [Opening("ticket", bytes(16), "INC-1")])
    assert hashes(b"".join([*lines[:399], bad]))[1] == "the text of ticket is not the one that was written"
