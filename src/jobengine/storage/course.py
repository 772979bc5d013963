"""The course of backfills: their locked rows, the batches made ready ahead of the workers, and how they end."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from jobengine.audit.actions import Action, Outcome
from jobengine.audit.model import Actor, AuditEntry, Resource
from jobengine.backfill.model import BackfillStatus, BatchStatus, Counts, Order, StopRules
from jobengine.backfill.planner import PlanRange, take
from jobengine.backfill.window import EventTimeWindow, Partition
from jobengine.errors import NotFound
from jobengine.ids import new_id
from jobengine.storage.audit import PostgresAudit
from jobengine.storage.database import Transaction

# How many batches of a backfill have an id before a worker asks for them.
READY_AHEAD = 64
SERVICE = Actor("system", "jobengine")

Row = dict[str, Any]

# What changes of a backfill after it was made.
_COURSE = (
    "backfill_id", "status", "stop_reason", "untouched", "succeeded", "failed", "canceled",
    "events_processed", "events_duplicates", "events_failed",
    "started_at", "dispatched_at", "blocked_by", "cancel_requested_at", "finished_at",
)  # fmt: skip


async def lock_rows(tx: Transaction, backfill_ids: Collection[str]) -> dict[str, Row]:
    """Return the locked rows of backfills by their ids."""
    rows = await tx.all("backfill_lock_many", backfill_ids=sorted(backfill_ids)) if backfill_ids else []
    return {str(row["backfill_id"]): row for row in rows}


async def lock_row(tx: Transaction, backfill_id: str) -> Row:
    """Return the locked row of a backfill; raises NotFound."""
    rows = await lock_rows(tx, [backfill_id])
    if backfill_id not in rows:
        raise NotFound("there is no such backfill")
    return rows[backfill_id]


async def go_on(tx: Transaction, rows: Collection[Row]) -> None:
    """Make batches of locked backfills ready, end those whose batches have all ended, and store where they stand."""
    if not rows:
        return
    await _count_open(tx, rows)
    for row in rows:
        await _fill(tx, row)
        await _settle(tx, row)
    await tx.run("backfill_save", **{name: [row[name] for row in rows] for name in _COURSE})


async def refill(tx: Transaction, rows: Collection[Row]) -> int:
    """Make batches of locked backfills ready, so that up to READY_AHEAD of each wait; return how many it made."""
    if not rows:
        return 0
    await _count_open(tx, rows)
    return sum([await _fill(tx, row) for row in rows])


async def _count_open(tx: Transaction, rows: Iterable[Row]) -> None:
    found = await tx.all("backfill_open", backfill_ids=[row["backfill_id"] for row in rows])
    counted = {row["backfill_id"]: row for row in found}
    for row in rows:
        opened = counted.get(row["backfill_id"], {"pending": 0, "running": 0})
        row |= {"pending": opened["pending"], "running": opened["running"]}


async def _fill(tx: Transaction, row: Row) -> int:
    # Half empty before it is filled again: many batches in one step.
    if (
        row["status"] not in {"pending", "running", "paused"}
        or not row["untouched"]
        or row["pending"] > READY_AHEAD // 2
    ):
        return 0
    indices = await _take(tx, row, READY_AHEAD - row["pending"])
    window, partition = window_of(row), Partition(row["partition"])
    windows = [partition.window_of(window, index) for index in indices]
    await tx.run(
        "batch_add",
        backfill_id=row["backfill_id"],
        job_type=row["job_type"],
        batch_ids=[new_id() for _ in indices],
        indices=indices,
        starts=[window.start for window in windows],
        ends=[window.end for window in windows],
    )
    row["untouched"] -= len(indices)
    row["pending"] += len(indices)
    return len(indices)


async def _take(tx: Transaction, row: Row, most: int) -> list[int]:
    backfill_id, order = row["backfill_id"], Order(row["run_order"])
    # A stretch holds a partition or more: no more stretches than partitions are needed, however many there are.
    query = "backfill_first_ranges" if order is Order.FORWARD else "backfill_last_ranges"
    rows = await tx.all(query, backfill_id=backfill_id, most=most)
    ranges = sorted((_range(piece) for piece in rows), key=lambda piece: piece.first_index)
    indices, left = take(ranges, order, most)
    await tx.run("backfill_drop_ranges", backfill_id=backfill_id, firsts=[piece.first_index for piece in ranges])
    await add_ranges(tx, backfill_id, left)
    return indices


async def add_ranges(tx: Transaction, backfill_id: object, ranges: Sequence[PlanRange]) -> None:
    """Store stretches that no batch stands for."""
    if ranges:
        await tx.run(
            "backfill_add_ranges",
            backfill_id=backfill_id,
            firsts=[piece.first_index for piece in ranges],
            lasts=[piece.last_index for piece in ranges],
            statuses=[piece.status.value for piece in ranges],
        )


async def cancel_open(tx: Transaction, row: Row) -> None:
    """Cancel everything of a locked backfill that does not run."""
    backfill_id = str(row["backfill_id"])
    await tx.run("backfill_cancel_untouched", backfill_id=backfill_id)
    ended = (await tx.one("backfill_cancel_pending", backfill_id=backfill_id, now=tx.now))["ended"]
    row |= {"canceled": row["canceled"] + row["untouched"] + ended, "untouched": 0, "pending": 0}


async def _settle(tx: Transaction, row: Row) -> None:
    """End a backfill whose batches have all ended, with a receipt in the log."""
    if row["status"] == "canceling" and not row["running"]:
        row |= {"status": "canceled", "finished_at": tx.now}
    elif row["status"] in ("pending", "running"):
        counts = counts_of(row)
        if StopRules(max_failures=row["max_failures"], max_failure_rate=row["max_failure_rate"]).tripped(counts):
            row["stop_reason"] = row["stop_reason"] or f"{counts.failed} of {counts.total} batches failed"
            await cancel_open(tx, row)
            counts = counts_of(row)
        if verdict := counts.verdict():
            await _finish(tx, row, counts, verdict)


async def _finish(tx: Transaction, row: Row, counts: Counts, verdict: BackfillStatus) -> None:
    row |= {"status": verdict.value, "started_at": row["started_at"] or tx.now, "finished_at": tx.now}
    done = verdict is BackfillStatus.COMPLETED
    batches = {name: getattr(counts, name) for name in ("total", "succeeded", "failed", "skipped", "canceled")}
    events = {name: row[f"events_{name}"] for name in ("processed", "duplicates", "failed")}
    entry = AuditEntry(
        entry_id=new_id(),
        tenant_id=tx.tenant_id,
        occurred_at=tx.now,
        action=Action.BACKFILL_COMPLETED if done else Action.BACKFILL_FAILED,
        actor=SERVICE,
        outcome=Outcome.SUCCESS if done else Outcome.FAILURE,
        resource=Resource("backfill", str(row["backfill_id"])),
        after={"status": verdict.value, "batches": batches, "events": events, "stop_reason": row["stop_reason"]},
        trace_id=row["trace_id"],
    )
    await PostgresAudit(tx).record(entry)


def counts_of(row: Mapping[str, Any]) -> Counts:
    """Return the counts of a backfill from its row and its open batches."""
    return Counts(
        total=row["total"],
        pending=row["untouched"] + row["pending"],
        running=row["running"],
        succeeded=row["succeeded"],
        failed=row["failed"],
        skipped=row["skipped"],
        canceled=row["canceled"],
    )


def window_of(row: Mapping[str, Any]) -> EventTimeWindow:
    """Read the window of a row."""
    return EventTimeWindow(row["window_start"], row["window_end"])


def _range(row: Mapping[str, Any]) -> PlanRange:
    return PlanRange(row["first_index"], row["last_index"], BatchStatus(row["status"]))
