"""A server that relays to a broker over a wire, and workers that it wakes; every test has a tenant of its own."""

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import httpx2
import psycopg
import pytest
from tests.acceptance.callers import ROOMY, Caller, done
from tests.acceptance.conftest import outside_database
from tests.acceptance.serving import EVERY_ROLE, Credentials, Installation, Server, eventually, new_tenants, serving
from tests.broker.brokers import PORTS, Lane
from tests.broker.crew import PATIENCE_SECONDS, Crew, employing
from tests.broker.wire import Wire, open_wire

from jobengine.storage.embedded import EmbeddedPostgres

SLOTS = 4
JOB_TYPES = """\
[job_types."{job_type}"]
handler = "python:tests.broker.handlers:write"
executor = "celery"
lease_seconds = 5
max_attempts = 100

[job_types.linger]
handler = "python:tests.broker.handlers:linger"
executor = "celery"

[job_types.advisory-ingest]
handler = "python:tests.broker.handlers:ingest"
executor = "celery"
lease_seconds = 5
max_attempts = 100
"""
WINDOW = {"start": "2026-03-01T00:00:00Z", "end": "2026-03-02T00:00:00Z"}


@dataclass(slots=True)
class Stage:
    """Everything that stands around the tests of one module and one broker."""

    lane: Lane
    wire: Wire
    server: Server
    credentials: Credentials
    tenants: Iterator[str]
    broker_url: str
    owner_url: str


@dataclass(frozen=True, slots=True)
class Play:
    """Somebody in a new tenant who starts backfills, and what came of them."""

    stage: Stage
    caller: Caller
    out: Path

    def start(self, partition: str = "PT1H", **changes: object) -> dict[str, Any]:
        """Start a backfill of one day."""
        params = {"out": str(self.out), **changes.pop("params", {})}
        body = {"job_type": self.stage.lane.job_type, "source": token_hex(4), "window": WINDOW, "partition": partition}
        return done(self.caller.post("/backfills", {**body, "params": params, **changes}), 202)

    def completed(self, backfill: dict[str, Any], seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """Return the backfill when it has ended well."""
        ended = self.caller.ended(backfill["backfill_id"], seconds)
        assert ended["status"] == "completed", ended
        return ended

    def output(self) -> tuple[Counter[str], int]:
        """Return how often each event stands in the output of attempts that completed, and how many did not."""
        written: dict[str, dict[int, list[str]]] = {}
        for path in self.out.rglob("*.*.json"):
            batch_id, token, _ = path.name.split(".")
            written.setdefault(batch_id, {})[int(token)] = json.loads(path.read_text("utf-8"))
        # Fencing tokens grow, and every batch succeeded: its newest attempt is the one that completed.
        completed = [files[max(files)] for files in written.values()]
        return Counter(key for keys in completed for key in keys), sum(len(files) - 1 for files in written.values())

    def left_behind(self) -> dict[str, int]:
        """Return what is still there of the tenant's work: leases, and wake-ups that nobody answered."""
        with psycopg.connect(self.stage.owner_url) as owner:
            count = "select count(*) from jobengine.batch_wakeups where tenant_id = %s"
            wake_ups = owner.execute(count, (self.caller.tenant,)).fetchone()[0]
        leases, drift = len(self.caller.items("/admissions")), self.caller.get("/quotas/drift")["drift"]
        return {name: n for name, n in {"leases": leases, "wake-ups": wake_ups, "drift": drift}.items() if n}

    def nothing_left(self) -> None:
        """Return when nothing of the tenant's work is left, in the database or in the broker."""
        eventually(lambda: not self.left_behind() or None, PATIENCE_SECONDS, "a tenant without leases and wake-ups")
        eventually(lambda: self.stage.lane.depth() == 0 or None, PATIENCE_SECONDS, "an empty queue")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs a broker that is not there, and say so."""
    missing = {kind for kind, port in PORTS.items() if not answers(port)}
    for item in items:
        kind = getattr(item, "callspec", None) and item.callspec.params.get("stage")
        if kind in missing:
            item.add_marker(pytest.mark.skip(reason=f"no {kind} answers at 127.0.0.1:{PORTS[kind]}"))


def answers(port: int) -> bool:
    """Tell whether somebody listens on a port of this machine."""
    with socket.socket() as probe:
        probe.settimeout(3)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def http() -> Iterator[httpx2.Client]:
    """A client that keeps its connections; no proxy of the environment stands between it and this machine."""
    with httpx2.Client(trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture(scope="module", params=list(PORTS))
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A server with its broker behind a wire."""
    prefix = f"jobengine-test-{token_hex(4)}"
    # Redis has sixteen databases, and other tests may run at the same time.
    lane = Lane(request.param, prefix, "events", 8 + sum(request.module.__name__.encode()) % 8)
    try:
        with outside_database() as database, open_wire(PORTS[lane.kind]) as wire:
            yield from staged(lane, wire, tmp_path_factory.mktemp("broker"), database)
    finally:
        for job_type in ("events", "linger", "advisory-ingest"):
            Lane(lane.kind, prefix, job_type, lane.database).clean_up()


def staged(lane: Lane, wire: Wire, folder: Path, database: dict[str, str]) -> Iterator[Stage]:
    """Serve until the module is done with it."""
    url = lane.url(wire.port)
    told = {"BROKER_URL": url, "BROKER_QUEUE": lane.prefix, "BROKER_SLOTS": str(SLOTS)}
    installation = Installation.make(folder, JOB_TYPES.format(job_type=lane.job_type), **told, **database)
    try:
        with serving(installation) as server:
            credentials = installation.create_client("ours", new_tenants(12), EVERY_ROLE)
            owner = database.get("DATABASE_URL") or owner_of(installation)
            yield Stage(lane, wire, server, credentials, iter(credentials.tenants), url, owner)
            assert "guest:guest" not in server.log.read_text("utf-8")
    finally:
        installation.clean_up()


def owner_of(installation: Installation) -> str:
    """Return how the owner of the embedded database of a running server connects to it."""

    async def join() -> str:
        async with EmbeddedPostgres(installation.data_dir) as conninfo:
            return conninfo

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, join()).result()


@pytest.fixture
def play(http: httpx2.Client, stage: Stage, tmp_path: Path) -> Play:
    """Somebody in a new tenant, with all the room they want."""
    caller = Caller(http, stage.server.url, stage.credentials, next(stage.tenants))
    for job_type in (stage.lane.job_type, "linger", "advisory-ingest"):
        done(caller.post("/quotas", {"job_type": job_type, "limits": ROOMY}), 201)
    return Play(stage, caller, tmp_path)


@pytest.fixture
def crew(stage: Stage, tmp_path: Path) -> Iterator[Crew]:
    """Workers on Celery, none at first."""
    environ = {"JOBENGINE_BROKER_URL": stage.broker_url, "JOBENGINE_BROKER_QUEUE": stage.lane.prefix}
    with employing(Crew(stage.server, stage.credentials, environ, tmp_path / "workers.log")) as made:
        yield made
