"""Admissions a second over HTTP, beside what the bare database and the bare server give in the same run.

Run with ``make bench`` or ``python benchmarks/admission.py [seconds per row]``.
"""

import asyncio
import itertools
import json
import sys
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


def main() -> None:
    """Print the table."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    with server() as where:
        governor = where.token(where.client("governor", "Orch.Governor"), "orch:govern", quota_reason="benchmark")
        worker = where.token(where.client("worker", "Orch.Worker"), "orch:admit")
        uvloop.run(_run(where, governor, worker, seconds))


async def _run(where: Server, governor: str, worker: str, seconds: float) -> None:
    await _make_quotas(where, governor)
    print(f"{'what':<36}{'conns':>6}{'per second':>12}{'p50 ms':>9}{'p99 ms':>9}")
    for quotas, connections in itertools.product((1, QUOTAS), CONNECTIONS):
        acquire = _acquiring(quotas)
        _row(f"acquire, {quotas} quotas", connections, await measure(where, worker, connections, seconds, acquire))
        pair = _pairing(acquire)
        _row(
            f"acquire + release, {quotas} quotas", connections, await measure(where, worker, connections, seconds, pair)
        )
    for connections in (1, 4):
        found = await measure(where, worker, connections, seconds, _batch)
        _row(f"decisions, {BATCH} a call", connections, Figures(found.rate * BATCH, found.p50, found.p99))
    for connections in CONNECTIONS:
        found = await measure(where, worker, connections, seconds, _nothing)
        _row("same route, no transaction", connections, found)
    for connections in (1, 16):
        _row("database alone: update + insert", connections, await _bare(where, connections, seconds))


async def _make_quotas(where: Server, governor: str) -> None:
    headers = {"Authorization": f"Bearer {governor}"}
    async with httpx2.AsyncClient(base_url=f"{where.url}/api/v1", headers=headers) as http:
        (await http.put("/policy", json={"ceilings": LIMITLESS})).raise_for_status()
        for index in range(QUOTAS):
            body = {"job_type": f"hot-{index}", "limits": LIMITLESS}
            (await http.post("/quotas", json=body)).raise_for_status()


def _acquiring(quotas: int) -> Callable[[Connection], Awaitable[bytes]]:
    names = itertools.cycle([f"hot-{index}" for index in range(quotas)])

    async def acquire(connection: Connection) -> bytes:
        status, body = await connection.post(PATH, json.dumps({"job_type": next(names)}).encode())
        if b"lease_id" not in body:
            raise SystemExit(f"{status} {body!r}")
        return body

    return acquire


def _pairing(acquire: Callable[[Connection], Awaitable[bytes]]) -> Callable[[Connection], Awaitable[None]]:
    async def pair(connection: Connection) -> None:
        lease = json.loads(await acquire(connection))
        body = json.dumps({"fencing_token": lease["fencing_token"]}).encode()
        await connection.post(f"{PATH}/{lease['lease_id']}/release", body)

    return pair


async def _batch(connection: Connection) -> None:
    body = json.dumps({"requests": [{"job_type": "hot-0"}] * BATCH}).encode()
    await connection.post(f"{PATH}/batch", body)


async def _nothing(connection: Connection) -> None:
    """Pass authentication and the reading of the body; an id that can name nothing ends it there."""
    await connection.post(f"{PATH}/none/renew", b'{"fencing_token": 1}')


async def _bare(where: Server, connections: int, seconds: float) -> Figures:
    """Commit one conditional update of a hot row and one insert at a time, through psycopg."""
    async with EmbeddedPostgres(where.data_dir) as conninfo:
        opened = [await psycopg.AsyncConnection.connect(conninfo, autocommit=True) for _ in range(connections)]
        await opened[0].execute("create table if not exists hot (id int primary key, used int)")
        await opened[0].execute(
            "create table if not exists held (id bigint generated always as identity, at timestamptz)"
        )
        await opened[0].execute("insert into hot values (1, 0) on conflict do nothing")
        took: list[float] = []
        until = perf_counter() + seconds
        await asyncio.gather(*(_commit_until(connection, until, took) for connection in opened))
        for connection in opened:
            await connection.close()
        return figures(took, seconds)


async def _commit_until(connection: psycopg.AsyncConnection, until: float, took: list[float]) -> None:
    while (began := perf_counter()) < until:
        async with connection.transaction():
            await connection.execute("update hot set used = used + 1 where id = 1 and used < 2000000000")
            await connection.execute("insert into held (at) values (clock_timestamp())")
        took.append(perf_counter() - began)


def _row(what: str, connections: int, found: Figures) -> None:
    print(f"{what:<36}{connections:>6}{found.rate:>12,.0f}{found.p50:>9.1f}{found.p99:>9.1f}", flush=True)


if __name__ == "__main__":
    main()
