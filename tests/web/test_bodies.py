"""Contract section 1: what a body may be, and what is said about one that may not."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.factories import LIMITS, Api, expect_problem

JSON = {"Content-Type": "application/json"}
MEBIBYTE = 2**20
GOOD = json.dumps({"job_type": "scan", "limits": LIMITS})
ADMISSION = '{"job_type": "scan", "job_id": %s}'

MALFORMED = {
    "not JSON": b"job_type=scan",
    "half a document": GOOD.encode()[:-1],
    "two documents": GOOD.encode() * 2,
    "a key repeated": b'{"job_type": "scan", "job_type": "load"}',
    "a nested key repeated": b'{"job_type": "scan", "limits": {"burst": 1, "burst": 2}}',
    "a key repeated in another spelling": b'{"job_type": "scan", "job\\u005ftype": "load"}',
    "bad UTF-8": b'{"job_type": "sc\xff"}',
    "an overlong form": b'{"job_type": "sc\xc0\x80"}',
    "an encoded surrogate": b'{"job_type": "sc\xed\xa0\x80"}',
    "UTF-16": GOOD.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + GOOD.encode(),
    "NaN": b'{"job_type": "scan", "limits": NaN}',
    "Infinity": b'{"job_type": "scan", "limits": -Infinity}',
    "a raw control character": b'{"job_type": "sc\x01n"}',
    "33 deep": b"[" * 33 + b"]" * 33,
    "100,000 deep": b"[" * 100_000 + b"]" * 100_000,
    "100,000 deep and never closed": b'{"a":' * 100_000,
    "only space": b"  ",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
async def test_a_body_that_is_not_one_json_document_is_malformed(api: Api, body: bytes) -> None:
    """Not JSON, duplicate keys, bad UTF-8 and nesting over 32 are 400, and never a fault of ours."""
    expect_problem(await api.send("POST", "/quotas", content=body, headers=JSON), 400, "malformed_json")


INVALID: dict[str, tuple[Any, str]] = {
    "no limits": ({"job_type": "scan"}, "body"),
    "a list": ([], "body"),
    "null": (None, "body"),
    "a number as job type": ({"job_type": 5, "limits": LIMITS}, "job_type"),
    "an empty job type": ({"job_type": "", "limits": LIMITS}, "job_type"),
    "a job type with a space": ({"job_type": "a b", "limits": LIMITS}, "job_type"),
    "a job type that ends a line": ({"job_type": "scan\n", "limits": LIMITS}, "job_type"),
    "a job type of 101 characters": ({"job_type": "a" * 101, "limits": LIMITS}, "job_type"),
    "a job type that begins with a dot": ({"job_type": ".a", "limits": LIMITS}, "job_type"),
    "a letter that only looks like one": ({"job_type": "\u0455can", "limits": LIMITS}, "job_type"),
    "a limit below zero": ({"job_type": "scan", "limits": LIMITS | {"burst": -1}}, "limits.burst"),
    "a limit above 10^12": ({"job_type": "scan", "limits": LIMITS | {"burst": 10**12 + 1}}, "limits.burst"),
    "a limit as text": ({"job_type": "scan", "limits": LIMITS | {"max_active": "5"}}, "limits.max_active"),
    "a limit as truth": ({"job_type": "scan", "limits": LIMITS | {"max_active": True}}, "limits.max_active"),
    "half a slot": ({"job_type": "scan", "limits": LIMITS | {"max_active": 0.5}}, "limits.max_active"),
    "no limit": ({"job_type": "scan", "limits": LIMITS | {"max_active": None}}, "limits.max_active"),
    "a refill above 10^9": (
        {"job_type": "scan", "limits": LIMITS | {"refill_per_second": 10**9 + 1}},
        "limits.refill_per_second",
    ),
    "a refill with seven decimals": (
        {"job_type": "scan", "limits": LIMITS | {"refill_per_second": 0.0000001}},
        "limits.refill_per_second",
    ),
}


@pytest.mark.parametrize(("body", "path"), INVALID.values(), ids=INVALID)
async def test_a_value_of_a_wrong_type_or_range_is_named_by_its_path(api: Api, body: object, path: str) -> None:
    """The answer is 422 and names the member."""
    answer = await api.send("POST", "/quotas", content=json.dumps(body), headers=JSON)

    [error] = expect_problem(answer, 422, "validation_failed")["errors"]
    assert error["path"] == path
    assert error["message"]


@pytest.mark.parametrize("digits", ["9" * 401, "-" + "9" * 401, "1" + "0" * 5_000, "1e400", "-1e400", "9" * 19])
async def test_a_number_beyond_every_range_is_a_wrong_value(api: Api, digits: str) -> None:
    """An integer of 401 digits is as wrong as any other, and costs no more."""
    body = GOOD.replace('"burst": 10', f'"burst": {digits}')

    expect_problem(await api.send("POST", "/quotas", content=body, headers=JSON), 422, "validation_failed")


@pytest.mark.parametrize("text", ['"a\\u0000b"', '"\\u0000"', '"\\ud800"', '"\\udfff\\ud800"', '"a\\ud83d"'])
async def test_a_string_that_no_text_can_hold_is_a_wrong_value(api: Api, text: str) -> None:
    """U+0000 and lone surrogates are refused before anything stores them."""
    answer = await api.send("POST", "/admissions", content=ADMISSION % text, headers=JSON)

    assert expect_problem(answer, 422, "validation_failed")["errors"][0]["path"] == "job_id"


@pytest.mark.parametrize("name", ["a\\u0000b", "\\ud800"])
async def test_a_field_name_that_no_text_can_hold_is_a_wrong_value(api: Api, name: str) -> None:
    """What is wrong with a name is said without repeating it."""
    answer = await api.send("POST", "/admissions", content=f'{{"job_type": "scan", "{name}": 1}}', headers=JSON)

    assert expect_problem(answer, 422, "validation_failed")["errors"][0]["path"] == "body"


async def test_a_pair_of_surrogates_is_one_character(api: Api) -> None:
    """An escaped emoji is text like any other."""
    answer = await api.send("POST", "/admissions", content=ADMISSION % '"\\ud83d\\ude80"', headers=JSON)

    assert (answer.status_code, answer.json()["job_id"]) == (201, "🚀")


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"job_type": "scan", "limits": LIMITS, "tenant_id": "acme"}, "tenant_id"),
        ({"job_type": "scan", "limits": LIMITS | {"max_actve": 1}}, "limits.max_actve"),
        ({"job_type": "scan", "limits": LIMITS, "": 1}, ""),
    ],
)
async def test_an_unknown_field_is_named_and_refused(api: Api, body: object, path: str) -> None:
    """A misspelled field never passes in silence; a tenant in a body is one."""
    answer = await api.post("/quotas", body)

    assert expect_problem(answer, 422, "unknown_field")["errors"][0]["path"] == path


@pytest.mark.parametrize("body", [b"null", b"[]", b'{"force": true}', b"0"])
async def test_a_call_without_a_documented_body_takes_none_or_an_empty_object(api: Api, body: bytes) -> None:
    """Anything else says something that nobody would listen to."""
    path = f"/quotas/{(await api.quota())['quota_id']}/resume"

    assert (await api.send("POST", path)).status_code == 200
    assert (await api.send("POST", path, content=b"{}", headers=JSON)).status_code == 200
    assert (await api.send("POST", path, content=body, headers=JSON)).status_code == 422


@pytest.mark.parametrize(
    "media_type",
    ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "multipart/form-data"],
)
async def test_a_body_of_another_media_type_is_refused(api: Api, media_type: str) -> None:
    """A browser's form cannot be mistaken for a request."""
    answer = await api.send("POST", "/quotas", content=GOOD, headers={"Content-Type": media_type})

    expect_problem(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "media_type", ["application/json; charset=utf-8", "Application/JSON", 'application/json;charset="UTF-8"']
)
async def test_json_in_utf8_may_say_that_it_is(api: Api, media_type: str) -> None:
    """The parameter repeats what JSON is anyway."""
    answer = await api.send("POST", "/quotas", content=GOOD, headers={"Content-Type": media_type})

    assert answer.status_code == 201


