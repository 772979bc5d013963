"""What the record of asks costs admission, and how long a million recorded asks take to be decided again.

Run with ``make bench`` or ``python benchmarks/simulate.py [asks] [seconds per round]``, on a machine that does nothing
else. Rounds with and without the record take turns in one run, without HTTP in between: the cost is the ratio.
"""

import asyncio
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import psycopg
import uvloop
from psycopg.types.json import Jsonb

from jobengine.bootstrap import Plane, open_plane
from jobengine.quota.admission import WHOLE_TENANT, Account, Ask
from jobengine.quota.model import Limits
from jobengine.settings import Settings
from jobengine.storage.admission import Lease
from jobengine.storage.admission_group import Acquire, Release
from jobengine.storage.asks import NO_ROW, AskLog, read_extent
from jobengine.storage.authority import add_tenant
from jobengine.storage.simulator import Simulator

ROOMY = Limits(10**9, 10**9, 10**9, Decimal(10**6))
CALLERS = (1, 32)
ROUNDS = 9
# One transaction of the recorded history: so many leases end, so many are asked for.
GROUP = 20
HELD = 400
# What a transaction stores beside the record: no account, no lease, no hour.
NOTHING_ELSE = dict.fromkeys(
    (
        "account", "fencing", "active", "active_backfill", "granted_hour", "bucket_pico", "bucket_at", "lease_id",
        "job_type", "quota_id", "kind", "slots", "job_id", "fencing_token", "lease_seconds", "client_id",
        "hour_account", "hour_granted",
    ),
    "{}",
)  # fmt: skip
LIMITLESS = "update jobengine.policy set document = jsonb_set(document, '{default_limits}', %s)"
SIZE = """select pg_size_pretty(sum(pg_total_relation_size(inhrelid))) from pg_inherits
    where inhparent = 'jobengine.asks'::regclass"""


def main() -> None:
    """Print the table."""
    asks = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the first row")
    uvloop.run(_run(asks, seconds))


async def _run(asks: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with open_plane(Settings(data_dir=Path(folder))) as plane:
            async with plane.database.system() as tx:
                for tenant in ("busy", "past"):
                    await add_tenant(tx, tenant)
            async with await psycopg.AsyncConnection.connect(plane.simulator.login) as connection:
                await connection.execute(LIMITLESS, (Jsonb(ROOMY.as_json()),))
            for callers in CALLERS:
                await _cost(plane, callers, seconds)
            await _replays(plane, asks)


async def _cost(plane: Plane, callers: int, seconds: float) -> None:
    """Print what the record costs, and how far apart two measurements of the same thing lie."""
    recorded = AskLog.columns
    costs: list[float] = []
    noise: list[float] = []
    rates: list[float] = []
    await _pairs(plane, callers, seconds)
    for turn in range(ROUNDS):
        # Twice with and twice without, now this one first and now that one: what drifts, drifts for both.
        found: dict[bool, list[float]] = {True: [], False: []}
        for kept in (True, False, False, True) if turn % 2 else (False, True, True, False):
            AskLog.columns = recorded if kept else _forgotten  # type: ignore[method-assign]
            found[kept].append(await _pairs(plane, callers, seconds))
        AskLog.columns = recorded  # type: ignore[method-assign]
        rates += found[True]
        costs.append(1 - sum(found[True]) / sum(found[False]))
        noise += [1 - min(same) / max(same) for same in found.values()]
    low, _, high = quantiles(costs, n=4)
    print(f"pairs a second with the record, {callers:>2} callers {median(rates):>8.0f}")
    print(
        f"  the record costs {median(costs):.1%}: median of {ROUNDS} rounds, half of them from {low:.1%} to {high:.1%}"
    )
    print(f"  two measurements of the same differ by {median(noise):.1%} (median): less than that cannot be told apart")


def _forgotten(_log: AskLog, _accounts: Mapping[str, Account]) -> Mapping[str, object]:
    return NO_ROW


async def _pairs(plane: Plane, callers: int, seconds: float) -> float:
    done, until = 0, perf_counter() + seconds

    async def call() -> None:
        nonlocal done
        while perf_counter() < until:
            lease = await plane.committer.carry_out("busy", Acquire(Ask("scan"), "benchmark"))
            if isinstance(lease, Lease):
                await plane.committer.carry_out("busy", Release(lease.lease_id, lease.fencing_token))
            done += 1
            await asyncio.sleep(0.02 if not isinstance(lease, Lease) else 0)

    started = perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    return done / (perf_counter() - started)


async def _replays(plane: Plane, asks: int) -> None:
    first = await _remember(plane, asks)
    async with plane.database.transaction("past") as tx:
        extent = await read_extent(tx, first, timedelta(days=30))
        size = await _size(plane)
    print(f"record of {extent.asked} asks and as many ends, {GROUP} a transaction: {size}")
    simulator = Simulator(plane.simulator.login, seconds=300)
    for most in (HELD * 2, HELD // 2):
        shown = await _timed(lambda most=most: simulator.replay("past", "scan", _tried(most), extent))
        print(f"replay with max_active {most}: {shown}")


def _tried(most: int) -> Limits:
    return ROOMY.changed({"max_active": most})


async def _timed(call: Callable[[], Awaitable[Mapping[str, Any]]]) -> str:
    started, before = perf_counter(), getrusage(RUSAGE_CHILDREN)
    found = await call()
    seconds, after = perf_counter() - started, getrusage(RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return f"{seconds:.2f} s, {busy:.2f} s of a core; would deny {found['would_deny']} of {found['asks']}"


async def _remember(plane: Plane, asks: int) -> datetime:
    async with plane.database.transaction("past") as tx:
        at = tx.now - timedelta(hours=20)
    first, open_leases, token = at, list[int](), 0
    accounts = {name: Account(name, "quota" if name else None, ROOMY) for name in (WHOLE_TENANT, "scan")}
    rows: list[Mapping[str, object]] = []
    for _ in range(asks // GROUP):
        at += timedelta(milliseconds=50)
        log = AskLog(at, Decimal("0.5"), accounts)
        if len(open_leases) >= HELD:
            for ended in open_leases[:GROUP]:
                log.ended({"kind": "live", "expires_at": at + timedelta(1), "job_type": "scan", "slots": 1,
                           "fencing_token": ended})  # fmt: skip
            del open_leases[:GROUP]
        for _ in range(GROUP):
            token += 1
            log.asked(Ask("scan"), token)
            open_leases.append(token)
        rows.append({**NOTHING_ELSE, **log.columns(accounts), "now": at})
        if len(rows) >= 5_000:
            await _write(plane, rows)
    await _write(plane, rows)
    return first


async def _write(plane: Plane, rows: list[Mapping[str, object]]) -> None:
    async with plane.database.transaction("past") as tx:
        await tx.together(*(("admission_store", row) for row in rows))
    rows.clear()


async def _size(plane: Plane) -> str:
    async with await psycopg.AsyncConnection.connect(plane.simulator.login) as connection:
        row = await (await connection.execute(SIZE)).fetchone()
    return str(row[0]) if row else "-"


if __name__ == "__main__":
    main()
