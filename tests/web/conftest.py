"""A client at the desk of the authority: on the shared plane, or on one of its own whose database may be broken."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psycopg
import pytest
from litestar import Litestar
from tests.factories import BASE_URL, Connection, new_tenant
from tests.web.authority_desk import Desk, open_desk

from jobengine.bootstrap import Plane, open_plane
from jobengine.settings import Settings
from jobengine.web.app import make_app


@pytest.fixture
async def desk(app: Litestar, plane: Plane, tenant: str) -> Desk:
    """A client with every role in the new tenant, at an address of its own."""
    return await open_desk(app, plane, [tenant])


@pytest.fixture
async def scratch_url(migrated_database: Callable[[], Awaitable[str]]) -> str:
    """The conninfo of a database that no other test uses."""
    return await migrated_database()


@pytest.fixture
async def scratch(scratch_url: str, tmp_path: Path) -> AsyncIterator[Desk]:
    """A client of a plane of its own, without standing work beside it."""
    wanted = Settings(data_dir=tmp_path, database_url=scratch_url, issuer=BASE_URL)
    async with open_plane(wanted, serving=True) as plane:
        app = make_app(lambda: pytest.fail("the plane is open"))
        app.state.plane = plane
        yield await open_desk(app, plane, [await new_tenant(plane)])


@pytest.fixture
async def scratch_owner(scratch_url: str) -> AsyncIterator[Connection]:
    """The superuser's connection to that database."""
    async with await psycopg.AsyncConnection.connect(
        scratch_url, autocommit=True, row_factory=psycopg.rows.dict_row, options="-c search_path=jobengine"
    ) as connection:
        yield connection
