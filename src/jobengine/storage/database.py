"""The seam to PostgreSQL: two pools, one for each role, and transactions that belong to one tenant."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from jobengine.errors import LostRace, NotFound, Unavailable
from jobengine.storage.migrator import SCHEMA
from jobengine.storage.queries import QUERIES

Connection = psycopg.AsyncConnection[DictRow]
CONNECT_SECONDS = 30
_OPTIONS = f"-c search_path={SCHEMA} -c timezone=UTC -c idle_in_transaction_session_timeout=60s"


Asked = tuple[str, Mapping[str, object]]


class Transaction:
    """An open transaction bound to one tenant (or to the system role, with an empty *tenant_id*).

    *now* is the database's clock when the transaction began.
    """

    def __init__(self, connection: Connection, tenant_id: str, now: datetime) -> None:
        self._connection = connection
        self.tenant_id = tenant_id
        self.now = now
        self._afterwards: list[Callable[[], None]] = []

    def when_committed(self, tell: Callable[[], None]) -> None:
        """Call *tell* once the transaction is durable, and never if it is not: for counting what has happened."""
        self._afterwards.append(tell)

    def committed(self) -> None:
        """Tell everybody who waits for the commit; only the database that opened the transaction says so."""
        for tell in self._afterwards:
            tell()

    async def all(self, query: str, /, **values: object) -> list[DictRow]:
        """Run a named query and return its rows."""
        cursor = await self._connection.execute(QUERIES[query], self._values(values))
        return await cursor.fetchall()

    async def find(self, query: str, /, **values: object) -> DictRow | None:
        """Run a named query and return its first row, if any."""
        cursor = await self._connection.execute(QUERIES[query], self._values(values))
        return await cursor.fetchone()

    async def one(self, query: str, /, **values: object) -> DictRow:
        """Run a named query and return its first row; raises NotFound when there is none."""
        row = await self.find(query, **values)
        if row is None:
            message = "there is no such object"
            raise NotFound(message)
        return row

    async def run(self, query: str, /, **values: object) -> int:
        """Run a named query and return the number of rows it touched."""
        cursor = await self._connection.execute(QUERIES[query], self._values(values))
        return cursor.rowcount

    async def together(self, *asked: Asked) -> list[list[DictRow]]:
        """Run named queries in one round trip, each after the one before it, and return the rows of each."""
        async with self._connection.pipeline():
            cursors = [
                await self._connection.execute(QUERIES[query], self._values(dict(values))) for query, values in asked
            ]
        return [await cursor.fetchall() if cursor.description else [] for cursor in cursors]

    async def run_many(self, query: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Run a named query once for each of *rows*, in one round trip."""
        if rows:
            async with self._connection.cursor() as cursor:
                await cursor.executemany(QUERIES[query], [self._values(dict(row)) for row in rows])

    def _values(self, values: dict[str, object]) -> dict[str, Any]:
        # The tenant comes last: no caller's value can stand in its place.
        return {**values, "tenant_id": self.tenant_id} if self.tenant_id else values


@dataclass(frozen=True, slots=True)
class PoolUse:
    """How busy a pool is: connections in use and idle, and transactions that wait for one."""

    name: str
    used: int
    idle: int
    waiting: int


class Database:
    """Pools of connections to one database; open it once in a process."""

    def __init__(self, conninfo: str, *, app_connections: int = 12, system_connections: int = 4) -> None:
        self._app = _pool(conninfo, "jobengine_app", app_connections)
        self._system = _pool(conninfo, "jobengine_system", system_connections)

    async def open(self) -> None:
        """Connect; raises Unavailable when the database cannot be reached within 30 s."""
        for pool in (self._app, self._system):
            try:
                await pool.open(wait=True, timeout=CONNECT_SECONDS)
            except PoolTimeout as error:
                message = "the database cannot be reached"
                raise Unavailable(message) from error

    async def close(self) -> None:
        """Close every connection."""
        await self._app.close()
        await self._system.close()

    @asynccontextmanager
    async def transaction(self, tenant_id: str) -> AsyncGenerator[Transaction]:
        """Open a transaction of *tenant_id*: committed at the end, rolled back by any error."""
        async with _open(self._app) as connection:
            async with connection.transaction():
                tx = Transaction(connection, tenant_id, await _bind(connection, "set_tenant", tenant_id=tenant_id))
                yield tx
            tx.committed()

    @asynccontextmanager
    async def system(self) -> AsyncGenerator[Transaction]:
        """Open a transaction of the system role, for the closed list of ``system_*`` queries."""
        async with _open(self._system) as connection:
            async with connection.transaction():
                tx = Transaction(connection, "", await _bind(connection, "now"))
                yield tx
            tx.committed()

    def pools(self) -> list[PoolUse]:
        """Return how busy the pools of this process are now."""
        return [_use(name, pool) for name, pool in (("app", self._app), ("system", self._system))]


async def _bind(connection: Connection, query: str, **values: str) -> datetime:
    row = await (await connection.execute(QUERIES[query], values)).fetchone()
    return row["now"] if row else datetime.max.replace(tzinfo=UTC)


def _pool(conninfo: str, role: str, size: int) -> AsyncConnectionPool[Connection]:
    return AsyncConnectionPool(
        conninfo,
        connection_class=psycopg.AsyncConnection[DictRow],
        kwargs={"row_factory": dict_row, "autocommit": True, "options": f"{_OPTIONS} -c role={role}"},
        min_size=1,
        max_size=size,
        timeout=10,
        open=False,
        check=None,
    )


def _use(name: str, pool: AsyncConnectionPool[Connection]) -> PoolUse:
    found = pool.get_stats()
    idle = found.get("pool_available", 0)
    return PoolUse(name, found.get("pool_size", 0) - idle, idle, found.get("requests_waiting", 0))


@asynccontextmanager
async def _open(pool: AsyncConnectionPool[Connection]) -> AsyncGenerator[Connection]:
    try:
        async with pool.connection() as connection:
            yield connection
    except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure) as error:
        message = "two requests stood in each other's way; send this one again"
        raise LostRace(message) from error
    except (psycopg.OperationalError, PoolTimeout) as error:
        message = "the database does not answer"
        raise Unavailable(message) from error
