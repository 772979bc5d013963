"""SIGTERM while answers are being given: each is finished, and streams without an end find one."""

import signal
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import httpx2
import psycopg
import pytest
from tests.acceptance.callers import Caller, done
from tests.acceptance.serving import EVERY_ROLE, Installation, Server, eventually, new_tenants, serving

from jobengine.storage.embedded import EmbeddedPostgres

IN_FLIGHT = 20


@contextmanager
def a_server(folder: Path, *words: str) -> Iterator[tuple[Server, Caller]]:
    """Start a server of its own, and somebody who may do everything in a tenant of it."""
    installation = Installation.make(folder)
    try:
        with serving(installation, *words) as server, httpx2.Client(trust_env=False, timeout=60) as http:
            credentials = installation.create_client("ours", new_tenants(1), EVERY_ROLE)
            yield server, Caller(http, server.url, credentials, credentials.tenants[0])
    finally:
        installation.clean_up()


@asynccontextmanager
async def held_back(server: Server, tenant_id: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """Hold the lock under which admissions of a tenant are decided, so that they wait."""
    async with (
        EmbeddedPostgres(server.installation.data_dir) as conninfo,
        await psycopg.AsyncConnection.connect(conninfo) as connection,
    ):
        query = b"select from jobengine.admission_accounts where tenant_id = %s and account = '' for update"
        assert (await connection.execute(query, (tenant_id,))).rowcount == 1
        yield connection


@pytest.mark.parametrize("words", [(), ("--workers", "2")], ids=["one process", "two workers"])
async def test_what_is_being_answered_at_sigterm_is_finished(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Twenty admissions that wait for the database are granted, and an endless stream is ended: none is cut."""
    with a_server(tmp_path, *words) as (server, caller), ThreadPoolExecutor(IN_FLIGHT) as threads:
        caller.quota(max_active=100, burst=100)
        done(caller.post("/admissions", {"job_type": "scan"}), 201)
        backfill = done(caller.backfill(), 202)
        request = caller.request("GET", f"/backfills/{backfill['backfill_id']}/events")
        lines = caller.http.send(request, stream=True).iter_lines()
        assert next(lines).startswith(("event:", "id:"))

        async with held_back(server, caller.tenant) as connection:
            asked = [threads.submit(admitted, caller) for _ in range(IN_FLIGHT)]
            await waited_for(connection)
            eventually(lambda: connections(server.port) > IN_FLIGHT, 30, "connections of all who ask")
            server.process.send_signal(signal.SIGTERM)
            eventually(lambda: not server.is_ready(), 30, "a server that takes nothing new")
            await connection.rollback()
            answers = [future.result(60) for future in asked]

        # A stream that the server had to cut would raise here: its last chunk would be missing.
        assert "event: end" not in list(lines)
        assert answers == [201] * IN_FLIGHT
        assert server.process.wait(60) == 0


def admitted(caller: Caller) -> int:
    """Ask once over a connection of its own, and return the status."""
    with httpx2.Client(trust_env=False, timeout=60) as http:
        return replace(caller, http=http).post("/admissions", {"job_type": "scan"}).status_code


async def waited_for(connection: psycopg.AsyncConnection) -> None:
    """Return when somebody waits for the lock that this connection holds."""
    pid = connection.info.backend_pid
    query = b"select count(*) from pg_stat_activity where %s = any(pg_blocking_pids(pid))"
    for _ in range(3_000):
        row = await (await connection.execute(query, (pid,))).fetchone()
        if row is not None and row[0]:
            return
        await connection.execute(b"select pg_sleep(0.01)")
    pytest.fail("nobody waits")


def connections(port: int) -> int:
    """Return how many connections to a port have all of their request read by the server."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]]
    # Established, at the server's end, with nothing unread.
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "01" and row[4].endswith(":00000000") for row in rows)
