"""A serving process from start to end: orderly stops, kills, wrong settings; nothing acknowledged is ever lost."""

import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import httpx2
import pytest
from tests.acceptance.callers import ROOMY, Caller, done
from tests.acceptance.serving import (
    EVERY_ROLE,
    Credentials,
    Installation,
    Server,
    eventually,
    free_port,
    new_tenants,
    serving,
)

RECOVERY_SECONDS = 30
ACKNOWLEDGED = 60
LONG = 3_600


@dataclass(frozen=True, slots=True)
class Prepared:
    """One data folder, on which every test starts servers of its own, and a client made before any of them ran."""

    installation: Installation
    credentials: Credentials
    tenants: Iterator[str]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    """Make the data folder and the client."""
    made = Installation.make(tmp_path_factory.mktemp("process"))
    credentials = made.create_client("ours", new_tenants(10), EVERY_ROLE)
    yield Prepared(made, credentials, iter(credentials.tenants))
    made.clean_up()


@pytest.fixture
def installation(prepared: Prepared) -> Installation:
    """The data folder."""
    return prepared.installation


@pytest.fixture
def server(installation: Installation) -> Iterator[Server]:
    """A server of the test's own."""
    with serving(installation) as started:
        yield started


@pytest.fixture
def caller(http: httpx2.Client, server: Server, prepared: Prepared) -> Caller:
    """Somebody with every role in a new tenant."""
    return Caller(http, server.url, prepared.credentials, next(prepared.tenants))


def state(caller: Caller) -> dict[str, bytes]:
    """Return all that a tenant can see of what it did."""
    paths = ("/quotas", "/admissions", "/backfills", "/audit/entries")
    return {path: caller.send("GET", path, params={"page_size": 500}).content for path in paths}


def acquire(caller: Caller, number: int) -> dict[str, Any] | None:
    """Ask for a lease that outlives the test; None when the server is gone before it answers."""
    body = {"job_type": "scan", "job_id": f"job-{number}", "lease_seconds": LONG}
    try:
        answer = caller.post("/admissions", body)
    except httpx2.HTTPError:
        return None
    return done(answer, 201) if answer.is_success else None


# --- orderly ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_server_that_is_asked_to_stop_ends_with_0_and_leaves_no_postgres(
    server: Server, caller: Caller, number: signal.Signals
) -> None:
    """Within seconds both are gone, and the next start finds all that was done."""
    quota = caller.quota()
    caller.entry(quota["last_change"]["audit_entry_id"])
    before = state(caller)
    assert server.installation.postgres_pids()

    server.process.send_signal(number)

    assert server.process.wait(20) == 0
    assert server.installation.postgres_pids() == []
    with serving(server.installation) as again:
        assert state(caller.at(again.url)) == before


def test_requests_under_way_are_answered_when_the_server_stops(server: Server, caller: Caller) -> None:
    """Whoever had been heard gets an answer, and what was granted is there after the next start."""
    done(caller.post("/quotas", {"job_type": "scan", "limits": ROOMY}), 201)
    with ThreadPoolExecutor(16) as threads:
        answers = threads.map(lambda number: acquire(caller, number), range(300))
        eventually(lambda: caller.get("/admissions", page_size=1)["items"], 10, "a lease")
        assert server.stop() == 0
        granted = {lease["lease_id"] for lease in answers if lease}

    with serving(server.installation) as again:
        kept = {lease["lease_id"] for lease in caller.at(again.url).items("/admissions")}
        assert granted == kept


def test_server_that_is_stopped_while_it_starts_ends_and_leaves_no_postgres(installation: Installation) -> None:
    """A supervisor that changes its mind is obeyed at any moment."""
    server = installation.start()
    eventually(installation.postgres_pids, 30, "a starting database")

    server.process.send_signal(signal.SIGTERM)

    assert server.process.wait(40) in {0, -signal.SIGTERM, 128 + signal.SIGTERM}
    assert installation.postgres_pids() == []


# --- kills


