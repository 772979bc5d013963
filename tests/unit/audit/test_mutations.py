"""An export of a thousand entries, changed in every way that somebody could: each is found, and the entry named.

The auditor has the key, and the leaf hashes of the log (its tiles); where the log itself was rewritten, those that
were kept with an old checkpoint.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from io import BytesIO
from typing import Any

import pytest
from tests.unit.audit.samples import (
    KEY,
    NOON,
    OTHER_KEY,
    VKEY,
    entry,
    entry_id,
    entry_lines,
    export,
    note,
    salts,
)

from jobengine.audit.actions import Action
from jobengine.audit.export import head_line
from jobengine.audit.model import SealedEntry, seal
from jobengine_verify.notes import CannotCheck, open_checkpoint, parse_key
from jobengine_verify.verify import Intact, Missing, Named, Tampered, check_export

SIZE, KEPT = 1_000, 900
READER = parse_key(VKEY)
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"action": Action.QUOTA_PAUSED, "before": {"paused": False}, "after": {"paused": True}},
    {"action": Action.CREDENTIALS_GRANT, "resource": None, "before": None, "after": None, "ticket": None},
    {
        "action": Action.QUOTA_REFUSED,
        "reason": 'say "no", \\ or über\u2028all',
        "properties": {"limits": [1, 2.5, None]},
    },
)


def tiles_of(entries: Sequence[SealedEntry]) -> bytes:
    return b"".join(sealed.leaf_hash for sealed in entries)


def sealed_kinds(**changes: Any) -> list[SealedEntry]:
    salt = salts()
    return [seal(entry(number, **(KINDS[number % 4] | changes)), salt) for number in range(SIZE)]


ENTRIES = sealed_kinds()
OTHERS = sealed_kinds(tenant_id="globex")
EXPORT = export(ENTRIES)
HEAD, *LINES = EXPORT.splitlines(keepends=True)
TILES = tiles_of(ENTRIES)
OLD = note(ENTRIES[:KEPT])
PLACES = (0, 1, 255, 256, 511, 640, 998, 999)


def remade(place: int, **changes: Any) -> SealedEntry:
    return seal(entry(place, **(KINDS[place % 4] | changes)), salts())


@dataclass(frozen=True)
class Case:
    """What the auditor holds; *tiles* are the leaf hashes."""

    data: bytes
    tiles: bytes = TILES
    since: str | None = None

    def judge(self) -> Intact | Tampered:
        since = None if self.since is None else open_checkpoint(self.since, READER)
        return check_export(BytesIO(self.data), READER, since, BytesIO(self.tiles))

    def first_bad(self) -> int:
        match self.judge():
            case Tampered(first_bad=Named(index)):
                return index
            case Tampered(first_bad=Missing(index, earliest)) if index == earliest:
                return index
            case other:
                pytest.fail(f"no entry is named: {other}")


def lines(changed: Sequence[bytes]) -> bytes:
    return b"".join([HEAD, *changed])


def test_the_export_as_it_was_made_is_intact() -> None:
    """Nothing is found where nothing was done."""
    assert isinstance(Case(EXPORT, since=OLD).judge(), Intact)


@pytest.mark.parametrize("seed", range(40))
def test_a_flipped_bit_names_its_entry(seed: int) -> None:
    """Any bit of any entry: of its leaf, of a text, of the end of its line."""
    chosen = random.Random(seed)  # noqa: S311 - the same places in every run
    at = chosen.randrange(len(HEAD), len(EXPORT) - 1)
    changed = bytearray(EXPORT)
    changed[at] ^= 1 << chosen.randrange(8)

    assert Case(bytes(changed)).first_bad() == EXPORT[:at].count(b"\n") - 1


@pytest.mark.parametrize("place", [0, 333, 777])
def test_every_byte_of_an_entry_counts(place: int) -> None:
    """Each byte of its line, changed in one bit."""
    before, line, after = LINES[max(0, place - 2) : place], LINES[place], LINES[place + 1 : place + 3]
    some = ENTRIES[max(0, place - 2) : place + 3]
    head = head_line(note(some))
    for at in range(0, len(line) - 1, 31):
        changed = line[:at] + bytes([line[at] ^ 1 << at % 8]) + line[at + 1 :]
        case = Case(head + b"".join([*before, changed, *after]), tiles_of(some))

        assert case.first_bad() == len(before), at


def test_a_flipped_bit_of_line_one_is_found() -> None:
    """It is not the entries that are bad: the signature is, or there is no checkpoint at all."""
    for at in range(len(HEAD)):
        changed = EXPORT[:at] + bytes([EXPORT[at] ^ 4]) + EXPORT[at + 1 : len(HEAD)]
        try:
            assert isinstance(check_export(BytesIO(changed), READER), Tampered), at
        except CannotCheck:
            continue


@pytest.mark.parametrize("place", PLACES)
def test_a_dropped_entry_is_named(place: int) -> None:
    """Where it was taken out."""
    assert Case(lines(LINES[:place] + LINES[place + 1 :])).first_bad() == place


@pytest.mark.parametrize("place", PLACES)
def test_a_doubled_entry_is_named(place: int) -> None:
    """The second of both."""
    assert Case(lines([*LINES[: place + 1], *LINES[place:]])).first_bad() == place + 1


@pytest.mark.parametrize("place", PLACES[:-1])
def test_swapped_entries_are_named(place: int) -> None:
    """The first of both, neighbours or not."""
    for other in {place + 1, SIZE - 1}:
        swapped = [*LINES]
        swapped[place], swapped[other] = swapped[other], swapped[place]
        assert Case(lines(swapped)).first_bad() == place


@pytest.mark.parametrize("size", [0, 1, 256, 999])
def test_a_cut_export_is_named_where_it_ends(size: int) -> None:
    """The first entry that is missing, at the end of a line or within it."""
    assert Case(lines(LINES[:size])).first_bad() == size
    assert Case(lines(LINES[:size]) + LINES[size][:40]).first_bad() == size


@pytest.mark.parametrize("place", PLACES)
def test_swapped_tenants_are_named(place: int) -> None:
    """An entry of another tenant, in the same place of a log that looks the same."""
    other = list(entry_lines(OTHERS))
    changed = [*LINES[:place], other[place], *LINES[place + 1 :]]

    assert Case(lines(changed)).first_bad() == place


@pytest.mark.parametrize("place", PLACES)
def test_a_back_dated_entry_is_named(place: int) -> None:
    """In perfect form, with a time that is another."""
    changed = [*LINES]
    changed[place] = next(iter(entry_lines([remade(place, occurred_at=NOON - timedelta(days=30))])))

    assert Case(lines(changed)).first_bad() == place


REWRITTEN: dict[str, Callable[[int], list[SealedEntry]]] = {
    "one changed": lambda at: [*ENTRIES[:at], remade(at, trace_id=None), *ENTRIES[at + 1 :]],
    "one back-dated": lambda at: [*ENTRIES[:at], remade(at, occurred_at=NOON), *ENTRIES[at + 1 :]],
    "one taken out": lambda at: [*ENTRIES[:at], *ENTRIES[at + 1 :]],
    "two swapped": lambda at: [*ENTRIES[:at], ENTRIES[at + 1], ENTRIES[at], *ENTRIES[at + 2 :]],
    "all that followed": lambda at: [*ENTRIES[:at], *[remade(n, outcome="refused") for n in range(at, SIZE)]],
}


@pytest.mark.parametrize("place", [1, 850])
@pytest.mark.parametrize("rewrite", REWRITTEN.values(), ids=REWRITTEN)
def test_a_log_hashed_anew_is_named_by_what_was_kept(rewrite: Callable[[int], list[SealedEntry]], place: int) -> None:
    """By whoever has the log's key: the export alone is good, but not what it says of the past."""
    forged = rewrite(place)
    kept = Case(export(forged), tiles_of(ENTRIES[:KEPT]), since=OLD)

    assert isinstance(Case(export(forged), tiles_of(forged)).judge(), Intact)
    assert kept.first_bad() == place


