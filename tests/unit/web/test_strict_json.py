"""Bodies: one document, read one way."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobengine.errors import Malformed, MalformedJson, ValidationFailed
from jobengine.web.strict_json import MAX_DEPTH, read_json

plain = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
leaves = (
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | plain
)
documents = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(plain, inner, max_size=4))


class Wire(msgspec.Struct, forbid_unknown_fields=True):
    """Something to read into."""

    name: str
    parts: list[dict[str, int]] = []


@given(documents.filter(lambda document: document is not None), st.booleans())
def test_what_json_can_say_is_read_as_it_was_said(document: object, ascii_only: bool) -> None:
    """Escaped or not."""
    assert read_json(json.dumps(document, ensure_ascii=ascii_only).encode(), Any) == document


@given(st.binary(max_size=60) | st.text('[]{}",:\\u0d8f1e+-. nulltrefas\0', max_size=60).map(str.encode))
def test_nothing_but_a_document_or_a_fault_of_the_caller_comes_out(body: bytes) -> None:
    """Never a fault of ours, whatever the bytes."""
    try:
        read = read_json(body, Any)
    except Malformed:
        return
    assert read == json.loads(body)


NESTS = {"lists": ("[", "]"), "objects": ('{"a":', "}"), "both": ('[{"a":', "}]")}


@pytest.mark.parametrize(("opening", "closing"), NESTS.values(), ids=NESTS)
def test_thirty_two_levels_are_read_and_one_more_is_not(opening: str, closing: str) -> None:
    """Lists and objects count alike."""
    turns = MAX_DEPTH // len(closing)

    read_json((opening * turns + "0" + closing * turns).encode(), Any)
    with pytest.raises(MalformedJson, match="nested"):
        read_json((opening * turns + "[]" + closing * turns).encode(), Any)


def test_brackets_inside_of_strings_nest_nothing() -> None:
    """Behind escaped quotes neither."""
    text = "[{" * 100 + '\\"' + "]" * 3

    assert read_json(json.dumps({"name": text}).encode(), Wire).name == text


@pytest.mark.parametrize(
    ("body", "path", "code"),
    [
        ('{"name": 5}', "name", "validation_failed"),
        ("{}", "body", "validation_failed"),
        ('{"name": "a", "parts": [{"b": 1}, {"c": "x"}]}', "parts[1][...]", "validation_failed"),
        ('{"name": "a", "nmae": "b"}', "nmae", "unknown_field"),
        ('{"name": "a\\u0000"}', "name", "validation_failed"),
        ('{"name": "a", "parts": [{"b\\ud800": 1}]}', "parts[0]", "validation_failed"),
        ('{"name": "a", "parts": [{"b": 1e999}]}', "body", "validation_failed"),
        ("null", "body", "validation_failed"),
    ],
)
def test_a_fault_is_named_by_its_path(body: str, path: str, code: str) -> None:
    """The first one, with a code of its own for what is not known."""
    with pytest.raises(ValidationFailed) as caught:
        read_json(body.encode(), Wire)

    [error] = caught.value.members["errors"]
    assert (error["path"], caught.value.problem_code) == (path, code)


def test_a_long_name_is_not_repeated_at_length() -> None:
    """A megabyte sent is not a megabyte answered."""
    with pytest.raises(ValidationFailed) as caught:
        read_json(json.dumps({"name": "a", "x" * 10_000: 1}).encode(), Wire)

    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("digits", [40, 41, 401, 5_000])
def test_an_integer_of_any_length_is_read_in_no_time(digits: int) -> None:
    """As a number beyond every range."""
    assert read_json(b"[" + b"9" * digits + b"]", list[int])[0] >= 10**39
    assert read_json(b"[-" + b"9" * digits + b"]", list[int])[0] <= -(10**38)
