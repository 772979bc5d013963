"""The audit log: what its intake, sequencer, check, export, verifier and proofs give, on one database of its own.

Run with ``make bench`` or ``python benchmarks/audit.py [seconds per row] [largest log]``. Every commit is durable. The
largest log is one of 100,000 entries unless said otherwise; 1,000,000 takes some minutes, and about 3 GB of disk.
"""

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from secrets import token_bytes
from time import perf_counter

import psycopg
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jobengine.audit.actions import Action, Outcome
from jobengine.audit.model import Actor, AuditEntry, seal
from jobengine.audit.signing import LogKeys
from jobengine.ids import new_id
from jobengine.storage.anchors import Heart
from jobengine.storage.audit import EntryFilter, LogHead, PostgresAudit, list_entries, read_head
from jobengine.storage.audit_check import check_log
from jobengine.storage.audit_export import Export, export_log
from jobengine.storage.audit_proofs import prove_consistency, prove_inclusion
from jobengine.storage.authority import add_tenant
from jobengine.storage.database import Database
from jobengine.storage.embedded import EmbeddedPostgres
from jobengine.storage.migrator import migrate
from jobengine.storage.sequencer import Sequencer
from jobengine.tenancy.model import PLATFORM

KEYS = LogKeys({"bench": Ed25519PrivateKey.generate()}, "bench")
SHARDS = range(64)
WRITERS = 16
MANY = 10_000
LOGS = [f"bench-{number}" for number in range(MANY)]
LARGE = "bench-large"
COPIED_AT_ONCE = 5_000
# Runs a command from a process of its own: what a process's parent held counts as its memory too.
MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_maxrss, used.ru_utime + used.ru_stime)
"""
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def main() -> None:
    """Print the table."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    uvloop.run(_run(seconds, int(sys.argv[2]) if len(sys.argv) > 2 else 100_000))


async def _run(seconds: float, largest: int) -> None:
    print(f"{'what':<52}{'per second':>12}{'p50 ms':>9}{'p99 ms':>9}")
    async with _database() as (database, conninfo):
        sequencer = Sequencer(database, "bench", lambda: KEYS)
        took = await _write_bare(conninfo, seconds)
        _row(f"the bare database: one insert a commit, {WRITERS} writers", len(took) / seconds, took)
        await _write(database, LOGS[:1], seconds / 2)  # connects, and prepares what is asked
        for logs in (1, WRITERS):
            took = await _write(database, LOGS[:logs], seconds)
            _row(f"intake, {WRITERS} writers, {logs} log(s)", len(took) / seconds, took)
            await _drain(f"drain of {len(took):,} entries in {logs} log(s)", sequencer)
        await _both(database, sequencer, seconds)
        for logs in (1_000, MANY):
            await _fill(conninfo, LOGS[:logs], 1)
            await _drain(f"drain of {logs:,} entries in {logs:,} logs", sequencer)
        heart = Heart(database, "bench", lambda: KEYS)
        began = perf_counter()
        _row(f"anchors of {MANY:,} logs", await heart.anchor() / (perf_counter() - began))
        size = 10_000
        while size <= largest:
            await _grow(database, conninfo, sequencer, size)
            await _read(database, LARGE, seconds)
            size *= 10


async def _grow(database: Database, conninfo: str, sequencer: Sequencer, size: int) -> None:
    """Let the large log grow to *size*, and show what giving the entries their places takes."""
    async with database.transaction(LARGE) as tx:
        missing = size - (await read_head(tx)).size
    await _fill(conninfo, [LARGE], missing)
    await _drain(f"drain of {missing:,} entries in one log", sequencer)
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as owner:
        await owner.execute("analyze")  # as the server does by itself within a minute


@asynccontextmanager
async def _database() -> AsyncIterator[tuple[Database, str]]:
    with tempfile.TemporaryDirectory(prefix="jobengine-bench-") as folder:
        async with EmbeddedPostgres(Path(folder)) as conninfo:
            await asyncio.to_thread(migrate, conninfo, conninfo)
            database = Database(conninfo, app_connections=WRITERS)
            await database.open()
            async with database.system() as tx:
                for log in (PLATFORM, *LOGS, LARGE):
                    await add_tenant(tx, log)
            yield database, conninfo
            await database.close()


def _entry(log: str) -> AuditEntry:
    return AuditEntry(
        entry_id=new_id(),
        tenant_id=log,
        occurred_at=NOW,
        action=Action.QUOTA_ADJUSTED,
        actor=Actor("client", "ops", "jec_bench"),
        outcome=Outcome.SUCCESS,
        reason="as much as there is",
        ticket="OPS-1",
        properties={"quota.reason": "as much as there is", "quota.ticket": "OPS-1"},
        before={"limits": {"max_active": 10, "max_per_hour": 1000}},
        after={"limits": {"max_active": 20, "max_per_hour": 2000}},
    )


