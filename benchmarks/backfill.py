"""Backfills: what planning, handing out, ending and suppressing cost, on one server of its own with durable commits.

Run with ``make bench`` or ``python benchmarks/backfill.py [--quick]``.
"""

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx2
import psycopg
import uvloop

sys.path.insert(0, str(Path(__file__).parent))

from _serving import LIMITLESS, Connection, Figures, Server, figures, measure, server

from jobengine.backfill.attempts import ClaimedBatch, Events
from jobengine.storage.batch_words import Completion
from jobengine.storage.batches import carry_out, claim
from jobengine.storage.database import Database
from jobengine.storage.embedded import EmbeddedPostgres
from jobengine.storage.events import claim_events

CONFIG = """
[job_types.external]
handler = "external"
lease_seconds = 600
[job_types.nothing]
handler = "python:_handlers:nothing"
[job_types.nap]
handler = "python:_handlers:nap"
"""
JOB_TYPES = ("external", "nothing", "nap", "live")
START = datetime(2000, 1, 1, tzinfo=UTC)
TENANT = "bench"
MOST_A_CLAIM = 64
CONNECTIONS = 16
KEYS_A_CALL = 10_000
API = "/api/v1"
HISTORY = 200_000
_sources = (f"source-{number}" for number in itertools.count())


def main() -> None:
    """Print the table."""
    quick = "--quick" in sys.argv[1:]
    environ = {"PYTHONPATH": str(Path(__file__).parent), "JOBENGINE_EMBEDDED_SLOTS": "16"}
    print(f"{'what':<58}{'per second':>12}{'p50 ms':>9}{'p99 ms':>9}")
    with server(CONFIG, **environ) as where:
        uvloop.run(_run(Desk(where), 1.0 if quick else 5.0, quick=quick))


async def _run(desk: "Desk", seconds: float, *, quick: bool) -> None:
    async with httpx2.AsyncClient(base_url=f"{desk.where.url}{API}", timeout=60) as http:
        await _plan(desk, http, 5 if quick else 20)
        await _live(desk, http, seconds)
        await _run_embedded(desk, http, 500 if quick else 5_000)
        await _work_over_http(desk, http, seconds)
        async with _storage(desk) as (database, owner):
            await _plan_around_history(desk, http, owner)
            await _cost_of_a_batch(desk, http, database, seconds)
            await _suppress(desk, http, database, 4 if quick else 20)
        await _restart(desk, http, 10 if quick else 100)


class Desk:
    """Somebody with every token that the benchmark needs, and the backfills they ask for."""

    def __init__(self, where: Server) -> None:
        self.where = where
        admin, worker = where.client("admin", "Orch.Admin"), where.client("worker", "Orch.Worker")
        governor = where.token(where.client("governor", "Orch.Governor"), "orch:govern", quota_reason="benchmark")
        self.backfiller = where.token(admin, "orch:backfill", backfill_reason="benchmark")
        self.executor = where.token(worker, "orch:execute")
        self.admitter = where.token(worker, "orch:admit")
        headers = {"Authorization": f"Bearer {governor}"}
        with httpx2.Client(base_url=f"{where.url}{API}", headers=headers) as http:
            policy = {"ceilings": LIMITLESS, "backfill_share": 0.5}
            http.put("/policy", json=policy).raise_for_status()
            for job_type in JOB_TYPES:
                http.post("/quotas", json={"job_type": job_type, "limits": LIMITLESS}).raise_for_status()

    def asks(self, batches: int, job_type: str = "external", **more: object) -> dict[str, object]:
        """Return the body of a request for so many batches of a minute that nobody asked for before."""
        window = {
            "start": f"{START:%Y-%m-%dT%H:%M:%SZ}",
            "end": f"{START + timedelta(minutes=batches):%Y-%m-%dT%H:%M:%SZ}",
        }
        return {"job_type": job_type, "source": next(_sources), "window": window, "partition": "PT1M", **more}

    async def post(self, http: httpx2.AsyncClient, path: str, body: object = None) -> dict[str, Any]:
        """Send a request as the one who may start backfills."""
        answer = await http.post(path, json=body or {}, headers={"Authorization": f"Bearer {self.backfiller}"})
        answer.raise_for_status()
        return answer.json()

    async def show(self, http: httpx2.AsyncClient, backfill: dict[str, Any]) -> dict[str, Any]:
        """Return a backfill as it stands."""
        headers = {"Authorization": f"Bearer {self.backfiller}"}
        return (await http.get(f"/backfills/{backfill['backfill_id']}", headers=headers)).json()

    async def running(self, http: httpx2.AsyncClient, job_type: str) -> list[dict[str, Any]]:
        """Return the running backfills of a job type as they stand."""
        headers = {"Authorization": f"Bearer {self.backfiller}"}
        asked = {"job_type": job_type, "status": "running", "page_size": 500}
        return (await http.get("/backfills", params=asked, headers=headers)).json()["items"]


