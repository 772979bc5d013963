import json
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.audit.samples import entry, salts

from jobengine.audit.model import LEAF_MAX_BYTES, Actor, Opening, commitment, mismatches, restore, seal

CONTRACT_FIELDS = [
    "entry_id",
    "tenant_id",
    "sequence",
    "occurred_at",
    "action",
    "actor",
    "resource",
    "outcome",
    "reason",
    "ticket",
    "token_id",
    "properties",
    "before",
    "after",
    "trace_id",
    "leaf_hash",
]
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


def test_a_leaf_is_the_entry_in_canonical_form() -> None:
    """The leaf holds all fields but sequence and leaf_hash, sorted, with texts as salted hashes."""
    sealed = seal(entry(7), salts())
    hashes = [sha256(opening.salt + opening.text.encode()).hexdigest() for opening in sealed.openings]

    assert sealed.leaf.decode() == (
        '{"action":"quota.adjusted","actor":{"client_id":"cl_1","id":"ops-team","type":"client"},'
        '"after":{"limits":{"max_active":50,"refill_per_second":2.5}},'
        '"before":{"limits":{"max_active":10,"refill_per_second":1}},'
        '"entry_id":"019c13f0-0000-7000-8000-000000000007","occurred_at":"2026-01-31T12:00:00.007000Z",'
        '"outcome":"success","properties":{'
        f'"quota.reason":{{"salted_sha256":"{hashes[2]}"}},"quota.ticket":{{"salted_sha256":"{hashes[3]}"}}}},'
        f'"reason":{{"salted_sha256":"{hashes[0]}"}},'
        '"resource":{"id":"019c13f0-0000-7000-8000-00000000abcd","type":"quota"},"tenant_id":"acme",'
        f'"ticket":{{"salted_sha256":"{hashes[1]}"}},"token_id":"019c13f0-0000-7000-8000-0000000000ff",'
        '"trace_id":"0af7651916cd43dd8448eb211c80319c"}'
    )
    assert sealed.leaf_hash == sha256(b"\x00" + sealed.leaf).digest()


def test_each_text_gets_its_own_salt_and_opening() -> None:
    """Equal texts have unequal commitments, so that the log does not tell that they are equal."""
    sealed = seal(entry(), salts())

    assert [opening.field for opening in sealed.openings] == [
        "reason",
        "ticket",
        "properties.quota.reason",
        "properties.quota.ticket",
    ]
    assert len({opening.salt for opening in sealed.openings}) == 4
    assert len({commitment(opening)["salted_sha256"] for opening in sealed.openings}) == 4


@given(texts, texts)
def test_sealing_hides_every_text(reason: str, ticket: str) -> None:
    """A reason or ticket never stands in the leaf; beside a known salt, any guess but the right one fails."""
    reason, ticket = f"reason {reason}", f"ticket {ticket}"
    sealed = seal(entry(reason=reason, ticket=ticket, properties={"backfill.reason": reason}), salts())

    assert json.dumps(reason, ensure_ascii=False)[1:-1].encode() not in sealed.leaf
    assert json.dumps(ticket, ensure_ascii=False)[1:-1].encode() not in sealed.leaf
    assert mismatches(sealed.leaf, sealed.openings) == ()
    guess = Opening("reason", sealed.openings[0].salt, reason + "?")
    assert mismatches(sealed.leaf, [guess]) == ("reason",)


def test_absent_texts_stay_null_and_have_no_opening() -> None:
    """Null is not committed to: that there was no reason is no secret."""
    sealed = seal(entry(reason=None, ticket=None, properties={"quota.ticket": None, "count": 3}), salts())
    leaf = json.loads(sealed.leaf)

    assert (leaf["reason"], leaf["ticket"], leaf["properties"]) == (None, None, {"quota.ticket": None, "count": 3})
    assert sealed.openings == ()


def test_only_reasons_and_tickets_are_committed() -> None:
    """Other properties stand in the leaf as they are, whatever they look like."""
    properties = {"reason_source": "token", "request.reason": "r", "x": {"salted_sha256": "no"}, "y.reasons": "plain"}
    leaf = json.loads(seal(entry(properties=properties), salts()).leaf)["properties"]

    assert {key for key, value in leaf.items() if value != properties[key]} == {"request.reason"}


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (datetime(2026, 1, 31, tzinfo=UTC), "2026-01-31T00:00:00Z"),
        (datetime(2026, 1, 31, 1, 0, 0, 1, timezone(timedelta(hours=1))), "2026-01-31T00:00:00.000001Z"),
    ],
)
def test_a_time_is_hashed_in_utc_as_it_is_stored(moment: datetime, text: str) -> None:
    """Microseconds and UTC, which is what a database gives back, so a stored entry verifies for ever."""
    assert json.loads(seal(entry(occurred_at=moment), salts()).leaf)["occurred_at"] == text


