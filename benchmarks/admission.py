"""Admissions a second over HTTP, beside what the bare database and the bare server give in the same run.

Run with ``make bench`` or ``python benchmarks/admission.py [seconds per row]``, on a machine that does nothing else:
server, database and this client share its cores. Rates of one run may be compared with each other.
"""

import asyncio
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter

import httpx2
import psycopg
import uvloop

sys.path.insert(0, str(Path(__file__).parent))

from _serving import LIMITLESS, Connection, Figures, Server, figures, measure, server

from jobengine.storage.embedded import EmbeddedPostgres

CONNECTIONS = (1, 8, 32, 64)
BATCH = 500
QUOTAS = 50
PATH = "/api/v1/admissions"
FLOOD = 64
PACE_SECONDS = 0.02
WITHOUT_TRANSACTION = str(Path(__file__).with_name("_without_transaction.py"))
SCRIPT = """update hot set used = used + 1 where id = 1 and used < 2000000000;
insert into held (at) values (clock_timestamp());
"""

Call = Callable[[Connection], Awaitable[object]]


def main() -> None:
    """Print the table."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the first row")
    print(f"{'what':<36}{'conns':>6}{'per second':>12}{'p50 ms':>9}{'p99 ms':>9}")
    with server() as where:
        governor = where.token(where.client("governor", "Orch.Governor"), "orch:govern", quota_reason="benchmark")
        worker = where.token(where.client("worker", "Orch.Worker"), "orch:admit")
        quiet = where.token(where.client("quiet", "Orch.Worker", tenant="quiet"), "orch:admit")
        uvloop.run(_run(where, governor, worker, seconds))
        uvloop.run(_beside_a_flood(where, worker, quiet, seconds))
        uvloop.run(_bare(where, seconds))
    with server(program=(WITHOUT_TRANSACTION,)) as where:
        worker = where.token(where.client("worker", "Orch.Worker"), "orch:admit")
        uvloop.run(_only_http(where, worker, seconds))


async def _run(where: Server, governor: str, worker: str, seconds: float) -> None:
    await _make_quotas(where, governor)
    for quotas in (1, QUOTAS):
        acquire = _acquiring(quotas)
        for connections in CONNECTIONS:
            _row(f"acquire, {quotas} quotas", connections, await measure(where, worker, connections, seconds, acquire))
        for connections in CONNECTIONS:
            found = await measure(where, worker, connections, seconds, _pairing(acquire))
            _row(f"acquire + release, {quotas} quotas", connections, found)
        for connections in (1, 4):
            found = await measure(where, worker, connections, seconds, _asking_many(quotas))
            told = f"decisions, {BATCH} a call, {quotas} quotas"
            _row(told, connections, Figures(found.rate * BATCH, found.p50, found.p99))


async def _beside_a_flood(where: Server, worker: str, quiet: str, seconds: float) -> None:
    acquire = _acquiring(1)
    _row("a quiet tenant alone", 1, await measure(where, quiet, 1, seconds, _pacing(acquire)))
    found, flooding = await asyncio.gather(
        measure(where, quiet, 1, seconds, _pacing(acquire)), measure(where, worker, FLOOD, seconds, acquire)
    )
    _row(f"a quiet tenant, {flooding.rate:,.0f}/s beside it", 1, found)


async def _only_http(where: Server, worker: str, seconds: float) -> None:
    for connections in CONNECTIONS:
        found = await measure(where, worker, connections, seconds, _acquiring(1))
        _row("acquire, transaction left out", connections, found)


async def _make_quotas(where: Server, governor: str) -> None:
    headers = {"Authorization": f"Bearer {governor}"}
    async with httpx2.AsyncClient(base_url=f"{where.url}/api/v1", headers=headers) as http:
        given = {"ceilings": LIMITLESS, "default_limits": LIMITLESS}
        (await http.put("/policy", json=given)).raise_for_status()
        for index in range(QUOTAS):
            body = {"job_type": f"hot-{index}", "limits": LIMITLESS}
            (await http.post("/quotas", json=body)).raise_for_status()


def _acquiring(quotas: int) -> Callable[[Connection], Awaitable[bytes]]:
    bodies = itertools.cycle([json.dumps({"job_type": f"hot-{index}"}).encode() for index in range(quotas)])

    async def acquire(connection: Connection) -> bytes:
        status, body = await connection.post(PATH, next(bodies))
        if b"lease_id" not in body:
            raise SystemExit(f"{status} {body!r}")
        return body

    return acquire


def _pairing(acquire: Callable[[Connection], Awaitable[bytes]]) -> Call:
    async def pair(connection: Connection) -> None:
        lease = json.loads(await acquire(connection))
        body = b'{"fencing_token": %d}' % lease["fencing_token"]
        status, told = await connection.post(f"{PATH}/{lease['lease_id']}/release", body)
        if told:
            raise SystemExit(f"{status} {told!r}")

    return pair


def _asking_many(quotas: int) -> Call:
    names = itertools.islice(itertools.cycle(range(quotas)), BATCH)
    body = json.dumps({"requests": [{"job_type": f"hot-{index}"} for index in names]}).encode()

    async def ask(connection: Connection) -> None:
        status, told = await connection.post(f"{PATH}/batch", body)
        if told.count(b'"granted":true') != BATCH:
            raise SystemExit(f"{status} {told[:200]!r}")

    return ask


def _pacing(call: Callable[[Connection], Awaitable[bytes]]) -> Call:
    """Leave time between two calls that is not counted: a client that waits for work."""

    async def paced(connection: Connection) -> float:
        await asyncio.sleep(PACE_SECONDS)
        began = perf_counter()
        await call(connection)
        return perf_counter() - began

    return paced


async def _bare(where: Server, seconds: float) -> None:
    """Commit one conditional update of a hot row and one insert at a time: by pgbench, or else through psycopg."""
    async with EmbeddedPostgres(where.data_dir) as conninfo:
        async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
            await connection.execute("create table hot (id int primary key, used int)")
            await connection.execute("create table held (id bigint generated always as identity, at timestamptz)")
            await connection.execute("insert into hot values (1, 0)")
        for connections in (1, 16, 64):
            if pgbench := shutil.which("pgbench"):
                found = await asyncio.to_thread(_by_pgbench, pgbench, conninfo, connections, seconds)
            else:
                found = await _by_psycopg(conninfo, connections, seconds)
            _row("database alone: update + insert", connections, found)


def _by_pgbench(pgbench: str, conninfo: str, connections: int, seconds: float) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.sql"
        script.write_text(f"begin;\n{SCRIPT}commit;\n")
        asked = ["-n", "-M", "prepared", "-f", str(script), "-c", str(connections), "-T", str(max(1, round(seconds)))]
        command = [pgbench, *asked, "-l", "--log-prefix", f"{folder}/took", conninfo]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - a program of PostgreSQL's
        lines = [line for log in Path(folder).glob("took.*") for line in log.read_text().splitlines()]
    return figures([int(line.split()[2]) / 10**6 for line in lines], max(1, round(seconds)))


async def _by_psycopg(conninfo: str, connections: int, seconds: float) -> Figures:
    opened = [await psycopg.AsyncConnection.connect(conninfo, autocommit=True) for _ in range(connections)]
    took: list[float] = []
    until = perf_counter() + seconds

    async def commit(connection: psycopg.AsyncConnection) -> None:
        update, insert = SCRIPT.splitlines()
        while (began := perf_counter()) < until:
            async with connection.transaction():
                await connection.execute(update.encode())
                await connection.execute(insert.encode())
            took.append(perf_counter() - began)

    await asyncio.gather(*map(commit, opened))
    for connection in opened:
        await connection.close()
    return figures(took, seconds)


def _row(what: str, connections: int, found: Figures) -> None:
    print(f"{what:<36}{connections:>6}{found.rate:>12,.0f}{found.p50:>9.1f}{found.p99:>9.1f}", flush=True)


if __name__ == "__main__":
    main()