def test_next_start_after_kill_9_of_the_server_finds_all_that_was_acknowledged(server: Server, caller: Caller) -> None:
    """In the middle of many requests the process is gone; what it had answered is there, and nothing else is."""
    quota = done(caller.post("/quotas", {"job_type": "scan", "limits": ROOMY}), 201)
    backfill = done(caller.backfill(), 202)
    caller.entry(backfill["audit_entry_id"])
    leases: dict[str, dict[str, Any]] = {}
    enough = Event()

    def keep(number: int) -> None:
        if lease := acquire(caller, number):
            leases[lease["lease_id"]] = lease
        if len(leases) >= ACKNOWLEDGED:
            enough.set()

    with ThreadPoolExecutor(8) as threads:
        for number in range(ACKNOWLEDGED * 10):
            threads.submit(keep, number)
        assert enough.wait(30)
        server.kill()

    with serving(server.installation) as again:
        survivor = caller.at(again.url)
        kept = {lease["lease_id"]: lease for lease in survivor.items("/admissions")}
        assert {lease_id: kept.get(lease_id) for lease_id in leases} == leases
        # Each of the eight threads may have lost one answer; what was not asked for is not there.
        assert len(kept) <= len(leases) + 8
        assert survivor.get(f"/quotas/{quota['quota_id']}")["usage"]["active"] == len(kept)
        assert survivor.get("/quotas/drift")["drift"] == 0
        assert survivor.get(f"/backfills/{backfill['backfill_id']}") == backfill
        assert survivor.entry(backfill["audit_entry_id"])["action"] == "backfill.requested"
        assert survivor.get("/audit/verify")["ok"] is True


def test_audit_log_after_kill_9_continues_the_tree_that_was_signed_before(server: Server, caller: Caller) -> None:
    """Every entry acknowledged before is in the log, and the old checkpoint's tree is the beginning of the new one."""
    quotas = [caller.quota(f"type-{number}") for number in range(20)]
    caller.entry(quotas[9]["last_change"]["audit_entry_id"])
    size = int(caller.send("GET", "/audit/checkpoint").text.splitlines()[1])

    server.kill()

    with serving(server.installation) as again:
        survivor = caller.at(again.url)
        found = survivor.logged(20, action="quota.created")
        created = {entry["entry_id"] for entry in found}
        assert created == {quota["last_change"]["audit_entry_id"] for quota in quotas}
        sequences = [entry["sequence"] for entry in survivor.items("/audit/entries")]
        assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))
        proof = survivor.get("/audit/consistency", **{"from": size})
        assert proof["from"] == size
        assert survivor.get("/audit/verify")["ok"] is True


def test_server_recovers_by_itself_after_kill_9_of_its_postgres(server: Server, caller: Caller) -> None:
    """The database's first process is shot; within seconds the server answers again, with all it knew."""
    quota = caller.quota()
    lease = acquire(caller, 0)
    assert lease

    os.kill(server.installation.postmaster(), signal.SIGKILL)

    def look() -> httpx2.Response | None:
        answer = caller.post("/quotas", {"job_type": "after", "limits": ROOMY})
        # Until it is back the answer is a problem that says to come again, and nothing worse.
        assert answer.status_code in {201, 409, 503}, answer.text
        return answer if answer.status_code != 503 else None

    eventually(look, RECOVERY_SECONDS, "an answer after the database was killed")
    assert caller.get(f"/quotas/{quota['quota_id']}")["limits"] == quota["limits"]
    assert [found["lease_id"] for found in caller.items("/admissions")] == [lease["lease_id"]]
    eventually(server.is_ready, RECOVERY_SECONDS, "a ready server")
    caller.logged(2, action="quota.created")
    assert caller.get("/audit/verify")["ok"] is True
    assert server.stop() == 0


def test_embedded_worker_finishes_a_backfill_that_a_killed_server_had_begun(
    http: httpx2.Client, tmp_path: Path
) -> None:
    """Batches whose server was shot are handed out again by the next one; each event is processed once."""
    events = [{"id": f"e-{n}", "event_time": f"2026-01-{1 + n % 28:02}T{n % 24:02}:00:00Z"} for n in range(500)]
    (tmp_path / "events.jsonl").write_text("".join(f"{event}\n".replace("'", '"') for event in events), "utf-8")
    job_types = '[job_types.slow]\nhandler = "python:tests.acceptance.handlers:ingest_slowly"\nlease_seconds = 5\n'
    installation = Installation.make(tmp_path / "crash", job_types)
    credentials = installation.create_client("ours", new_tenants(1), EVERY_ROLE)
    params = {"events": str(tmp_path / "events.jsonl"), "out": str(tmp_path / "out")}
    window = {"start": "2026-01-01T00:00:00Z", "end": "2026-01-29T00:00:00Z"}
    try:
        with serving(installation) as server:
            caller = Caller(http, server.url, credentials, credentials.tenants[0])
            done(caller.post("/quotas", {"job_type": "slow", "limits": ROOMY}), 201)
            asked = caller.backfill(job_type="slow", window=window, partition="P1D", params=params)
            path = f"/backfills/{done(asked, 202)['backfill_id']}"
            eventually(lambda: caller.get(path)["progress"]["batches"]["succeeded"] > 3, 20, "some succeeded batches")
            server.kill()
        with serving(installation) as again:
            ended = caller.at(again.url).ended(path.rpartition("/")[2], 40)
    finally:
        installation.clean_up()
    assert (ended["status"], ended["progress"]["events"]) == (
        "completed",
        {"processed": 500, "duplicates": 0, "failed": 0},
    )