async def _record(database: Database, log: str) -> str:
    entry = _entry(log)
    async with database.transaction(log) as tx:
        await PostgresAudit(tx).record(entry)
    return entry.entry_id


async def _fill(conninfo: str, logs: Sequence[str], each: int) -> None:
    """Copy sealed entries into the intake of each log, as the owner may: quicker than a transaction for each."""
    wanted = [log for log in logs for _ in range(each)]
    async with await psycopg.AsyncConnection.connect(conninfo) as owner:
        await owner.execute("set search_path = jobengine")
        shards = dict(await (await owner.execute("select tenant_id, shard from audit_logs")).fetchall())
        for first in range(0, len(wanted), COPIED_AT_ONCE):
            sealed = [
                (log, seal(_entry(log), partial(token_bytes, 16))) for log in wanted[first : first + COPIED_AT_ONCE]
            ]
            entries = [
                (log, item.entry.entry_id, NOW, item.entry.action, item.entry.outcome, "ops", item.leaf, item.leaf_hash)
                for log, item in sealed
            ]
            texts = [
                (log, item.entry.entry_id, text.field, text.salt, text.text)
                for log, item in sealed
                for text in item.openings
            ]
            waiting = [(log, shards[log], item.entry.entry_id, item.leaf_hash) for log, item in sealed]
            named = "tenant_id, entry_id, occurred_at, action, outcome, actor_id, leaf, leaf_hash"
            await _copy(owner, f"audit_entries ({named})", entries)
            await _copy(owner, "audit_texts (tenant_id, entry_id, field, salt, text)", texts)
            await _copy(owner, "audit_intake (tenant_id, shard, entry_id, leaf_hash)", waiting)


async def _copy(owner: psycopg.AsyncConnection, table: str, rows: Sequence[tuple[object, ...]]) -> None:
    async with owner.cursor() as cursor, cursor.copy(f"copy {table} from stdin".encode()) as copy:
        for row in rows:
            await copy.write_row(row)


async def _write_bare(conninfo: str, seconds: float) -> list[float]:
    """Let every writer insert one row in each commit, with nothing of ours around it: what the machine can give."""
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as owner:
        await owner.execute("create table bare (writer int, leaf bytea)")
    until, leaf = perf_counter() + seconds, token_bytes(1_000)

    async def write(writer: int) -> list[float]:
        took: list[float] = []
        async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
            while (began := perf_counter()) < until:
                await connection.execute("insert into bare values (%s, %s)", (writer, leaf), prepare=True)
                took.append(perf_counter() - began)
        return took

    written = await asyncio.gather(*map(write, range(WRITERS)))
    return [moment for took in written for moment in took]


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


async def _read(database: Database, log: str, seconds: float) -> None:
    async with database.transaction(log) as tx:
        head = await read_head(tx)
    await _verify(database, log, head)
    async with database.transaction(log) as tx:
        entries = await list_entries(tx, EntryFilter(), after=head.size // 2, most=1)
        rare = EntryFilter(action=Action.KEY_ROTATED.value)
        _row("inclusion proof", *await _repeat(seconds, lambda: prove_inclusion(tx, entries[0]["entry_id"])))
        _row("consistency proof", *await _repeat(seconds, lambda: prove_consistency(tx, head.size // 3, head.size)))
        _row("list of 50", *await _repeat(seconds, lambda: list_entries(tx, EntryFilter(), after=0, most=50)))
        _row("list by a rare action", *await _repeat(seconds, lambda: list_entries(tx, rare, after=-1, most=50)))


async def _verify(database: Database, log: str, head: LogHead) -> None:
    """Check the log where it is stored, export it, and let the offline verifier read the export."""
    began = perf_counter()
    assert (await check_log(database, log, KEYS)).ok
    _row(f"check of {head.size:,} entries", head.size / (perf_counter() - began))
    with tempfile.TemporaryDirectory(prefix="jobengine-bench-") as folder:
        file, began = Path(folder, "export.ndjson"), perf_counter()
        size = 0
        with file.open("wb") as out:  # noqa: ASYNC230 - nothing else runs here
            async for chunk in export_log(database, log, Export(size=head.size, note=head.checkpoint)):
                size += out.write(chunk)
        span = perf_counter() - began
        _row(f"export of {head.size:,} entries, {size / span / 2**20:.1f} MiB/s", head.size / span)
        began = perf_counter()
        verify = [sys.executable, "-m", "jobengine_verify", str(file), "--key", str(KEYS.verifier_key(head.origin))]
        measured = await asyncio.to_thread(subprocess.check_output, [sys.executable, "-c", MEASURE, *verify], text=True)
        span, (memory, busy) = perf_counter() - began, map(float, measured.split())
        _row(f"jobengine-verify of {head.size:,} entries, {memory / 1024:.0f} MiB", head.size / span)
        _row("  by its processor time", head.size / busy)


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
