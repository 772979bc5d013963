"""Page tokens: opaque, and good for one list only."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobengine.errors import ValidationFailed
from jobengine.web.pages import Pager

PAGER = Pager(b"k" * 32, "quotas of acme")


@given(st.text(max_size=80))
def test_a_token_continues_where_its_page_ended(cursor: str) -> None:
    """Whatever the cursor is."""
    token = PAGER.token(cursor)

    assert PAGER.cursor(token) == cursor
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@pytest.mark.parametrize("other", [Pager(b"k" * 32, "quotas of other"), Pager(b"x" * 32, "quotas of acme")])
def test_a_token_of_another_list_or_key_is_refused(other: Pager) -> None:
    """It was not made for this one."""
    with pytest.raises(ValidationFailed) as caught:
        PAGER.cursor(other.token("0198"))

    assert caught.value.problem_code == "page_token_invalid"


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_a_made_up_token_is_refused(token: str) -> None:
    """Never guessed, never a fault of ours."""
    with pytest.raises(ValidationFailed):
        PAGER.cursor(token)


@given(st.integers(0, 200), st.integers(1, 255))
def test_a_changed_token_is_refused(place: int, change: int) -> None:
    """Every bit counts."""
    raw = bytearray(base64.urlsafe_b64decode(PAGER.token("0198c0de" * 4)))
    raw[place % len(raw)] ^= change

    with pytest.raises(ValidationFailed):
        PAGER.cursor(base64.urlsafe_b64encode(bytes(raw)).decode())


def test_a_page_tells_whether_there_is_another() -> None:
    """One more item than the page holds was fetched to know it."""
    full = PAGER.page(["a", "b", "c"], 2, ["1", "2", "3"])
    last = PAGER.page(["a", "b"], 2, ["1", "2"])

    assert (full["items"], PAGER.cursor(full["next_page_token"])) == (["a", "b"], "2")
    assert last == {"items": ["a", "b"], "next_page_token": None}
    assert PAGER.page([], 2, []) == {"items": [], "next_page_token": None}
    assert PAGER.cursor(None) is None
