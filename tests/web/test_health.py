"""Contract section 1: whether the process is up, and whether it can serve."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx2
import psycopg
import pytest
from tests.conftest import MakeDatabase
from tests.factories import BASE_URL, expect_problem, new_tenant
from tests.storage.audit_logs import an_entry

from jobengine.bootstrap import Plane, background, open_plane
from jobengine.settings import Settings
from jobengine.storage.audit import PostgresAudit, read_head
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


async def test_one_damaged_log_does_not_make_the_service_unready(own: Plane, caller: httpx2.AsyncClient) -> None:
    """Its entries wait for ever, which is told of it alone: everybody else is served and sequenced."""
    damaged, sound = await new_tenant(own), await new_tenant(own)
    await run(own, "update jobengine.audit_logs set size = 1, checkpoint = 'x' where tenant_id = '" + damaged + "'")
    long_ago = "clock_timestamp() - interval '1 hour'"
    async with background(own):
        for tenant_id in (damaged, sound):
            async with own.database.transaction(tenant_id) as tx:
                await PostgresAudit(tx).record(an_entry(tenant_id))
        await run(own, f"update jobengine.audit_intake set queued_at = {long_ago} where tenant_id = '{damaged}'")
        await run(own, f"update jobengine.audit_logs set advanced_at = {long_ago} where tenant_id = '{damaged}'")
        await until(partial(is_placed, own, sound))
        await until(partial(is_ready, caller))
        shown = (await caller.get("/metrics")).text
        assert "jobengine_audit_logs_stuck 1.0" in shown


async def is_placed(plane: Plane, tenant_id: str) -> bool:
    async with plane.database.transaction(tenant_id) as tx:
        return (await read_head(tx)).size == 1


async def is_ready(caller: httpx2.AsyncClient) -> bool:
    return (await caller.get("/readyz")).status_code == 200


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a condition, for a minute at the most."""
    async with asyncio.timeout(60):
        while not await holds():  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.05)


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
