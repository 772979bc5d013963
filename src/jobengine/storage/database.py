"""The seam to PostgreSQL: two pools, one for each role, and transactions that belong to one tenant."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
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
Cursor = psycopg.AsyncCursor[DictRow]
CONNECT_SECONDS = 30
# What is read behind a lock is as new as the lock; a stricter default of the database would make each wait a failure.
_ISOLATION = r"-c default_transaction_isolation=read\ committed"
# Every query has an index that begins with its tenant. A plan made while a table is small would read all of it, and is
# kept for as long as nobody analyses the table again.
_PLANS = "-c enable_seqscan=off"
OPTIONS = f"-c search_path={SCHEMA} -c timezone=UTC -c idle_in_transaction_session_timeout=60s {_ISOLATION} {_PLANS}"


Asked = tuple[str, Mapping[str, object]]


class Transaction:
    """An open transaction bound to one tenant (or to the system role, with an empty *tenant_id*).

    *now* is the database's clock when the transaction began.
    """

    def __init__(self, connection: Connection, tenant_id: str) -> None:
        self._connection = connection
        self.tenant_id = tenant_id
        self.now = datetime.max.replace(tzinfo=UTC)
        self._opened: tuple[Sequence[Asked], list[list[DictRow]]] = ((), [])
        self._ahead: list[Asked] = []
        self._with_commit: list[Callable[[], Sequence[Asked]]] = []
        self._afterwards: list[Callable[[], None]] = []

    async def begin(self, *asked: Asked) -> list[list[DictRow]]:
        """Begin, and run named queries in the same round trip; `opened` gives their rows to whoever needs them."""
        bind: Asked = ("set_tenant" if self.tenant_id else "now", {})
        if asked:
            async with self._connection.pipeline():
                await self._connection.execute(b"begin", prepare=False)
                cursors = [await self._send(*one) for one in (bind, *asked)]
            [bound], *answers = [await _rows(cursor) for cursor in cursors]
        else:
            [bound], answers = await self._begin_alone(*bind), []
        self.now = bound["now"]
        self._opened = (asked, answers)
        return answers

    def opened(self, asked: Sequence[Asked]) -> list[list[DictRow]]:
        """Return, once, the rows of these queries if the transaction began with them, else nothing."""
        begun, answers = self._opened
        self._opened = ((), [])
        return answers if list(begun) == list(asked) else []

    def send_ahead(self, asked: Asked) -> None:
        """Run *asked*, which answers nothing, before the next query or the commit, in the same round trip as that.

        Whoever reads what it stores finds it; that it failed is raised by what it went ahead of.
        """
        self._ahead.append(asked)

    def with_commit(self, pending: Callable[[], Sequence[Asked]]) -> None:
        """Run what *pending* says then in one round trip with the commit, or sooner where somebody asks for it."""
        self._with_commit.append(pending)

    def pending(self) -> list[Asked]:
        """Return what waits for the commit, for whoever runs it now."""
        return [one for pending in self._with_commit for one in pending()]

    async def commit(self, *asked: Asked) -> list[list[DictRow]]:
        """Run named queries and commit, in one round trip."""
        if not asked and not self._ahead:
            await self._connection.execute(b"commit", prepare=False)
            return []
        async with self._connection.pipeline():
            await self._send_those_ahead()
            cursors = [await self._send(*one) for one in asked]
            await self._connection.execute(b"commit", prepare=False)
        return [await _rows(cursor) for cursor in cursors]

    def when_committed(self, tell: Callable[[], None]) -> None:
        """Call *tell* once the transaction is durable, and never if it is not: for counting what has happened."""
        self._afterwards.append(tell)

    def committed(self) -> None:
        """Tell everybody who waits for the commit; only the database that opened the transaction says so."""
        for tell in self._afterwards:
            tell()

    async def all(self, query: str, /, **values: object) -> list[DictRow]:
        """Run a named query and return its rows."""
        return await (await self._ask(query, values)).fetchall()

    async def find(self, query: str, /, **values: object) -> DictRow | None:
        """Run a named query and return its first row, if any."""
        return await (await self._ask(query, values)).fetchone()

    async def one(self, query: str, /, **values: object) -> DictRow:
        """Run a named query and return its first row; raises NotFound when there is none."""
        row = await self.find(query, **values)
        if row is None:
            message = "there is no such object"
            raise NotFound(message)
        return row

    async def run(self, query: str, /, **values: object) -> int:
        """Run a named query and return the number of rows it touched."""
        return (await self._ask(query, values)).rowcount

    async def together(self, *asked: Asked) -> list[list[DictRow]]:
        """Run named queries in one round trip, each after the one before it, and return the rows of each."""
        if not asked:
            return []
        async with self._connection.pipeline():
            await self._send_those_ahead()
            cursors = [await self._send(*one) for one in asked]
        return [await _rows(cursor) for cursor in cursors]

    async def _begin_alone(self, query: str, values: Mapping[str, object]) -> list[DictRow]:
        # A single message, its values bound on this side: half the work of a pipeline.
        cursor = psycopg.AsyncClientCursor(self._connection)
        await cursor.execute(b"begin;" + QUERIES[query], self._values(dict(values)))
        cursor.nextset()
        return await cursor.fetchall()

    async def _ask(self, query: str, values: dict[str, object]) -> Cursor:
        if not self._ahead:
            return await self._connection.execute(QUERIES[query], self._values(values))
        async with self._connection.pipeline():
            await self._send_those_ahead()
            return await self._connection.execute(QUERIES[query], self._values(values))

    async def _send_those_ahead(self) -> None:
        ahead, self._ahead = self._ahead, []
        for one in ahead:
            await self._send(*one)

    async def _send(self, query: str, values: Mapping[str, object]) -> Cursor:
        # What every request asks is worth a plan of its own at once.
        return await self._connection.execute(QUERIES[query], self._values(dict(values)), prepare=True)

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

    def transaction(self, tenant_id: str, *first: Asked) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction of *tenant_id*: committed at the end, rolled back by any error.

        It may begin with what is to be asked *first*, in one round trip.
        """
        return _transaction(self._app, tenant_id, first)

    def system(self) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction of the system role, for the closed list of ``system_*`` queries."""
        return _transaction(self._system, "")

    def pools(self) -> list[PoolUse]:
        """Return how busy the pools of this process are now."""
        return [_use(name, pool) for name, pool in (("app", self._app), ("system", self._system))]


async def _rows(cursor: Cursor) -> list[DictRow]:
    # The description of a cursor would be made anew for each look at it.
    return await cursor.fetchall() if cursor.rownumber is not None else []


def _pool(conninfo: str, role: str, size: int) -> AsyncConnectionPool[Connection]:
    return AsyncConnectionPool(
        conninfo,
        connection_class=psycopg.AsyncConnection[DictRow],
        kwargs={"row_factory": dict_row, "autocommit": True, "options": f"{OPTIONS} -c role={role}"},
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
async def _transaction(
    pool: AsyncConnectionPool[Connection], tenant_id: str, first: Sequence[Asked] = ()
) -> AsyncGenerator[Transaction]:
    try:
        async with pool.connection() as connection:
            tx = Transaction(connection, tenant_id)
            await tx.begin(*first)
            yield tx
            await tx.commit(*tx.pending())
            tx.committed()
    except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure) as error:
        message = "two requests stood in each other's way; send this one again"
        raise LostRace(message) from error
    except psycopg.errors.NotNullViolation as error:
        if error.diag.table_name != "audit_intake":
            raise
        message = "the tenant has no audit log"
        raise Unavailable(message) from error
    except (psycopg.OperationalError, PoolTimeout) as error:
        message = "the database does not answer"
        raise Unavailable(message) from error
