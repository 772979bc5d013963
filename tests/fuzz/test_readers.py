"""Readers of what strangers send: whatever it is, they read it or refuse it in their one way, and lose nothing."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jobengine.authority.strict_json import read_object
from jobengine.backfill.window import EventTimeWindow, Partition
from jobengine.clock import format_time, parse_duration, parse_time
from jobengine.errors import MalformedJson, ValidationFailed
from jobengine.ids import is_id
from jobengine.web.backfills import NewBackfill
from jobengine.web.batches import Heartbeat
from jobengine.web.quotas import Adjustment, NewQuota
from jobengine.web.strict_json import MAX_DEPTH, read_json

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBERS = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(TEXTS, VALUES, max_size=4)
# Letters out of which JSON is made: more of what comes of them is almost a document.
PIECES = st.lists(
    st.sampled_from(["{", "}", "[", "]", ":", ",", '"', '"a"', '"limits"', "1", "-", "e", "null", "\\u0000", "\\ud800",
                     "\\", "\x00", " ", "NaN", "true"]),
    max_size=24,
).map("".join)  # fmt: skip
BODIES = st.binary(max_size=60) | PIECES.map(str.encode) | DOCUMENTS.map(lambda value: json.dumps(value).encode())
TIMELIKE = st.from_regex(
    r"\d{4,5}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d)?([.,]\d{0,8})?(Z|z|[+-]\d\d:?\d\d)?\n?", fullmatch=True
)
DURATIONLIKE = st.from_regex(r"-?[Pp](\d{1,12}[.,]?\d?[YMWDHS]?){0,3}(T(\d{1,12}[HMS]?){0,3})?\n?", fullmatch=True)
CHANGES = st.sampled_from([str.upper, str.strip, "{}\n".format, " {}".format])


@pytest.mark.parametrize("wire", [NewQuota, Adjustment, NewBackfill, Heartbeat, Any], ids=str)
@given(body=BODIES)
@example(body=b'{"limits": {"burst": 1e999}}')
@example(body=b'{"limits": {"burst": ' + b"9" * 5_000 + b"}}")
@example(body=b'{"a`b": 1}')
def test_any_body_is_read_or_refused(wire: Any, body: bytes) -> None:
    """As its type, as malformed JSON, or as a wrong value with a path that can be told; nothing else is raised."""
    try:
        found = read_json(body, wire)
    except (MalformedJson, ValidationFailed) as refused:
        # What is told of it is part of an answer, so it must be text that an answer can hold.
        msgspec.json.encode([refused.detail, refused.members])
    else:
        assert wire is Any or isinstance(found, wire)


@given(document=DOCUMENTS)
def test_a_document_is_read_as_what_it_says(document: dict[str, Any]) -> None:
    """What another writer wrote comes back equal, whether or not it escaped, unless a text holds U+0000."""
    for written in (json.dumps(document), json.dumps(document, ensure_ascii=False)):
        if "\\u0000" in written:
            continue
        assert read_json(written.encode(), dict) == document


@given(depth=st.integers(1, 3 * MAX_DEPTH), kind=st.sampled_from(["[", "{"]))
def test_the_depth_of_a_body_is_counted_exactly(depth: int, kind: str) -> None:
    """32 levels are read and 33 are not, and brackets inside of strings are none."""
    nested = "[" * depth + '"]]]"' + "]" * depth if kind == "[" else '{"[":' * depth + '"{"' + "}" * depth

    try:
        read_json(nested.encode(), Any)
    except MalformedJson:
        assert depth > MAX_DEPTH
    else:
        assert depth <= MAX_DEPTH


@given(raw=BODIES)
def test_any_payload_of_a_token_is_an_object_or_a_value_error(raw: bytes) -> None:
    """The reader under the guard never fails otherwise, and what it reads can be written again."""
    try:
        found = read_object(raw)
    except ValueError:
        return
    assert json.loads(raw) == found


@given(text=st.text(max_size=40) | TIMELIKE)
def test_any_text_is_a_time_or_a_value_error(text: str) -> None:
    """What is read is in UTC, and written again it means the same."""
    try:
        moment = parse_time(text)
    except ValueError:
        return
    assert moment.tzinfo is UTC
    assert parse_time(format_time(moment)) == moment
    assert datetime.fromisoformat(text) == moment


@given(text=st.text(max_size=30) | DURATIONLIKE)
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    """Of a fixed length and not below zero, in the alphabet of ISO 8601."""
    try:
        span = parse_duration(text)
    except ValueError:
        return
    assert span >= timedelta()
    assert set(text) <= set("PTWDHMS0123456789")


@given(text=st.text(max_size=30) | DURATIONLIKE)
def test_any_text_is_a_partition_or_a_value_error(text: str) -> None:
    """One that is read is echoed as it was sent, and moves forward from any start."""
    try:
        partition = Partition(text)
    except ValueError:
        return
    assert partition.text == text
    assert partition.start_of(datetime(2026, 1, 31, tzinfo=UTC), 1) > datetime(2026, 1, 31, tzinfo=UTC)


@given(start=TIMELIKE, end=TIMELIKE, slash=st.sampled_from(["/", "//", "", " / "]))
def test_any_text_is_a_window_or_a_value_error(start: str, end: str, slash: str) -> None:
    """One that is read has a start before its end, and reads the same when it is written."""
    try:
        window = EventTimeWindow.parse(f"{start}{slash}{end}")
    except ValueError:
        return
    assert window.start < window.end
    assert EventTimeWindow.parse(str(window)) == window


@given(
    text=st.text(max_size=40) | st.uuids().map(str),
    change=st.sampled_from([str.upper, str.strip, lambda text: text + "\n"]),
)
def test_an_id_has_one_spelling(text: str, change: Callable[[str], str]) -> None:
    """Changed in any way it names nothing any more, or it is the same text."""
    if is_id(text) and (changed := change(text)) != text:
        assert not is_id(changed)
