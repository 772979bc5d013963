"""The audit log: what its intake, sequencer, check, export and proofs give in a second, on one database of its own.

Run with ``make bench`` or ``python benchmarks/audit.py [seconds per row]``. Every commit is durable.
"""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import psycopg
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jobengine.audit.actions import Action, Outcome
from jobengine.audit.model import Actor, AuditEntry, Resource
from jobengine.audit.signing import LogKeys
from jobengine.ids import new_id
from jobengine.storage.audit import EntryFilter, PostgresAudit, export_log, list_entries, read_head
from jobengine.storage.audit_check import check_log
from jobengine.storage.audit_proofs import prove_inclusion
from jobengine.storage.authority import add_tenant
from jobengine.storage.database import Database
from jobengine.storage.embedded import EmbeddedPostgres
from jobengine.storage.migrator import migrate
from jobengine.storage.sequencer import Sequencer

KEYS = LogKeys({"bench": Ed25519PrivateKey.generate()}, "bench")
SHARDS = range(64)
WRITERS = 16
LOGS = [f"bench-{number}" for number in range(1_000)]
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def main() -> None:
    """Print the table."""
    uvloop.run(_run(float(sys.argv[1]) if len(sys.argv) > 1 else 3.0))


async def _run(seconds: float) -> None:
    print(f"{'what':<52}{'per second':>12}{'p50 ms':>9}{'p99 ms':>9}")
    async with _database() as (database, conninfo):
        sequencer = Sequencer(database, "bench", lambda: KEYS)
        for logs in (1, WRITERS):
            took = await _write(database, LOGS[:logs], seconds)
            _row(f"intake, {WRITERS} writers, {logs} log(s)", len(took) / seconds, took)
            await _drain(f"drain of {len(took):,} entries in {logs} log(s)", sequencer)
        await asyncio.gather(*[_record(database, log) for log in LOGS])
        await _drain(f"drain of {len(LOGS):,} entries in {len(LOGS):,} logs", sequencer)
        await _both(database, sequencer, seconds)
        async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as owner:
            await owner.execute("analyze")  # as the server does by itself within a minute
        await _read(database, seconds)


@asynccontextmanager
async def _database() -> AsyncIterator[tuple[Database, str]]:
    with tempfile.TemporaryDirectory(prefix="jobengine-bench-") as folder:
        async with EmbeddedPostgres(Path(folder)) as conninfo:
            await asyncio.to_thread(migrate, conninfo, conninfo)
            database = Database(conninfo, app_connections=WRITERS)
            await database.open()
            async with database.system() as tx:
                for log in LOGS:
                    await add_tenant(tx, log)
            yield database, conninfo
            await database.close()


async def _record(database: Database, log: str) -> str:
    entry = AuditEntry(
        entry_id=new_id(),
        tenant_id=log,
        occurred_at=NOW,
        action=Action.QUOTA_ADJUSTED,
        actor=Actor("client", "ops", "jec_bench"),
        outcome=Outcome.SUCCESS,
        resource=Resource("quota", new_id()),
        reason="as much as there is",
        ticket="OPS-1",
        properties={"quota.reason": "as much as there is", "quota.ticket": "OPS-1"},
        before={"limits": {"max_active": 10, "max_per_hour": 1000}},
        after={"limits": {"max_active": 20, "max_per_hour": 2000}},
    )
    async with database.transaction(log) as tx:
        await PostgresAudit(tx).record(entry)
    return entry.entry_id


async def _write(database: Database, logs: Sequence[str], seconds: float) -> list[float]:
    """Let every writer record entries, each in a transaction of its own; return how long each took."""
    until = perf_counter() + seconds

    async def write(log: str) -> list[float]:
        took: list[float] = []
        while (began := perf_counter()) < until:
            await _record(database, log)
            took.append(perf_counter() - began)
        return took

    written = await asyncio.gather(*[write(logs[number % len(logs)]) for number in range(WRITERS)])
    return [moment for took in written for moment in took]


async def _drain(what: str, sequencer: Sequencer) -> None:
    began, placed = perf_counter(), 0
    while found := await sequencer.drain(SHARDS):
        placed += found
    _row(what, placed / (perf_counter() - began))


async def _both(database: Database, sequencer: Sequencer, seconds: float) -> None:
    """Write and sequence at once, as a server does, and see how long an entry waits for its place."""
    waited: list[float] = []

    async def watch() -> None:
        while True:
            entry_id, began = await _record(database, LOGS[0]), perf_counter()
            async with database.transaction(LOGS[0]) as tx:
                while (await tx.one("audit_get", entry_id=entry_id))["sequence"] is None:  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0.01)
            waited.append(perf_counter() - began)

    async def sequence() -> None:
        while True:
            await sequencer.drain(SHARDS)
            await asyncio.sleep(0.2)

    tasks = [asyncio.create_task(task()) for task in (watch, sequence)]
    took = await _write(database, LOGS[:WRITERS], seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    _row(f"intake, {WRITERS} writers, while sequencing", len(took) / seconds, took)
    _row("  wait for a place", len(waited) / seconds, waited)
    await sequencer.drain(SHARDS)


async def _read(database: Database, seconds: float) -> None:
    log = LOGS[0]
    async with database.transaction(log) as tx:
        head = await read_head(tx)
    began = perf_counter()
    assert (await check_log(database, log, KEYS)).ok
    _row(f"check of {head.size:,} entries", head.size / (perf_counter() - began))
    began, size = perf_counter(), 0
    async for chunk in export_log(database, log, head, head.checkpoint):
        size += len(chunk)
    span = perf_counter() - began
    _row(f"export of {head.size:,} entries, {size / span / 2**20:.1f} MiB/s", head.size / span)
    async with database.transaction(log) as tx:
        entries = await list_entries(tx, EntryFilter(), after=head.size // 2, most=1)
        last = EntryFilter(resource_type="quota", resource_id=entries[0]["resource"]["id"])
        _row("inclusion proof", *await _repeat(seconds, lambda: prove_inclusion(tx, entries[0]["entry_id"])))
        _row("list of 50", *await _repeat(seconds, lambda: list_entries(tx, EntryFilter(), after=0, most=50)))
        _row("list by resource", *await _repeat(seconds, lambda: list_entries(tx, last, after=-1, most=50)))
        rare = EntryFilter(action=Action.KEY_ROTATED.value)
        _row("list by a rare action", *await _repeat(seconds, lambda: list_entries(tx, rare, after=-1, most=50)))


async def _repeat(seconds: float, work: Callable[[], Awaitable[object]]) -> tuple[float, list[float]]:
    took: list[float] = []
    until = perf_counter() + seconds
    while (began := perf_counter()) < until:
        await work()
        took.append(perf_counter() - began)
    return len(took) / seconds, took


def _row(what: str, rate: float, took: Sequence[float] = ()) -> None:
    ordered = sorted(took)
    figures = [ordered[int(len(ordered) * share)] * 1000 for share in (0.5, 0.99)] if ordered else []
    print(f"{what:<52}{rate:>12,.0f}" + "".join(f"{figure:>9.1f}" for figure in figures), flush=True)


if __name__ == "__main__":
    main()