@pytest.mark.parametrize("place", [1, 850])
@pytest.mark.parametrize("rewrite", REWRITTEN.values(), ids=REWRITTEN)
def test_a_log_hashed_anew_without_its_key_is_named(rewrite: Callable[[int], list[SealedEntry]], place: int) -> None:
    """With the old signature, or a false one; with tiles that were hashed anew as well, what was kept still tells."""
    forged = b"".join(entry_lines(rewrite(place)))
    false = note(rewrite(place)).splitlines(keepends=True)[:-1] + note(ENTRIES).splitlines(keepends=True)[-1:]

    assert Case(HEAD + forged).first_bad() == place
    assert Case(head_line("".join(false)) + forged, tiles_of(ENTRIES[:KEPT]), since=OLD).first_bad() == place


def test_a_log_signed_by_another_key_cannot_be_checked() -> None:
    """Exit code 2: nothing is known of who made it."""
    with pytest.raises(CannotCheck, match="wrong key"):
        Case(export(ENTRIES, OTHER_KEY)).judge()


def test_a_log_set_back_is_named_where_it_ends() -> None:
    """Yesterday's state, signed yesterday by the right key."""
    assert Case(export(ENTRIES[:850]), since=OLD).first_bad() == 850


@pytest.mark.parametrize(
    "tiles", [b"", b"\x00", bytes(32 * SIZE), TILES[:-1], TILES + b"\x00", TILES[32:], TILES[:-32]]
)
def test_false_tiles_name_nothing_false(tiles: bytes) -> None:
    """Tiles that nobody signed change no verdict, and are not believed."""
    changed = [*LINES]
    changed[500] = next(iter(entry_lines([remade(500, trace_id=None)])))

    assert isinstance(Case(EXPORT, tiles).judge(), Intact)
    found = Case(lines(changed), tiles).judge()
    assert isinstance(found, Tampered)
    assert not isinstance(found.first_bad, Named)


def test_the_sample_is_what_it_should_be() -> None:
    """Entries of several kinds, some of which need the full check."""
    assert len(LINES) == SIZE
    assert entry_id(999).encode() in LINES[999]
    assert open_checkpoint(note(ENTRIES, KEY), READER).size == SIZE
