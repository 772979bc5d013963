"""Workers outside the server: a command or a URL with its batch's own token, and programs that call the API."""

import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
import pytest
from tests.acceptance.callers import API, ROOMY, Caller, done
from tests.acceptance.serving import (
    EVERY_ROLE,
    ROOT,
    Credentials,
    Installation,
    Server,
    eventually,
    new_tenants,
    serving,
)
from tests.factories import expect_problem

from jobengine.clock import parse_time, utc_now

COMMAND = shlex.join([sys.executable, str(ROOT / "tests" / "acceptance" / "command_worker.py")])
SECRETS = {"JOBENGINE_CLIENT_SECRET": "a-secret-of-the-server"}
JOB_TYPES = """\
[job_types.command]
handler = '''command:{command}'''

[job_types.url]
handler = "http:{url}/run"
max_attempts = 2

[job_types.external]
handler = "external"
lease_seconds = 5

[job_types.patient]
handler = "external"
lease_seconds = 300
"""
END_SECONDS = 20


@dataclass(slots=True)
class Receiver:
    """What a URL of somebody's own was sent, and what it answers: statuses in turn, then 200."""

    statuses: list[int] = field(default_factory=list[int])
    sent: list[tuple[str, dict[str, Any]]] = field(default_factory=list[tuple[str, dict[str, Any]]])

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """Return the class that answers requests."""
        receiver = self

        class Answering(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.sent.append((self.headers["Authorization"], body))
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
                self.end_headers()

            def log_message(self, *words: object) -> None:
                """Stay silent."""

        return Answering


@pytest.fixture(scope="module")
def listening() -> Iterator[tuple[Receiver, str]]:
    """A URL of somebody's own."""
    receiver = Receiver()
    with ThreadingHTTPServer(("127.0.0.1", 0), receiver.handler()) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield receiver, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def receiver(listening: tuple[Receiver, str]) -> Receiver:
    """What it was sent, empty at first."""
    listening[0].sent.clear()
    return listening[0]


@pytest.fixture(scope="module")
def worked(
    tmp_path_factory: pytest.TempPathFactory, listening: tuple[Receiver, str], module_database: dict[str, str]
) -> Iterator[tuple[Server, Credentials, Iterator[str]]]:
    """A server with job types for workers of every kind."""
    job_types = JOB_TYPES.format(command=COMMAND, url=listening[1])
    installation = Installation.make(tmp_path_factory.mktemp("workers"), job_types, **module_database)
    try:
        with serving(installation, **SECRETS) as server:
            credentials = installation.create_client("ours", new_tenants(20), EVERY_ROLE)
            yield server, credentials, iter(credentials.tenants)
    finally:
        installation.clean_up()


@pytest.fixture
def caller(http: httpx2.Client, worked: tuple[Server, Credentials, Iterator[str]]) -> Caller:
    """Somebody in a new tenant, whose job types have all the room they want."""
    server, credentials, tenants = worked
    made = Caller(http, server.url, credentials, next(tenants))
    for job_type in ("command", "url", "external", "patient"):
        done(made.post("/quotas", {"job_type": job_type, "limits": ROOMY}), 201)
    return made


def started(caller: Caller, job_type: str, **params: object) -> dict[str, Any]:
    """Start a backfill of two batches."""
    return done(caller.backfill(job_type=job_type, partition="PT12H", params=params), 202)


def claimed(caller: Caller, job_type: str) -> dict[str, Any]:
    """Claim one batch as soon as there is one."""
    ask = {"job_types": [job_type]}
    [batch] = eventually(lambda: done(caller.post("/batches/claim", ask))["batches"], END_SECONDS, "a claimed batch")
    return batch


def say(caller: Caller, batch: dict[str, Any], verb: str, **body: object) -> httpx2.Response:
    """Send a worker's call."""
    return caller.post(f"/batches/{batch['batch_id']}/{verb}", {"fencing_token": batch["fencing_token"], **body})


def seen(out: Path, attempt: int) -> list[dict[str, Any]]:
    """Return what the commands of these attempts wrote, by their windows."""
    found = [json.loads(path.read_text("utf-8")) for path in out.glob(f"*.{attempt}.json")]
    return sorted(found, key=lambda each: each["batch"]["window"]["start"])


# --- command:


def test_command_claims_events_saves_and_completes_with_its_batch_token(caller: Caller, tmp_path: Path) -> None:
    """It gets the batch on standard input, and nothing of the server's own secrets."""
    backfill = started(caller, "command", out=str(tmp_path), then="complete")

    ended = caller.ended(backfill["backfill_id"], END_SECONDS)

    assert (ended["status"], ended["progress"]["batches"]["succeeded"]) == ("completed", 2)
    assert ended["progress"]["events"] == {"processed": 20, "duplicates": 0, "failed": 0}
    for attempt in seen(tmp_path, 1):
        batch = attempt["batch"]
        keys = [f"{batch['window']['start']}/{number}" for number in range(10)]
        assert attempt["first"] + attempt["second"] == keys
        assert (batch["backfill_id"], batch["attempt"]) == (backfill["backfill_id"], 1)
        assert batch["params"] == backfill["params"]
        assert SECRETS.items() & attempt["environ"].items() == set()
        assert {name for name in attempt["environ"] if name.startswith("JOBENGINE_")} >= {
            "JOBENGINE_URL",
            "JOBENGINE_TOKEN",
        }


def test_command_that_ends_with_75_is_retried_from_its_checkpoint(caller: Caller, tmp_path: Path) -> None:
    """What the checkpoint made final stays done; what was claimed after it is free again."""
    backfill = started(caller, "command", out=str(tmp_path), then="retry")

    ended = caller.ended(backfill["backfill_id"], END_SECONDS)

    assert ended["status"] == "completed"
    for first, second in zip(seen(tmp_path, 1), seen(tmp_path, 2), strict=True):
        assert (second["batch"]["checkpoint"], second["first"]) == ("half", [])
        assert second["second"] == first["second"]
        assert second["batch"]["fencing_token"] > first["batch"]["fencing_token"]


@pytest.mark.parametrize(("then", "error"), [("fail", "exit 1: the attempt was told to fail"), ("die", "exit -6")])
def test_command_that_fails_fails_its_batch_until_it_is_retried(
    caller: Caller, tmp_path: Path, then: str, error: str
) -> None:
    """Its last words are the batch's error; `retry-failed` runs the failed batches again, and only those."""
    backfill = started(caller, "command", out=str(tmp_path), then=then)

    ended = caller.ended(backfill["backfill_id"], END_SECONDS)

    assert (ended["status"], ended["progress"]["batches"]["failed"]) == ("failed", 2)
    batches = caller.items(f"/backfills/{backfill['backfill_id']}/batches")
    assert all(batch["error"].startswith(error) for batch in batches)
    done(caller.post(f"/backfills/{backfill['backfill_id']}/retry-failed"), 200)
    assert caller.ended(backfill["backfill_id"], END_SECONDS)["status"] == "completed"


def test_token_of_a_command_speaks_for_its_batch_alone_and_only_while_it_runs(caller: Caller, tmp_path: Path) -> None:
    """It opens nothing else, and nothing at all when the batch has ended."""
    ended = caller.ended(started(caller, "command", out=str(tmp_path), then="complete")["backfill_id"], END_SECONDS)
    assert ended["status"] == "completed"
    first, second = seen(tmp_path, 1)
    worker = caller.bearing(first["environ"]["JOBENGINE_TOKEN"])

    expect_problem(say(worker, second["batch"], "heartbeat"), 403, "forbidden")
    expect_problem(worker.post("/batches/claim", {"job_types": ["external"]}), 403, "forbidden")
    for path in ("/quotas", "/backfills", "/audit/entries", "/admissions"):
        expect_problem(worker.send("GET", path), 403, "insufficient_scope")
    expect_problem(worker.post("/admissions", {"job_type": "scan"}), 403, "insufficient_scope")
    expect_problem(say(worker, first["batch"], "heartbeat"), 409, "lease_lost")
    expect_problem(say(worker, first["batch"], "events/claim", keys=["more"]), 409, "lease_lost")


# --- http:


def test_url_gets_the_batch_and_a_token_for_it_and_completes_it_with_2xx(caller: Caller, receiver: Receiver) -> None:
    """503 asks for another try."""
    receiver.statuses[:] = [503]
    backfill = started(caller, "url", place="here")

    ended = caller.ended(backfill["backfill_id"], END_SECONDS)

    assert ended["status"] == "completed"
    assert sorted(body["attempt"] for _, body in receiver.sent) == [1, 1, 2]
    assert all(body["params"] == {"place": "here"} for _, body in receiver.sent)
    tokens = {authorization for authorization, _ in receiver.sent}
    assert len(tokens) == 3
    assert all(token.startswith("Bearer ey") for token in tokens)


def test_url_that_answers_500_fails_its_batch(caller: Caller, receiver: Receiver) -> None:
    """It is not asked again."""
    receiver.statuses[:] = [500, 500]

    ended = caller.ended(started(caller, "url")["backfill_id"], END_SECONDS)

    assert (ended["status"], len(receiver.sent)) == ("failed", 2)


# --- external


def test_external_worker_takes_two_batches_to_their_end(caller: Caller) -> None:
    """Claim, events, checkpoint, complete; saying the end again changes nothing, and the last batch ends it all."""
    backfill = started(caller, "patient")
    for number in range(2):
        batch = claimed(caller, "patient")
        keys = [f"{number}-{index}" for index in range(100)]
        assert done(say(caller, batch, "events/claim", keys=[*keys, keys[0]])) == {
            "fresh": keys, "duplicates": [], "busy": [],
        }  # fmt: skip
        beat = done(say(caller, batch, "heartbeat", checkpoint={"at": 100}, events={"processed": 100}))
        assert beat["cancel_requested"] is False
        assert done(say(caller, batch, "events/claim", keys=keys[:10]))["fresh"] == []
        for _ in range(2):
            assert say(caller, batch, "complete", events={"processed": 100, "failed": 1}).status_code == 204
        expect_problem(say(caller, batch, "heartbeat"), 409, "lease_lost")

    ended = caller.get(f"/backfills/{backfill['backfill_id']}")

    assert (ended["status"], ended["progress"]["events"]) == (
        "completed",
        {"processed": 200, "duplicates": 0, "failed": 2},
    )
    assert done(caller.post("/batches/claim", {"job_types": ["patient"]}))["batches"] == []


def test_batch_of_a_silent_worker_goes_to_another_that_goes_on_from_its_checkpoint(caller: Caller) -> None:
    """After five seconds without a word the lease is lost: what the first worker says then is not kept."""
    started(caller, "external")
    silent = claimed(caller, "external")
    say(caller, silent, "events/claim", keys=["a", "b"])
    done(say(caller, silent, "heartbeat", checkpoint=7), 200)
    done(say(caller, silent, "events/claim", keys=["c", "d"]), 200)

    def look() -> dict[str, Any] | None:
        batches = done(caller.post("/batches/claim", {"job_types": ["external"], "max": 64}))["batches"]
        return next((batch for batch in batches if batch["batch_id"] == silent["batch_id"]), None)

    taken = eventually(look, END_SECONDS, "the batch of the silent worker")

    assert utc_now() >= parse_time(silent["lease_expires_at"])
    assert (taken["attempt"], taken["checkpoint"]) == (2, 7)
    assert taken["fencing_token"] > silent["fencing_token"]
    assert done(say(caller, taken, "events/claim", keys=["a", "b", "c", "d"])) == {
        "fresh": ["c", "d"], "duplicates": ["a", "b"], "busy": [],
    }  # fmt: skip
    for verb, body in (
        ("heartbeat", {}),
        ("events/claim", {"keys": ["e"]}),
        ("complete", {}),
        ("fail", {"error": "late", "retryable": True}),
    ):
        expect_problem(say(caller, silent, verb, **body), 409, "lease_lost")
    assert say(caller, taken, "complete", events={"processed": 4}).status_code == 204


def test_backfill_that_is_canceled_tells_its_worker_and_is_canceled_within_15_seconds(caller: Caller) -> None:
    """A worker that listens gives up at once; one that does not is fenced out."""
    heard, deaf = (started(caller, "patient", number=number) for number in range(2))
    batches = [claimed(caller, "patient") for _ in range(2)]
    for backfill in (heard, deaf):
        assert done(caller.post(f"/backfills/{backfill['backfill_id']}/cancel"), 200)["status"] == "canceling"
    listening = next(batch for batch in batches if batch["backfill_id"] == heard["backfill_id"])
    not_listening = next(batch for batch in batches if batch["backfill_id"] == deaf["backfill_id"])

    assert done(say(caller, listening, "heartbeat"))["cancel_requested"] is True
    assert say(caller, listening, "fail", error="canceled", retryable=True).status_code == 204

    assert caller.get(f"/backfills/{heard['backfill_id']}")["status"] == "canceled"
    assert caller.ended(deaf["backfill_id"], 15)["status"] == "canceled"
    expect_problem(say(caller, not_listening, "complete"), 409, "lease_lost")


def test_stream_of_events_follows_a_backfill_to_its_end(caller: Caller, tmp_path: Path) -> None:
    """Server-Sent Events tell each state once, and the connection ends with the backfill."""
    backfill = started(caller, "command", out=str(tmp_path), then="complete")
    url = f"{caller.url}{API}/backfills/{backfill['backfill_id']}/events"

    with caller.http.stream("GET", url, headers=caller.authorization()) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        told = [
            block.splitlines() for block in "".join(answer.iter_text()).replace("\r\n", "\n").split("\n\n") if block
        ]

    states = [json.loads(line.removeprefix("data: ")) for block in told for line in block if line.startswith("data: ")]
    assert states[-1]["status"] == "completed"
    assert "event: end" in told[-1]
    assert {state["backfill_id"] for state in states} == {backfill["backfill_id"]}
