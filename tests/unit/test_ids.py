"""Identifiers and names."""

import re
import uuid

import pytest

from jobengine.clock import utc_now
from jobengine.ids import JOB_TYPE, is_id, new_id


def test_a_new_id_is_a_uuid_of_version_seven() -> None:
    """RFC 9562: the version, the variant, and the milliseconds of its making."""
    before = utc_now().timestamp() * 1_000
    made = uuid.UUID(new_id())
    after = utc_now().timestamp() * 1_000

    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert before - 1 <= made.int >> 80 <= after


def test_new_ids_differ_and_sort_by_their_making() -> None:
    """Within one millisecond chance decides; over milliseconds time does."""
    ids = [new_id() for _ in range(5_000)]

    assert len(set(ids)) == len(ids)
    assert [text[:13] for text in ids] == sorted(text[:13] for text in ids)
    assert all(is_id(text) for text in ids)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "0198c0de000070008000000000000000",
        "{0198c0de-0000-7000-8000-000000000000}",
        "0198C0DE-0000-7000-8000-000000000000",
        "0198c0de-0000-7000-8000-000000000000\n",
        "urn:uuid:0198c0de-0000-7000-8000-000000000000",
        "\uff10198c0de-0000-7000-8000-000000000000",
    ],
)
def test_another_spelling_of_an_id_is_none(text: str) -> None:
    """One object has one id, and one id one spelling."""
    assert not is_id(text)


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("a", True),
        ("9", True),
        ("A.b_c-d", True),
        ("a" * 100, True),
        ("", False),
        ("a" * 101, False),
        (".a", False),
        ("-a", False),
        ("_a", False),
        ("a b", False),
        ("a/b", False),
        ("a\n", False),
        ("é", False),
        ("a\x00", False),
    ],
)
def test_a_job_type_is_named_like_one(name: str, good: bool) -> None:
    """`[A-Za-z0-9][A-Za-z0-9._-]{0,99}`, and nothing behind it."""
    assert (re.search(JOB_TYPE, name) is not None) == good