async def _plan(desk: Desk, http: httpx2.AsyncClient, times: int) -> None:
    for exponent in range(2, 7):
        for what, path in (("preview", "/backfills/preview"), ("create", "/backfills")):
            made: list[dict[str, Any]] = []

            async def ask(path: str = path, size: int = 10**exponent, made: list[Any] = made) -> None:
                made.append(await desk.post(http, path, desk.asks(size)))

            _row(f"{what}, 10^{exponent} partitions", await _repeated(times, ask))
            for backfill in made if what == "create" else ():
                await desk.post(http, f"/backfills/{backfill['backfill_id']}/cancel")


async def _plan_around_history(desk: Desk, http: httpx2.AsyncClient, owner: psycopg.AsyncConnection) -> None:
    """Plan around every other minute that an earlier backfill has done: as many stretches as partitions."""
    asked = desk.asks(HISTORY)
    past = await desk.post(http, "/backfills", asked)
    await desk.post(http, f"/backfills/{past['backfill_id']}/cancel")
    await owner.execute(
        """insert into batches (tenant_id, batch_id, backfill_id, partition_index, job_type, window_start, window_end,
                status, finished_at)
            select tenant_id, gen_random_uuid(), backfill_id, k + 1000, job_type, window_start + k * interval '1 min',
                window_start + (k + 1) * interval '1 min', 'succeeded', created_at
            from backfills, generate_series(0, %s, 2) k where backfill_id = %s""",
        (HISTORY - 2, past["backfill_id"]),
    )
    _row(
        f"preview around {HISTORY // 2:,} islands",
        await _repeated(3, lambda: desk.post(http, "/backfills/preview", asked)),
    )
    made: list[dict[str, Any]] = []

    async def create() -> None:
        made.append(await desk.post(http, "/backfills", asked))

    _row(f"create around {HISTORY // 2:,} islands", await _repeated(1, create))
    await desk.post(http, f"/backfills/{made[0]['backfill_id']}/cancel")


async def _live(desk: Desk, http: httpx2.AsyncClient, seconds: float) -> None:
    async def acquire(connection: Connection) -> None:
        body = b'{"job_type": "live", "lease_seconds": 5}'
        status, _ = await connection.post(f"{API}/admissions", body)
        if status != 201:
            raise SystemExit(f"acquire: {status}")

    _row("live acquire, nothing else", await measure(desk.where, desk.admitter, 4, seconds, acquire))
    napping = await desk.post(http, "/backfills", desk.asks(100_000, "nap"))
    await asyncio.sleep(2)
    _row("live acquire, all slots hold batches of 0.5 s", await measure(desk.where, desk.admitter, 4, seconds, acquire))
    await desk.post(http, f"/backfills/{napping['backfill_id']}/cancel")
    busy = await desk.post(http, "/backfills", desk.asks(100_000, "nothing"))
    await asyncio.sleep(2)
    _row("live acquire, batches that take no time", await measure(desk.where, desk.admitter, 4, seconds, acquire))
    await desk.post(http, f"/backfills/{busy['backfill_id']}/cancel")
    await _until(desk, http, busy, "canceled")


async def _run_embedded(desk: Desk, http: httpx2.AsyncClient, batches: int) -> None:
    warm = await desk.post(http, "/backfills", desk.asks(64, "nothing"))
    await _until(desk, http, warm, "completed")
    began = perf_counter()
    await _until(desk, http, await desk.post(http, "/backfills", desk.asks(batches, "nothing")), "completed")
    _rate("embedded no-op batches, 16 slots", batches, perf_counter() - began)


async def _work_over_http(desk: Desk, http: httpx2.AsyncClient, seconds: float) -> None:
    made = await desk.post(http, "/backfills", desk.asks(1_000_000))
    opened = [await Connection.open(desk.where, desk.executor) for _ in range(CONNECTIONS)]
    until, ended, took = perf_counter() + seconds, 0, []
    began = perf_counter()
    while perf_counter() < until:
        asked = perf_counter()
        _, body = await opened[0].post(f"{API}/batches/claim", b'{"job_types": ["external"], "max": 64}')
        took.append(perf_counter() - asked)
        batches = json.loads(body)["batches"]
        await asyncio.gather(*(_complete(one, batches[turn::CONNECTIONS]) for turn, one in enumerate(opened)))
        ended += len(batches)
    elapsed = perf_counter() - began
    _rate("batches over HTTP, 64 a claim, completed one by one", ended, elapsed)
    _row("claim of 64 over HTTP", figures(took, elapsed))
    for connection in opened:
        connection.close()
    await desk.post(http, f"/backfills/{made['backfill_id']}/cancel")


