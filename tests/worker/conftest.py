"""A service with workers of its own: one database and one port for all of these tests, one supervisor for each."""

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from psycopg.rows import dict_row
from tests.backfilling import Crew, Json, ask, serving
from tests.factories import BASE_URL, Connection, make_api, new_tenant, pass_time

from jobengine.bootstrap import Plane, background, open_plane
from jobengine.settings import JobType, Settings
from jobengine.web.app import make_app
from jobengine.worker import runner, supervisor
from jobengine.worker.supervisor import Supervisor

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 20
PLAY = "python:tests.worker.handlers:play"
JOB_TYPES = {
    "py": JobType(PLAY, lease_seconds=5),
    "py-once": JobType(PLAY, max_attempts=1),
    "missing": JobType("python:tests.worker.handlers:no_such_function", max_attempts=1),
    "sh": JobType(f"command:{sys.executable} {ROOT / 'tests/worker/script.py'}", lease_seconds=5, max_attempts=2),
    "no-such-command": JobType("command:/no/such/program --at all"),
    "odd-command": JobType("command:an 'unfinished quote"),
    "external": JobType("external"),
    "woken": JobType("external", executor="celery"),
}

Handler = Callable[[dict[str, Any], str], tuple[int, bytes]]


class Answering:
    """An ``http:`` handler: an ASGI application that answers as the test says."""

    def __init__(self) -> None:
        self.answer: Handler = lambda _batch, _token: (200, b"")
        self.asked: list[dict[str, Any]] = []
        self.hung_up = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Take the claim and answer it; a status of 0 is no answer at all."""
        body = b""
        more = True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.asked.append(json.loads(body))
        status, content = self.answer(self.asked[-1], headers["authorization"].removeprefix("Bearer "))
        if status == 0:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.hung_up.set()
            return
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": content})


@dataclass
class Shop:
    """Somebody of a new tenant, whose batches the workers of *supervisor* run."""

    crew: Crew
    plane: Plane
    notes: Path
    owner: Connection
    supervisor: Supervisor
    url: str
    web: Answering

    async def start(self, job_type: str, *parts: str, last: int = 1, **params: object) -> Json:
        """Start a backfill whose handler plays these parts, one an attempt."""
        said = {"parts": parts, "notes": str(self.notes), "keys": ["a", "b", "c"]} | params
        answer = await self.crew.api.post("/backfills", ask(last, job_type=job_type, params=said))
        assert answer.status_code == 202, answer.text
        return answer.json()

    async def until(self, done: Callable[[], Awaitable[Any]]) -> Any:
        """Return what *done* says as soon as it says something."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (found := await done()):  # noqa: ASYNC110 - what is waited for happens in other processes
                await asyncio.sleep(0.02)
            return found

    async def ended(self, made: Json) -> Json:
        """Return the backfill once it has ended."""

        async def look() -> Json | None:
            shown = await self.crew.show(made)
            return shown if shown["status"] in {"completed", "failed", "canceled"} else None

        return await self.until(look)

    async def note(self, where: Callable[[Json], Any] = lambda note: note) -> Json:
        """Return what a handler has told, once it is what the test waits for."""

        async def look() -> Json | None:
            notes = [json.loads(path.read_text()) for path in sorted(self.notes.glob("*.json"))]
            return next((note for note in notes if where(note)), None)

        return await self.until(look)

    async def batch(self, made: Json) -> Json:
        """Return the only batch of a backfill."""
        [batch] = await self.crew.batches(made)
        return batch

    def open_gate(self) -> None:
        """Let handlers go on that hold their batch."""
        (self.notes / "gate").touch()

    async def gone(self, *processes: int) -> None:
        """Return when none of these processes runs any more."""

        async def look() -> bool:
            return not any(runs(process) for process in processes)

        await self.until(look)

    async def pass_time(self, seconds: float) -> None:
        """Let seconds pass for the tenant."""
        await pass_time(self.owner, self.crew.api.tenant_id, timedelta(seconds=seconds))


def runs(process: int) -> bool:
    """Tell whether a process runs; one that waits to be reaped by its parent does not."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture(scope="session")
async def web() -> Answering:
    """The handler that is called over HTTP."""
    return Answering()


@pytest.fixture(scope="session")
async def workshop(
    migrated_database: Callable[[], Awaitable[str]], tmp_path_factory: pytest.TempPathFactory, web: Answering
) -> AsyncIterator[tuple[Plane, str, str]]:
    """A plane whose job types have handlers, served at its own address; and its database."""
    database_url = await migrated_database()
    bound = socket.create_server(("127.0.0.1", 0))
    async with serving(web) as web_url:
        wanted = Settings(
            data_dir=tmp_path_factory.mktemp("workshop"),
            database_url=database_url,
            issuer=BASE_URL,
            port=bound.getsockname()[1],
            job_types=JOB_TYPES
            | {"web": JobType(f"http:{web_url}/run?a=1"), "nowhere": JobType("http:http://127.0.0.1:1/")},
        )
        async with open_plane(wanted, serving=True) as plane, background(plane):
            app = make_app(lambda: pytest.fail("the plane is open"))
            app.state.plane = plane
            async with serving(app, bound) as url:
                yield plane, url, database_url


@pytest.fixture(scope="session")
async def workshop_owner(workshop: tuple[Plane, str, str]) -> AsyncIterator[Connection]:
    """The superuser's connection to the workshop's database."""
    options = "-c search_path=jobengine -c timezone=UTC"
    async with await psycopg.AsyncConnection.connect(
        workshop[2], autocommit=True, row_factory=dict_row, options=options
    ) as connection:
        yield connection


@pytest.fixture
async def open_shop(
    workshop: tuple[Plane, str, str], workshop_owner: Connection, web: Answering, tmp_path: Path
) -> AsyncIterator[Callable[[Supervisor], Awaitable[Shop]]]:
    """Make tenants whose batches a supervisor runs; whatever is left of them in the end is canceled."""
    plane, url, _ = workshop
    made: list[Shop] = []
    async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:

        async def make(supervisor: Supervisor) -> Shop:
            crew = Crew(make_api(client, plane, await new_tenant(plane)))
            made.append(Shop(crew, plane, tmp_path, workshop_owner, supervisor, url, web))
            return made[-1]

        yield make
        for shop in made:
            for backfill in (await shop.crew.api.get("/backfills")).json()["items"]:
                await shop.crew.move(backfill, "cancel")


@pytest.fixture
async def idle(workshop: tuple[Plane, str, str], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Supervisor]:
    """A supervisor that looks when the test says so, quicker to beat than in the field; it is closed at the end."""
    monkeypatch.setattr(supervisor, "LOOK_EVERY", supervisor.LOOK_EVERY / 10)
    monkeypatch.setattr(runner, "LONGEST_PAUSE_SECONDS", 0.2)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JOBENGINE_DATABASE_URL", "postgresql://somebody:secret@somewhere/db")
    monkeypatch.setenv("JOBENGINE_CLIENT_SECRET", "secret")
    monkeypatch.setenv("PGPASSWORD", "secret")
    made = Supervisor(workshop[0], 4)
    yield made
    await made.close()


@pytest.fixture
async def workers(idle: Supervisor) -> AsyncIterator[Supervisor]:
    """A supervisor that looks all the time."""

    async def work() -> None:
        while True:
            await idle.step()

    working = asyncio.create_task(work())
    yield idle
    await idle.close()
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


@pytest.fixture
async def shop(open_shop: Callable[[Supervisor], Awaitable[Shop]], workers: Supervisor) -> Shop:
    """A new tenant whose batches are run."""
    return await open_shop(workers)
