"""What frameworks let pass and this server does not: over real HTTP, down to raw sockets."""

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.acceptance.callers import SMALL, Caller, backfill_ask, done
from tests.acceptance.serving import Server, eventually
from tests.factories import expect_problem

MEGABYTE = 2**20


class Wire:
    """One connection, spoken to byte by byte."""

    def __init__(self, server: Server) -> None:
        host = urlsplit(server.url)
        self.socket = socket.create_connection((host.hostname or "", host.port or 0), timeout=30)

    def send(self, sent: bytes) -> None:
        """Send as much as the other side takes."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(sent)

    def status(self) -> int | None:
        """Return the status of the next answer, None when there is none before the other side closes."""
        try:
            line = self.socket.makefile("rb").readline()
        except (ConnectionResetError, BrokenPipeError):
            return None
        return int(line.split()[1]) if line else None


@pytest.fixture
def wire(served: Server) -> Iterator[Wire]:
    """A connection; at the end the server must be as ready as before."""
    opened = Wire(served)
    yield opened
    opened.socket.close()
    eventually(served.is_ready, 10, "a ready server")


def head(method: str, path: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: jobengine", *headers, "", ""]).encode("latin-1")


def posted(caller: Caller, body: bytes, path: str = "/quotas", media_type: str = "application/json") -> Any:
    return caller.send("POST", path, content=body, headers={"Content-Type": media_type})


# --- documents


@pytest.mark.parametrize(
    "body",
    [
        b'{"job_type": "scan", "job_type": "other", "limits": {}}',
        b'{"job_type": "scan", "limits": {"burst": 1, "b\\u0075rst": 2}}',
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"[" * 33 + b"]" * 33,
        b'{"job_type": "\xff\xfe"}',
        b'{"job_type": "\xed\xa0\x80"}',
        '{"job_type": "scan"}'.encode("utf-16"),
        b"   ",
        b"{",
        b'{"job_type": "scan"} {}',
        b'{"limits": NaN}',
        b'{"limits": Infinity}',
        b"{'job_type': 'scan'}",
        b'{"job_type": "scan",}',
        b'{"job_type": "a\nb"}',
    ],
    ids=[
        "repeated key", "key repeated in escapes", "deep arrays", "deep objects", "33 deep", "bad utf-8",
        "raw surrogate", "utf-16", "blank", "cut", "two documents", "not a number", "infinity", "single quotes",
        "trailing comma", "raw control",
    ],
)  # fmt: skip
def test_body_that_is_not_one_json_document_is_malformed(refused: Caller, body: bytes) -> None:
    """Whatever a lenient parser would make of it, the answer is 400 and nothing happens."""
    expect_problem(posted(refused, body), 400, "malformed_json")

    assert refused.items("/quotas") == []


@pytest.mark.parametrize(
    ("change", "code", "path"),
    [
        ({"limitz": {}}, "unknown_field", "limitz"),
        ({"limits": {**SMALL, "max": 1}}, "unknown_field", "limits.max"),
        ({"job_type": "a\x00b"}, "validation_failed", "job_type"),
        ({"job_type": "\ud800"}, "validation_failed", "job_type"),
        ({"job_type": ""}, "validation_failed", "job_type"),
        ({"job_type": "-scan"}, "validation_failed", "job_type"),
        ({"job_type": "scan\n"}, "validation_failed", "job_type"),
        ({"job_type": 5}, "validation_failed", "job_type"),
        ({"limits": {**SMALL, "burst": int("9" * 401)}}, "validation_failed", "limits.burst"),
        ({"limits": {**SMALL, "burst": 10**12 + 1}}, "validation_failed", "limits.burst"),
        ({"limits": {**SMALL, "burst": -1}}, "validation_failed", "limits.burst"),
        ({"limits": {**SMALL, "burst": 1.5}}, "validation_failed", "limits.burst"),
        ({"limits": {**SMALL, "burst": True}}, "validation_failed", "limits.burst"),
        ({"limits": {**SMALL, "burst": "1"}}, "validation_failed", "limits.burst"),
        ({"limits": {**SMALL, "burst": None}}, "validation_failed", "limits.burst"),
        ({"limits": {**SMALL, "refill_per_second": 0.0000001}}, "validation_failed", "limits.refill_per_second"),
        ({"limits": {"burst": 1}}, "validation_failed", "limits"),
        ({"limits": None}, "validation_failed", "limits"),
    ],
)
def test_member_of_the_wrong_name_type_or_range_is_refused_with_its_path(
    refused: Caller, change: dict[str, Any], code: str, path: str
) -> None:
    """The problem names the member, and nothing happens."""
    body = json.dumps({"job_type": "scan", "limits": SMALL} | change).encode()

    problem = expect_problem(posted(refused, body), 422, code)

    assert [error["path"] for error in problem["errors"]] == [path]
    assert problem["errors"][0]["message"]
    assert refused.items("/quotas") == []


def test_body_that_is_left_out_where_one_is_needed_is_refused(refused: Caller) -> None:
    """The problem says so, and says it of the body."""
    problem = expect_problem(posted(refused, b""), 422, "validation_failed")

    assert [error["path"] for error in problem["errors"]] == ["body"]


@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"scan"', b"1e999"])
def test_body_that_is_no_object_is_refused(refused: Caller, body: bytes) -> None:
    """It is JSON, but not what the path takes."""
    expect_problem(posted(refused, body), 422, "validation_failed")


@pytest.mark.parametrize(
    "moment",
    [
        "2026-03-01T00:00:00", "2026-03-01T00:00:00+01:00", "2026-03-01T00:00:00+00:00", "2026-03-01T23:59:60Z",
        "2026-03-01T00:00:00.1234567Z", "2026-03-01", "2026-02-29T00:00:00Z", "2026-03-01t00:00:00z", "1772323200",
        "2026-03-01 00:00:00Z", "٢٠٢٦-03-01T00:00:00Z", "", "now",
    ],
)  # fmt: skip
def test_time_that_is_not_rfc_3339_in_utc_is_refused(refused: Caller, moment: str) -> None:
    """Naive times, other offsets, leap seconds and finer fractions have no agreed meaning here."""
    window = {"start": moment, "end": "2026-03-02T00:00:00Z"}

    problem = expect_problem(refused.backfill(window=window), 422, "validation_failed")

    assert [error["path"] for error in problem["errors"]] == ["window.start"]
    assert refused.items("/backfills") == []


def test_times_are_echoed_with_six_digits_or_none(caller: Caller) -> None:
    """A fraction is written out in full, a zero one is left away."""
    window = {"start": "2026-03-01T00:00:00.5Z", "end": "2026-03-01T06:00:00.000Z"}

    started = done(caller.backfill(window=window), 202)

    assert started["window"] == {"start": "2026-03-01T00:00:00.500000Z", "end": "2026-03-01T06:00:00Z"}


@pytest.mark.parametrize(
    ("partition", "batches"),
    [("PT1H", 24 * 31), ("PT60M", 24 * 31), ("PT24H", 31), ("P1D", 31), ("P1W", 5), ("P7D", 5), ("P1M", 1), ("P1Y", 1)],
)
def test_duration_of_a_partition_is_echoed_as_it_was_sent(caller: Caller, partition: str, batches: int) -> None:
    """PT1H stays PT1H and PT60M stays PT60M, in the answer and afterwards."""
    window = {"start": "2026-01-01T00:00:00Z", "end": "2026-02-01T00:00:00Z"}

    started = done(caller.backfill(window=window, partition=partition), 202)

    assert (started["partition"], started["progress"]["batches"]["total"]) == (partition, batches)
    assert caller.get(f"/backfills/{started['backfill_id']}")["partition"] == partition


@pytest.mark.parametrize("partition", ["PT0S", "P0D", "PT1S", "1D", "P-1D", "P1.5D", "P", "P1DT1H", "", "p1d"])
def test_duration_that_is_no_partition_is_refused(refused: Caller, partition: str) -> None:
    """Only whole years, months, weeks, days, hours or minutes partition a window."""
    expect_problem(refused.backfill(partition=partition), 422, "validation_failed")


def test_durations_of_the_policy_are_echoed_as_they_were_sent(governor: Caller) -> None:
    """PT168H does not become P7D."""
    before = governor.get("/policy")

    changed = done(governor.send("PUT", "/policy", json={"max_override_duration": "PT168H"}), 200)

    assert changed["max_override_duration"] == governor.get("/policy")["max_override_duration"] == "PT168H"
    done(governor.send("PUT", "/policy", json={"max_override_duration": before["max_override_duration"]}), 200)


def test_params_come_back_as_they_were_sent(caller: Caller) -> None:
    """Numbers, order of members and characters of every plane survive the way in and out."""
    params = {"z": 1, "a": [1.5, -0.25, 10**15, True, None, {"ü": "日本 \U0001f40d \x7f \u2028"}], "": {}}

    started = done(caller.backfill(params=params), 202)

    assert started["params"] == started["scope"]["params"] == params


# --- sizes


@pytest.mark.parametrize("size", [MEGABYTE + 1, 10 * MEGABYTE])
def test_body_over_a_megabyte_is_too_large(refused: Caller, size: int) -> None:
    """The answer is 413 and nothing happens; a body of exactly a megabyte is read."""
    expect_problem(posted(refused, b'{"job_type": "' + b"a" * (size - 16) + b'"}'), 413, "payload_too_large")

    expect_problem(posted(refused, b'{"job_type": "' + b"a" * (MEGABYTE - 16) + b'"}'), 422, "validation_failed")


def test_body_that_comes_in_chunks_without_a_length_is_bounded_too(refused: Caller, wire: Wire) -> None:
    """Ten megabytes in chunks are cut off at the first one too many."""
    token = refused.token()
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    wire.send(
        head(
            "POST", "/api/v1/quotas", f"Authorization: Bearer {token}", "Content-Type: application/json",
            "Transfer-Encoding: chunked",
        )
    )  # fmt: skip
    wire.send(chunk * 160 + b"0\r\n\r\n")

    assert wire.status() == 413


def test_four_megabytes_of_event_keys_are_read_where_they_are_allowed(caller: Caller) -> None:
    """Ten thousand keys of 256 bytes fit, one key more does not."""
    done(caller.post("/backfills", backfill_ask()), 202)
    [batch] = done(caller.post("/batches/claim", {"job_types": ["external"]}))["batches"]
    path, keys = f"/batches/{batch['batch_id']}/events/claim", [f"{n:0>256}" for n in range(10_000)]

    found = done(caller.post(path, {"fencing_token": batch["fencing_token"], "keys": keys}), 200)

    assert found["fresh"] == keys
    more = {"fencing_token": batch["fencing_token"], "keys": [*keys, "one more"]}
    expect_problem(caller.post(path, more), 422, "validation_failed")
    longer = {"fencing_token": batch["fencing_token"], "keys": ["é" * 129]}
    expect_problem(caller.post(path, longer), 422, "validation_failed")


@pytest.mark.parametrize(
    "sent",
    [
        head("GET", "/healthz", "X-Large: " + "a" * 270_000),
        head("GET", "/healthz", *(f"X-{number}: {'a' * 100}" for number in range(2_700))),
        head("GET", "/healthz?" + "a" * 270_000),
        b"GET /healthz HTTP/1.1\r\nHost: jobengine\r\nX-Never-Ends: " + b"a" * 270_000,
    ],
    ids=["one header", "many headers", "request line", "header without an end"],
)
def test_head_of_270_kilobytes_is_refused(wire: Wire, sent: bytes) -> None:
    """It is answered 431, or cut off before its end."""
    wire.send(sent)

    assert wire.status() in {431, None}


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n\r\n\r\n\r\nnonsense\r\n\r\n",
        head("POST", "/api/v1/quotas", "Content-Length: 5", "Content-Length: 6") + b"{}    ",
        head("POST", "/api/v1/quotas", "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        head("POST", "/api/v1/quotas", "Content-Length: -1") + b"{}",
        head("POST", "/api/v1/quotas", "Transfer-Encoding: chunked") + b"ZZ\r\n{}\r\n0\r\n\r\n",
        head("GET", "/healthz\x00"),
    ],
    ids=["tls", "version", "nonsense", "two lengths", "length and chunks", "negative", "bad chunk", "nul"],
)
def test_bytes_that_are_no_http_request_are_refused(wire: Wire, sent: bytes) -> None:
    """The connection ends with a 4xx or with nothing, and the server goes on."""
    wire.send(sent)
    wire.socket.shutdown(socket.SHUT_WR)

    assert wire.status() in {400, 401, 404, None}


# --- the request around the body


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "nonsense"]
)
def test_body_of_another_media_type_is_not_taken(refused: Caller, media_type: str) -> None:
    """JSON in UTF-8 is the only language."""
    body = json.dumps({"job_type": "scan", "limits": SMALL}).encode()

    expect_problem(posted(refused, body, media_type=media_type), 415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("?page_sise=1", 422, "validation_failed"),
        ("?page_size=1&page_size=2", 422, "validation_failed"),
        ("?page_size=0", 422, "validation_failed"),
        ("?page_size=501", 422, "validation_failed"),
        ("?page_size=x", 422, "validation_failed"),
        ("?job_type=%00", 422, "validation_failed"),
        ("?page_token=nonsense", 422, "page_token_invalid"),
        ("?page_token=%FF%FE", 422, "page_token_invalid"),
        ("?access_token=x", 400, "malformed_request"),
    ],
)
def test_query_that_the_path_does_not_take_is_refused(refused: Caller, query: str, status: int, code: str) -> None:
    """A mistyped filter never turns into the whole list."""
    expect_problem(refused.send("GET", f"/quotas{query}"), status, code)


@pytest.mark.parametrize("path", ["/nonsense", "/quotas/%00", "/quotas/" + "a" * 5_000, "/quotas/%2e%2e/policy/x"])
def test_path_that_leads_nowhere_is_a_problem_document(refused: Caller, path: str) -> None:
    """Not found is told the same way everywhere."""
    expect_problem(refused.send("GET", path), 404, "not_found")


def test_method_that_the_path_does_not_take_is_told_which_it_does(refused: Caller) -> None:
    """405 comes with Allow."""
    answer = refused.send("PUT", "/quotas")

    expect_problem(answer, 405, "method_not_allowed")
    assert {"GET", "POST"} <= {name.strip() for name in answer.headers["Allow"].split(",")}


@pytest.mark.parametrize("key", ["", "a" * 129, "with blank", "ümlaut", "tab\tkey"])
def test_idempotency_key_that_is_no_word_is_refused(refused: Caller, key: str) -> None:
    """A key that a proxy could change is no key."""
    headers = [("Idempotency-Key", key.encode("latin-1"))]

    answer = refused.send("POST", "/quotas", json={"job_type": "scan", "limits": SMALL}, headers=headers)

    expect_problem(answer, 422, "validation_failed")
    assert refused.items("/quotas") == []


def test_numbers_of_fencing_tokens_beyond_every_range_are_lost_leases(caller: Caller) -> None:
    """A 401-digit token is some integer that is not the lease's."""
    lease = done(caller.post("/admissions", {"job_type": "scan"}), 201)
    for token in (0, -1, 2**63, int("9" * 401)):
        body = json.dumps({"fencing_token": token}).encode()

        answer = posted(caller, body, f"/admissions/{lease['lease_id']}/renew")

        expect_problem(answer, 409, "lease_lost")
