"""How much goes on in the whole database, for whoever watches it: a few counts, each read from an index."""

from collections.abc import Mapping
from dataclasses import dataclass

from jobengine.storage.database import Database


@dataclass(frozen=True, slots=True)
class Work:
    """What goes on now; *lag_seconds* is for how long the log that waits longest has stood still."""

    backfills: Mapping[str, int]
    running_batches: int
    lag_seconds: float
    waiting_entries: int
    orphan_shards: int
    stuck_logs: int


async def read_work(database: Database) -> Work:
    """Return what goes on now; raises Unavailable."""
    async with database.system() as tx:
        counted = await tx.all("system_count_backfills")
        running = await tx.one("system_count_running_batches")
        lag = await tx.one("system_sequencer_lag")
        waiting = await tx.one("system_count_waiting")
        orphans = await tx.one("system_orphan_shards")
    return Work(
        backfills={row["status"]: row["backfills"] for row in counted},
        running_batches=running["running"],
        lag_seconds=lag["seconds"],
        waiting_entries=waiting["waiting"],
        orphan_shards=orphans["orphans"],
        stuck_logs=waiting["stuck"],
    )
