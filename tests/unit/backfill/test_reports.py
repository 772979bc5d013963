"""What a worker may say about its batch."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobengine.backfill.reports import (
    MAX_CHECKPOINT_BYTES,
    MAX_ERROR_CHARACTERS,
    MAX_KEYS,
    check_checkpoint,
    check_keys,
    error_text,
)
from jobengine.errors import ValidationFailed

NUL = "\x00"
LONE = "\ud800"


@pytest.mark.parametrize("keys", [[], ["a"], ["k" * 256], ["é" * 128], ["a"] * MAX_KEYS, ["\u2028", " "]])
def test_keys_within_their_bounds_are_taken(keys: list[str]) -> None:
    """At most 10,000, each at most 256 bytes of UTF-8."""
    check_keys(keys)


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        ([""], "keys[0]"),
        (["a", "k" * 257], "keys[1]"),
        (["é" * 129], "keys[0]"),
        ([f"a{NUL}"], "keys[0]"),
        ([f"a{LONE}"], "keys[0]"),
        (["a"] * (MAX_KEYS + 1), "keys"),
    ],
)
def test_a_key_out_of_bounds_is_named(keys: list[str], path: str) -> None:
    """The refusal tells which one."""
    with pytest.raises(ValidationFailed) as refused:
        check_keys(keys)

    assert refused.value.detail.startswith(f"{path}: ")


@pytest.mark.parametrize(
    "value", [{}, [], 0, "x", True, None, {"a": [1.5, None, {"b": "é"}]}, "\\u0000", "x" * (MAX_CHECKPOINT_BYTES - 2)]
)
def test_a_checkpoint_is_any_json_of_64_kib(value: object) -> None:
    """Backslashes before the letters of an escape are only letters."""
    check_checkpoint(value)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"), float("inf"), {"a": {1, 2}}, b"bytes", NUL, {NUL: 1}, f"\\{NUL}", LONE,
        "x" * (MAX_CHECKPOINT_BYTES - 1), "é" * (MAX_CHECKPOINT_BYTES // 2),
    ],
)  # fmt: skip
def test_a_checkpoint_that_cannot_be_kept_is_refused(value: object) -> None:
    """What is no JSON, what the database cannot store, and what is too large."""
    with pytest.raises(ValidationFailed):
        check_checkpoint(value)


def test_a_checkpoint_nested_without_end_is_refused() -> None:
    """A handler's list may contain itself, or a hundred thousand others."""
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    loop: list[object] = []
    loop.append(loop)

    for value in (nested, loop):
        with pytest.raises(ValidationFailed):
            check_checkpoint(value)


@given(text=st.text(st.characters(codec=None, exclude_categories=()), max_size=40))
def test_a_checkpoint_is_judged_by_what_it_holds(text: str) -> None:
    """Exactly the texts with U+0000 or half a character are refused, however they are escaped."""
    fine = NUL not in text and not any("\ud800" <= char <= "\udfff" for char in text)
    try:
        check_checkpoint({"text": text})
    except ValidationFailed:
        assert not fine
    else:
        assert fine


@given(text=st.text(st.characters(codec=None, exclude_categories=())))
def test_an_error_is_kept_whatever_it_holds(text: str) -> None:
    """A worker that fails is never refused for what it says of it."""
    kept = error_text(text)

    assert NUL not in json.loads(json.dumps(kept))
    assert len(kept.encode()) <= 4 * MAX_ERROR_CHARACTERS


def test_a_long_error_is_cut_at_its_end() -> None:
    """The first 4,096 characters tell what happened."""
    assert error_text("e" * 5_000) == "e" * MAX_ERROR_CHARACTERS