async def _complete(connection: Connection, batches: Sequence[dict[str, Any]]) -> None:
    for batch in batches:
        path = f"{API}/batches/{batch['batch_id']}/complete"
        status, _ = await connection.post(path, json.dumps({"fencing_token": batch["fencing_token"]}).encode())
        if status != 204:
            raise SystemExit(f"complete: {status}")


@asynccontextmanager
async def _storage(desk: Desk) -> AsyncIterator[tuple[Database, psycopg.AsyncConnection]]:
    async with EmbeddedPostgres(desk.where.data_dir) as conninfo:
        database = Database(conninfo)
        await database.open()
        options = "-c search_path=jobengine"
        async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True, options=options) as owner:
            yield database, owner
        await database.close()


async def _cost_of_a_batch(desk: Desk, http: httpx2.AsyncClient, database: Database, seconds: float) -> None:
    """Claim and complete in the storage layer, one caller alone: what a batch costs the control plane."""
    made = await desk.post(http, "/backfills", desk.asks(1_000_000))
    for size in (1, MOST_A_CLAIM):
        until, took, began = perf_counter() + seconds, [], perf_counter()
        while (asked := perf_counter()) < until:
            batches = await _claim(database, size)
            async with database.transaction(TENANT) as tx:
                done = [Completion(batch.batch_id, batch.fencing_token, Events()) for batch in batches]
                await carry_out(tx, done)
            took += [(perf_counter() - asked) / size] * size
        _row(f"claim and complete, {size} in a transaction", figures(took, perf_counter() - began))
    await desk.post(http, f"/backfills/{made['backfill_id']}/cancel")


async def _claim(database: Database, most: int) -> list[ClaimedBatch]:
    async with database.transaction(TENANT) as tx:
        return await claim(tx, "external", ["external"], most, "benchmark")


async def _suppress(desk: Desk, http: httpx2.AsyncClient, database: Database, calls: int) -> None:
    await desk.post(http, "/backfills", desk.asks(8))
    first, second, *others = await _claim(database, 4)

    async def name(batch: ClaimedBatch, run: int) -> None:
        for call in range(calls):
            keys = [f"order-{run}-{call}-{number}" for number in range(KEYS_A_CALL)]
            async with database.transaction(TENANT) as tx:
                await claim_events(tx, batch.batch_id, batch.fencing_token, keys)

    for what, hands in (("new", (first, second)), ("already seen", others)):
        began = perf_counter()
        await asyncio.gather(*(name(batch, run) for run, batch in enumerate(hands)))
        _rate(f"event keys, {what}, {KEYS_A_CALL:,} a call, 2 callers", 2 * calls * KEYS_A_CALL, perf_counter() - began)
        async with database.transaction(TENANT) as tx:
            await carry_out(tx, [Completion(batch.batch_id, batch.fencing_token, Events()) for batch in hands])


async def _restart(desk: Desk, http: httpx2.AsyncClient, backfills: int) -> None:
    for _ in range(backfills):
        await desk.post(http, "/backfills", desk.asks(10_000, "nap"))
    await asyncio.to_thread(desk.where.restart)
    ready = perf_counter()
    # Whichever of them comes first: they take turns, and the turn outlives a restart.
    while not any(one["progress"]["batches"]["running"] for one in await desk.running(http, "nap")):  # noqa: ASYNC110 - the server is another process
        await asyncio.sleep(0.01)
    _row(f"ready to first dispatch, {backfills} backfills of 10,000", figures([perf_counter() - ready], 1))


async def _until(desk: Desk, http: httpx2.AsyncClient, backfill: dict[str, Any], status: str) -> None:
    while (await desk.show(http, backfill))["status"] != status:  # noqa: ASYNC110 - the server is another process
        await asyncio.sleep(0.05)


async def _repeated(times: int, call: Callable[[], Awaitable[object]]) -> Figures:
    took: list[float] = []
    for _ in range(times):
        began = perf_counter()
        await call()
        took.append(perf_counter() - began)
    return figures(took, sum(took))


def _row(what: str, found: Figures) -> None:
    print(f"{what:<58}{found.rate:>12,.0f}{found.p50:>9.1f}{found.p99:>9.1f}", flush=True)


def _rate(what: str, count: int, seconds: float) -> None:
    print(f"{what:<58}{count / seconds:>12,.0f}", flush=True)


if __name__ == "__main__":
    main()