# --- starts that must not be


def failed_start(installation: Installation, **settings: str) -> str:
    """Return what a server says that must not start: exit code 2, soon, and nothing left running."""
    told = {f"JOBENGINE_{name}": value for name, value in settings.items()}
    ended = installation.run("serve", **{"JOBENGINE_PORT": str(free_port()), **told})
    assert ended.returncode == 2, ended.stderr
    assert installation.postgres_pids() == []
    assert "Traceback" not in ended.stderr
    return ended.stderr


def test_lost_master_key_stops_the_start(installation: Installation) -> None:
    """A new key would make every secret wrong and every signature new, so nothing starts without the old one."""
    key = installation.data_dir / "master.key"
    kept = key.read_bytes()
    key.unlink()
    try:
        assert "master" in failed_start(installation)
    finally:
        key.unlink(missing_ok=True)
        key.write_bytes(kept)
        key.chmod(0o600)


@pytest.mark.parametrize("wrong", [b"", b"not a key\n"])
def test_damaged_master_key_stops_the_start(installation: Installation, wrong: bytes, tmp_path: Path) -> None:
    """The message names the file."""
    path = tmp_path / "master.key"
    path.write_bytes(wrong)
    path.chmod(0o600)

    assert str(path) in failed_start(installation, MASTER_KEY_FILE=str(path))


def test_master_key_of_another_installation_stops_the_start(installation: Installation, tmp_path: Path) -> None:
    """A key that is well made is not enough: it must be this database's."""
    path = tmp_path / "fresh.key"

    assert str(path) in failed_start(installation, MASTER_KEY_FILE=str(path))


def test_host_that_others_can_reach_needs_an_issuer(installation: Installation) -> None:
    """Without a fixed name of its own the server refuses to listen for everybody."""
    assert "JOBENGINE_ISSUER" in failed_start(installation, HOST="0.0.0.0")  # noqa: S104 - what is refused


def test_issuer_other_than_the_first_stops_the_start(installation: Installation) -> None:
    """The issuer is fixed at the first start."""
    with serving(installation):
        pass

    assert "JOBENGINE_ISSUER" in failed_start(installation, ISSUER="https://another.example")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("PORT", "eighty"),
        ("BACKFILL_SUPPRESSION_WINDOW", "1 day"),
        ("CONFIG", "no-such-file.toml"),
    ],
)
def test_setting_that_makes_no_sense_stops_the_start(installation: Installation, setting: str, value: str) -> None:
    """The message names it."""
    assert f"JOBENGINE_{setting}" in failed_start(installation, **{setting: value})


@pytest.mark.parametrize(
    "text", ["[job_types.x]\n", '[job_types.x]\nhandler = "magic"\n', '[job_types."-"]\nhandler = "external"\n']
)
def test_file_of_job_types_that_makes_no_sense_stops_the_start(
    installation: Installation, tmp_path: Path, text: str
) -> None:
    """The message names the file."""
    path = tmp_path / "jobs.toml"
    path.write_text(text, "utf-8")

    assert str(path) in failed_start(installation, CONFIG=str(path))


def test_port_that_is_taken_stops_the_start_before_anything_else(installation: Installation) -> None:
    """Nothing is started for a server that could not be reached."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        ended = installation.run("serve", JOBENGINE_PORT=str(taken.getsockname()[1]))

    assert ended.returncode == 1
    assert "cannot listen" in ended.stderr
    assert installation.postgres_pids() == []
