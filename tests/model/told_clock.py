"""Two servers on one database whose clock is told: it stands still until somebody moves it."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import psycopg
import pytest
from tests.factories import BASE_URL, Api, make_api

from jobengine.bootstrap import Plane, open_plane
from jobengine.clock import format_time
from jobengine.settings import Settings
from jobengine.storage import database
from jobengine.web.app import make_app

START = datetime(2026, 3, 1, tzinfo=UTC)
# Every query of the service asks `clock_timestamp()`; a function of that name in a schema that is looked at first is
# the whole platform's clock. It stands still until it is told to go.
CLOCK = """
create schema told;
create table told.moment (at timestamptz not null);
insert into told.moment values ('2026-03-01T00:00:00Z');
create function told.clock_timestamp() returns timestamptz language sql security definer
    as 'select at from told.moment';
grant usage on schema told to public;
"""


class Servers:
    """Two servers on one database, and its clock."""

    def __init__(self, url: str, folder: Path) -> None:
        self._settings = Settings(data_dir=folder, database_url=url, issuer=BASE_URL)
        self._stacks = [AsyncExitStack(), AsyncExitStack()]
        self.planes: list[Plane] = []
        self.clients: list[httpx2.AsyncClient] = []
        self.clock = psycopg.connect(url, autocommit=True)
        if self.clock.execute("select from pg_namespace where nspname = 'told'").rowcount == 0:
            self.clock.execute(CLOCK)
        self.now = 0
        self.operations = 0

    async def open(self) -> None:
        """Start both."""
        for number in (0, 1):
            plane, client = await self._start(number)
            self.planes.append(plane)
            self.clients.append(client)

    async def close(self) -> None:
        """End both."""
        for stack in self._stacks:
            await stack.aclose()
        self.clock.close()

    async def restart(self, number: int) -> None:
        """End one and start another in its place."""
        await self._stacks[number].aclose()
        self.planes[number], self.clients[number] = await self._start(number)

    async def _start(self, number: int) -> tuple[Plane, httpx2.AsyncClient]:
        stack = self._stacks[number]
        plane = await stack.enter_async_context(open_plane(self._settings))
        app = make_app(lambda: pytest.fail("the plane is open"))
        app.state.plane = plane
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        return plane, await stack.enter_async_context(httpx2.AsyncClient(transport=transport, base_url=BASE_URL))

    def at(self, number: int, tenant_id: str) -> Api:
        """Speak to one of them as somebody who may do everything in a tenant."""
        return make_api(self.clients[number], self.planes[number], tenant_id)

    def let_pass(self, span: int) -> None:
        """Move the database's clock on by microseconds."""
        self.now += span
        self.clock.execute("update told.moment set at = %s", (START + timedelta(microseconds=self.now),))


@asynccontextmanager
async def servers_on(url: str, folder: Path) -> AsyncIterator[Servers]:
    """Open two servers whose every query sees the told clock; what others open meanwhile would see it too."""
    with pytest.MonkeyPatch.context() as patch:
        seen = f"search_path=told,{database.SCHEMA},pg_catalog "
        patch.setattr(database, "OPTIONS", database.OPTIONS.replace(f"search_path={database.SCHEMA} ", seen))
        servers = Servers(url, folder)
        await servers.open()
        try:
            yield servers
        finally:
            await servers.close()


def time_of(micros: int) -> str:
    """Return a time of the told clock as the API writes it."""
    return format_time(START + timedelta(microseconds=micros))
