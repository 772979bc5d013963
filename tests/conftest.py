"""What every test may ask for: one moment, and, only where it asks, a PostgreSQL with one plane and clients of it.

A test that touches data gets a tenant of its own; tenants share nothing, so tests need not clean up.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from secrets import token_hex

import httpx2
import psycopg
import pytest
from hypothesis import HealthCheck, settings
from litestar import Litestar
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from tests.clusters import keep_pattern_in
from tests.factories import BASE_URL, JOB_TYPES, NOW, Api, Connection, make_api, new_tenant, pass_time

from jobengine.authority.scopes import Scope
from jobengine.bootstrap import Plane, background, open_plane
from jobengine.quota.policy import FIRST_POLICY
from jobengine.settings import Settings
from jobengine.storage.embedded import EmbeddedPostgres
from jobengine.storage.migrator import migrate
from jobengine.web.app import make_app

TEST_DATABASE = "JOBENGINE_TEST_DATABASE_URL"

_SLOW_MACHINES = [HealthCheck.too_slow]
settings.register_profile("default", max_examples=30, deadline=None, suppress_health_check=_SLOW_MACHINES)
settings.register_profile("soak", max_examples=3_000, deadline=None, suppress_health_check=_SLOW_MACHINES)
settings.load_profile("default")

# Whoever tests real processes has the longest files: they begin, so that what is short is left for the end.
_LONGEST_FIRST = ("acceptance", "broker", "cli", "contract", "client", "model", "worker", "storage", "web")

MakeDatabase = Callable[[], Awaitable[str]]
PassTime = Callable[[str, float], Awaitable[None]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring folders into an order in which processes that share the files end at about the same time."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(_LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.parent, len(places)))


@pytest.fixture(scope="session")
def now() -> datetime:
    """The moment at which everything happens; it never moves."""
    return NOW


@pytest.fixture(scope="session", autouse=True)
def _pattern_of_clusters(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let all processes of this run share the database that is made once and copied."""
    base = tmp_path_factory.getbasetemp()
    keep_pattern_in(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)


@pytest.fixture(scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """A superuser's conninfo of a PostgreSQL: ours, or the one that JOBENGINE_TEST_DATABASE_URL names."""
    if outside := os.environ.get(TEST_DATABASE):
        yield outside
        return
    async with EmbeddedPostgres(tmp_path_factory.mktemp("postgres")) as conninfo:
        yield conninfo


@pytest.fixture(scope="session")
async def empty_database(server: str) -> AsyncIterator[MakeDatabase]:
    """Make databases without anything in them; on a server that is not ours they go away at the end."""
    made: list[str] = []

    async def make(template: str = "template1") -> str:
        name = f"jobengine_test_{token_hex(6)}"
        await _administer(server, "create database {} template {}", name, template)
        # What tests lose in a power cut, they make again.
        await _administer(server, "alter database {} set synchronous_commit = off", name)
        # As the embedded server has it: compiling the queries of young tables costs half a core for each idle server.
        await _administer(server, "alter database {} set jit = off", name)
        made.append(name)
        return make_conninfo(server, dbname=name)

    yield make
    # Ours goes away with its folder; somebody else's server stays, without what tests left there.
    for name in made if TEST_DATABASE in os.environ else ():
        await _administer(server, "drop database if exists {} with (force)", name)


@pytest.fixture(scope="session")
async def migrated_database(empty_database: Callable[..., Awaitable[str]]) -> MakeDatabase:
    """Make databases with the whole schema, as copies of one that was migrated once."""
    template = await empty_database()
    migrate(template, template)
    name = str(psycopg.conninfo.conninfo_to_dict(template)["dbname"])

    async def make() -> str:
        return await empty_database(name)

    return make


async def _administer(server: str, statement: str, *names: str) -> None:
    async with await psycopg.AsyncConnection.connect(server, autocommit=True) as connection:
        await connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


@pytest.fixture(scope="session")
async def database_url(migrated_database: MakeDatabase) -> str:
    """The conninfo of the one database that most tests share."""
    return await migrated_database()


@pytest.fixture(scope="session")
async def plane(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Plane]:
    """The shared plane, with its standing work beside it."""
    folder: Path = tmp_path_factory.mktemp("plane")
    wanted = Settings(data_dir=folder, database_url=database_url, issuer=BASE_URL, job_types=JOB_TYPES)
    async with open_plane(wanted, serving=True) as opened, background(opened):
        yield opened


@pytest.fixture(scope="session")
async def owner(database_url: str) -> AsyncIterator[Connection]:
    """The superuser's connection to the shared database: row-level security does not hold it back."""
    options = "-c search_path=jobengine -c timezone=UTC"
    async with await psycopg.AsyncConnection.connect(
        database_url, autocommit=True, row_factory=dict_row, options=options
    ) as connection:
        yield connection


@pytest.fixture
async def any_policy(plane: Plane, owner: Connection) -> AsyncIterator[None]:  # noqa: ARG001 - it must be there first
    """Let a test change the one policy of the platform, and put the first one back after it."""
    yield
    await owner.execute("update policy set document = %s, version = version + 1", (Jsonb(FIRST_POLICY.as_json()),))


@pytest.fixture(scope="session")
def app(plane: Plane) -> Litestar:
    """The application on the shared plane, which the fixture opened: nothing else of its lifespan is needed."""
    application = make_app(lambda: pytest.fail("the plane is open"))
    application.state.plane = plane
    return application


@pytest.fixture(scope="session")
async def client(app: Litestar) -> AsyncIterator[httpx2.AsyncClient]:
    """A client without a token; a fault of ours reaches it as an answer, as it would over a network."""
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url=BASE_URL) as opened:
        yield opened


@pytest.fixture
async def tenant(plane: Plane) -> str:
    """A new tenant."""
    return await new_tenant(plane)


@pytest.fixture
def api(client: httpx2.AsyncClient, plane: Plane, tenant: str) -> Api:
    """Somebody who may do everything in the new tenant, and says why."""
    return make_api(client, plane, tenant)


@pytest.fixture
async def stranger(client: httpx2.AsyncClient, plane: Plane) -> Api:
    """Somebody who may do everything in another new tenant, and nothing in the first."""
    return make_api(client, plane, await new_tenant(plane))


@pytest.fixture
def governor(client: httpx2.AsyncClient, plane: Plane, tenant: str) -> Api:
    """Somebody with `orch:govern` alone, whose own tenant is the new one."""
    return make_api(client, plane, tenant, Scope.GOVERN.value, client_id="jec_governor", owner="governor")


@pytest.fixture(scope="session")
def later(owner: Connection) -> PassTime:
    """What lets seconds pass for one tenant."""

    async def let(tenant_id: str, seconds: float) -> None:
        await pass_time(owner, tenant_id, timedelta(seconds=seconds))

    return let
