"""Contract section 1: whether the process is up, and whether it can serve."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import psycopg
import pytest
from tests.conftest import MakeDatabase
from tests.factories import BASE_URL, expect_problem

from jobengine.bootstrap import Plane, background, open_plane
from jobengine.settings import Settings
from jobengine.web.app import make_app


@pytest.fixture
async def own(migrated_database: MakeDatabase, tmp_path: Path) -> AsyncIterator[Plane]:
    """A plane on a database of its own, without standing work."""
    async with open_plane(Settings(data_dir=tmp_path, database_url=await migrated_database()), serving=True) as plane:
        yield plane


@pytest.fixture
async def caller(own: Plane) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of that plane."""
    app = make_app(lambda: pytest.fail("the plane is open"))
    app.state.plane = own
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url=BASE_URL) as client:
        yield client


async def run(plane: Plane, statement: str) -> None:
    async with await psycopg.AsyncConnection.connect(str(plane.settings.database_url), autocommit=True) as connection:
        await connection.execute(statement.encode())


async def test_a_process_without_a_sequencer_is_up_and_not_ready(own: Plane, caller: httpx2.AsyncClient) -> None:
    """503 until somebody owns every shard; neither path asks for a token."""
    assert (await caller.get("/healthz")).status_code == 200
    not_ready = await caller.get("/readyz")
    expect_problem(not_ready, 503, "temporarily_unavailable")
    assert int(not_ready.headers["retry-after"]) >= 1

    async with background(own):
        assert (await caller.get("/readyz")).status_code == 200
        assert (await caller.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    "damage",
    [
        "delete from jobengine.alembic_version",
        "drop table jobengine.alembic_version",
        "update jobengine.alembic_version set version_num = '0000'",
    ],
)
async def test_a_database_that_is_not_migrated_is_not_ready(
    own: Plane, caller: httpx2.AsyncClient, damage: str
) -> None:
    """Whatever is missing of the schema."""
    async with background(own):
        await run(own, damage)
        expect_problem(await caller.get("/readyz"), 503, "temporarily_unavailable")
        assert (await caller.get("/healthz")).status_code == 200


async def test_a_database_that_is_gone_is_not_ready(own: Plane, caller: httpx2.AsyncClient) -> None:
    """The process is up all the same."""
    await own.database.close()

    expect_problem(await caller.get("/readyz"), 503, "temporarily_unavailable")
    assert (await caller.get("/healthz")).status_code == 200


async def test_an_application_opens_its_plane_for_as_long_as_it_serves(own: Plane) -> None:
    """The lifespan of the server is the plane's."""
    steps: list[str] = []

    @asynccontextmanager
    async def opened() -> AsyncIterator[Plane]:
        steps.append("open")
        yield own
        steps.append("closed")

    app = make_app(opened)
    async with app.lifespan():
        assert (app.state.plane, steps) == (own, ["open"])
    assert steps == ["open", "closed"]