@pytest.mark.parametrize(
    "changes",
    [
        {"occurred_at": datetime(2026, 1, 31)},  # noqa: DTZ001 - naive on purpose
        {"after": {"limits": {"max_active": 2**53}}},
        {"after": {"limits": {"refill_per_second": Decimal("0.12345678901234567890")}}},
        {"properties": {"name": "\ud800"}},
        {"reason": "\ud800"},
        {"after": {"text": "x" * LEAF_MAX_BYTES}},
    ],
)
def test_an_entry_that_has_no_exact_form_is_refused(changes: dict[str, Any]) -> None:
    """What could not be read back as it was written is not sealed."""
    with pytest.raises(ValueError):
        seal(entry(**changes), salts())


@pytest.mark.parametrize("changes", [{"after": {"at": timedelta(1)}}, {"properties": {"quota.reason": 7}}])
def test_an_entry_of_other_types_is_refused(changes: dict[str, Any]) -> None:
    """Values are JSON, and reasons are texts."""
    with pytest.raises(TypeError):
        seal(entry(**changes), salts())


@pytest.mark.parametrize("size", [0, 15, 17])
def test_a_salt_of_another_length_is_refused(size: int) -> None:
    """A salt has 16 bytes."""
    with pytest.raises(ValueError):
        seal(entry(), lambda: bytes(size))


def test_a_sealed_entry_is_restored_as_it_was() -> None:
    """The public view has the contract's fields in its order, with every text in its place."""
    original = entry(3)
    sealed = seal(original, salts())

    view = restore(sealed.leaf, sealed.openings, 12)

    assert list(view) == CONTRACT_FIELDS
    assert view["sequence"] == 12
    assert view["leaf_hash"] == sealed.leaf_hash.hex()
    assert (view["reason"], view["ticket"]) == (original.reason, original.ticket)
    assert view["properties"] == original.properties
    assert view["after"] == {"limits": {"max_active": 50, "refill_per_second": 2.5}}
    assert view["actor"] == {"client_id": "cl_1", "id": "ops-team", "type": "client"}


def test_an_entry_that_waits_has_no_sequence() -> None:
    """Until it has its place, sequence is null."""
    sealed = seal(entry(), salts())

    assert restore(sealed.leaf, sealed.openings, None)["sequence"] is None


def test_an_erased_text_shows_as_null_and_is_named() -> None:
    """Without its opening a text is gone, and the view says which."""
    sealed = seal(entry(), salts())
    kept = [opening for opening in sealed.openings if "ticket" in opening.field]

    view = restore(sealed.leaf, kept, 0)

    assert view["reason"] is None
    assert view["properties"] == {"quota.reason": None, "quota.ticket": "INC-4711"}
    assert list(view) == [*CONTRACT_FIELDS, "erased"]
    assert view["erased"] == ["reason", "properties.quota.reason"]
    assert mismatches(sealed.leaf, kept) == ()


def test_a_forged_text_is_never_shown() -> None:
    """A stored text that is not the one that was sealed shows as null and is named."""
    sealed = seal(entry(), salts())
    forged = [Opening(opening.field, opening.salt, opening.text + "!") for opening in sealed.openings[:1]]

    view = restore(sealed.leaf, [*forged, *sealed.openings[1:]], 0)

    assert view["reason"] is None
    assert view["tampered"] == ["reason"]
    assert "erased" not in view


def test_text_cannot_hide_in_a_longer_salt() -> None:
    """Moving the beginning of a text into the salt keeps the hash, and is still a forgery."""
    sealed = seal(entry(reason="do not raise", ticket=None, properties={}), salts())
    opening = sealed.openings[0]
    moved = Opening("reason", opening.salt + b"do not ", "raise")

    assert commitment(moved) == commitment(opening)
    assert mismatches(sealed.leaf, [moved]) == ("reason",)


def test_an_opening_of_nothing_is_a_mismatch() -> None:
    """A text for a field that the leaf holds no commitment of is reported."""
    sealed = seal(entry(ticket=None), salts())

    assert mismatches(sealed.leaf, [Opening("ticket", bytes(16), "INC-1")]) == ("ticket",)
    assert mismatches(sealed.leaf, [Opening("after", bytes(16), "x")]) == ("after",)


@pytest.mark.parametrize("leaf", [b"", b"\xff", b"[]", b"{}", b'{"entry_id":1,"tenant_id":1,"properties":{}}'])
def test_bytes_that_are_no_leaf_are_refused(leaf: bytes) -> None:
    """A rewritten row is an error of one known kind."""
    with pytest.raises(ValueError):
        restore(leaf, [], 0)
    with pytest.raises(ValueError):
        mismatches(leaf, [])


def test_an_entry_cannot_be_changed_after_the_fact() -> None:
    """Entries and what they are made of are values."""
    for value, name in ((entry(), "action"), (Actor("system", "sweeper"), "id"), (Opening("reason", b"", ""), "text")):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, "another")