def _padded(size: int) -> bytes:
    return GOOD.encode() + b" " * (size - len(GOOD))


async def test_a_body_of_a_mebibyte_passes_and_one_byte_more_does_not(api: Api) -> None:
    """The limit is 1 MiB, spaces included."""
    over = await api.send("POST", "/quotas", content=_padded(MEBIBYTE + 1), headers=JSON)
    at_it = await api.send("POST", "/quotas", content=_padded(MEBIBYTE), headers=JSON)

    expect_problem(over, 413, "payload_too_large")
    assert at_it.status_code == 201


async def test_a_body_of_unknown_length_is_cut_off_at_the_limit(api: Api) -> None:
    """Without a Content-Length the bytes are counted as they come."""

    async def stream() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 65_536

    expect_problem(await api.send("POST", "/quotas", content=stream(), headers=JSON), 413, "payload_too_large")


async def test_a_batch_of_admissions_may_be_four_times_as_large(api: Api) -> None:
    """``/admissions/batch`` takes 4 MiB."""
    body = json.dumps({"requests": [{"job_type": "scan"}]}).encode()

    at_it = body + b" " * (4 * MEBIBYTE - len(body))
    assert (await api.send("POST", "/admissions/batch", content=at_it, headers=JSON)).status_code == 200
    over = await api.send("POST", "/admissions/batch", content=at_it + b" ", headers=JSON)
    expect_problem(over, 413, "payload_too_large")
