"""Workers without a database that ask for batches over HTTP: `jobengine worker`, and a program of forty lines."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.acceptance.callers import ROOMY, Caller, done
from tests.acceptance.serving import EVERY_ROLE, ROOT, Installation, Server, eventually, new_tenants, serving
from tests.broker.crew import Crew, employing
from tests.factories import expect_problem

from jobengine.cli.exits import Exit

END_SECONDS = 60
JOB_TYPES = f"""\
[job_types.python]
handler = "python:tests.broker.handlers:write"
executor = "worker"

[job_types.linger]
handler = "python:tests.broker.handlers:linger"
executor = "worker"
lease_seconds = 5

[job_types.command]
handler = '''command:{sys.executable} {ROOT / "tests/acceptance/command_worker.py"}'''
executor = "worker"

[job_types.external]
handler = "external"
"""


@pytest.fixture(scope="module")
def caller_at(
    tmp_path_factory: pytest.TempPathFactory, http: httpx2.Client, module_database: dict[str, str]
) -> Iterator[tuple[Server, Iterator[Caller]]]:
    """A server none of whose job types is its own, and callers in new tenants."""
    installation = Installation.make(tmp_path_factory.mktemp("elsewhere"), JOB_TYPES, **module_database)
    try:
        with serving(installation) as server:
            credentials = installation.create_client("ours", new_tenants(8), EVERY_ROLE)
            yield server, (Caller(http, server.url, credentials, tenant) for tenant in credentials.tenants)
    finally:
        installation.clean_up()


@pytest.fixture
def caller(caller_at: tuple[Server, Iterator[Caller]]) -> Caller:
    """Somebody in a new tenant, with all the room they want."""
    made = next(caller_at[1])
    for job_type in ("python", "linger", "command", "external"):
        done(made.post("/quotas", {"job_type": job_type, "limits": ROOMY}), 201)
    return made


@pytest.fixture
def crew(caller_at: tuple[Server, Iterator[Caller]], caller: Caller, tmp_path: Path) -> Iterator[Crew]:
    """Workers that ask, none at first."""
    environ = {"JOBENGINE_TENANT": caller.tenant}
    with employing(Crew(caller_at[0], caller.credentials, environ, tmp_path / "workers.log")) as made:
        yield made


def started(caller: Caller, job_type: str, **params: object) -> dict[str, Any]:
    """Start a backfill of four batches."""
    return done(caller.backfill(job_type=job_type, params=params), 202)


def test_worker_without_a_database_runs_python_handlers_and_commands(
    caller: Caller, crew: Crew, tmp_path: Path
) -> None:
    """Events are claimed, counted and saved over HTTP; a command speaks with a token for its batch alone."""
    worker = crew.start()

    written = caller.ended(started(caller, "python", out=str(tmp_path))["backfill_id"], END_SECONDS)
    commanded = caller.ended(started(caller, "command", out=str(tmp_path), then="complete")["backfill_id"], END_SECONDS)

    assert (written["status"], written["progress"]["events"]["processed"]) == ("completed", 80)
    assert (commanded["status"], commanded["progress"]["events"]["processed"]) == ("completed", 40)
    assert crew.stop(worker) == 0
    assert caller.credentials.secret not in crew.told()
    assert caller.items("/admissions") == []


def test_command_that_asks_for_a_retry_goes_on_from_its_checkpoint_elsewhere_too(
    caller: Caller, crew: Crew, tmp_path: Path
) -> None:
    """Exit 75, twice told: once to the worker, once by it to the server."""
    crew.start()

    ended = caller.ended(started(caller, "command", out=str(tmp_path), then="retry")["backfill_id"], END_SECONDS)

    assert (ended["status"], ended["progress"]["batches"]["succeeded"]) == ("completed", 4)
    # What the last attempts did counts, and what a checkpoint settled before is not done again.
    assert len(list(tmp_path.glob("*.2.json"))) == 4


def test_worker_that_is_shot_leaves_its_batch_to_the_next(caller: Caller, crew: Crew, tmp_path: Path) -> None:
    """The lease runs out, an attempt is counted, and the handler died with its worker."""
    backfill = done(caller.backfill(job_type="linger", partition="P1D", params={"out": str(tmp_path)}), 202)
    worker = crew.start()
    eventually(lambda: list(tmp_path.glob("*.1.*")) or None, END_SECONDS, "a handler at work")

    crew.kill(worker)
    (tmp_path / "go").touch()
    crew.start()

    assert caller.ended(backfill["backfill_id"], END_SECONDS)["status"] == "completed"
    [batch] = caller.items(f"/backfills/{backfill['backfill_id']}/batches")
    assert batch["attempts"] == 2


def test_canceled_backfill_ends_the_handler_of_a_worker_elsewhere(caller: Caller, crew: Crew, tmp_path: Path) -> None:
    """The worker hears of it with its next heartbeat."""
    backfill = done(caller.backfill(job_type="linger", partition="P1D", params={"out": str(tmp_path)}), 202)
    worker = crew.start()
    eventually(lambda: list(tmp_path.glob("*.1.*")) or None, END_SECONDS, "a handler at work")

    done(caller.post(f"/backfills/{backfill['backfill_id']}/cancel"), 200)

    assert caller.ended(backfill["backfill_id"], END_SECONDS)["status"] == "canceled"
    # At once: no handler is left to wait for.
    assert crew.stop(worker) == 0


def test_program_of_forty_lines_is_a_worker(caller: Caller, crew: Crew) -> None:
    """The example, as it stands in its folder."""
    example = ROOT / "examples" / "worker.py"
    crew.command = (str(example), "external")
    crew.environ["PYTHONPATH"] = ""
    crew.start()

    ended = caller.ended(started(caller, "external")["backfill_id"], END_SECONDS)

    assert (ended["status"], ended["progress"]["events"]["processed"]) == ("completed", 4)
    assert len(example.read_text("utf-8").splitlines()) <= 40


def test_attempt_gets_a_token_of_its_own_and_gives_its_batch_back(caller: Caller) -> None:
    """The token speaks for this attempt alone, and for nobody once the batch is given back; no attempt is counted."""
    backfill = done(caller.backfill(partition="P1D"), 202)
    [batch] = done(caller.post("/batches/claim", {"job_types": ["external"]}), 200)["batches"]
    path, held = f"/batches/{batch['batch_id']}", {"fencing_token": batch["fencing_token"]}
    answer = caller.post(f"{path}/token", held)
    own = caller.bearing(done(answer, 200)["token"])

    assert answer.headers["cache-control"] == "no-store"
    done(own.post(f"{path}/heartbeat", held), 200)
    assert own.post("/batches/claim", {"job_types": ["external"]}).status_code == 403
    assert own.post(f"{path}/token", {"fencing_token": batch["fencing_token"] + 1}).status_code == 403
    done(caller.post(f"{path}/release", held), 204)
    for verb in ("token", "release", "heartbeat"):
        expect_problem(caller.post(f"{path}/{verb}", held), 409, "lease_lost")
    [waiting] = caller.items(f"/backfills/{backfill['backfill_id']}/batches")
    assert (waiting["status"], waiting["attempts"]) == ("pending", 0)


def test_completion_without_events_counts_what_was_last_reported(caller: Caller) -> None:
    """A worker whose handler reports for itself says null."""
    backfill = done(caller.backfill(partition="P1D"), 202)
    [batch] = done(caller.post("/batches/claim", {"job_types": ["external"]}), 200)["batches"]
    path, held = f"/batches/{batch['batch_id']}", {"fencing_token": batch["fencing_token"]}

    done(caller.post(f"{path}/heartbeat", {**held, "events": {"processed": 7}}), 200)
    done(caller.post(f"{path}/complete", {**held, "events": None}), 204)

    assert caller.get(f"/backfills/{backfill['backfill_id']}")["progress"]["events"]["processed"] == 7


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({}, "JOBENGINE_CLIENT_ID and JOBENGINE_CLIENT_SECRET must be set"),
        ({"JOBENGINE_CLIENT_ID": "a", "JOBENGINE_CLIENT_SECRET": "b", "JOBENGINE_CONFIG": ""}, "names no job type"),
        ({"JOBENGINE_BROKER_URL": "http://user:hush@broker/"}, "JOBENGINE_BROKER_URL"),
    ],
)
def test_worker_that_cannot_work_says_why_at_once(
    caller_at: tuple[Server, Iterator[Caller]], environ: dict[str, str], told: str
) -> None:
    """Before it asks anybody anything."""
    ended = caller_at[0].installation.run("worker", **environ)

    assert (ended.returncode, told in ended.stderr, "hush" in ended.stderr) == (Exit.USAGE, True, False), ended.stderr
