"""Backfills: rows ↔ values, and the moves that touch their batches."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jobengine.audit.actions import Action, Outcome
from jobengine.audit.model import Actor, AuditEntry, Resource
from jobengine.backfill.model import (
    BackfillRequest,
    BackfillStatus,
    BatchStatus,
    Counts,
    Move,
    Order,
    Reprocess,
    StopRules,
)
from jobengine.backfill.planner import Coverage, Ended, Plan, PlanRange, latest_failed, take
from jobengine.backfill.ports import JobKind, Key
from jobengine.backfill.suppressor import Earlier
from jobengine.backfill.window import EventTimeWindow, Partition
from jobengine.errors import NotFound
from jobengine.ids import new_id
from jobengine.storage.audit import PostgresAudit
from jobengine.storage.database import Transaction

# How many batches of a backfill have an id before a worker asks for them.
READY_AHEAD = 64
SERVICE = Actor("system", "jobengine")


@dataclass(frozen=True, slots=True)
class PostgresBackfills:
    """The BackfillRepository of one tenant's transaction."""

    tx: Transaction

    async def lock_key(self, key: Key) -> None:
        """Let one request under *key* decide at a time."""
        await self.tx.run("suppression_lock", **_key(key))

    async def earlier(self, key: Key, window: EventTimeWindow) -> Sequence[Earlier]:
        """Return the backfills under *key* that overlap *window* and could suppress a request."""
        rows = await self.tx.all("backfill_earlier", **_key(key), window_start=window.start, window_end=window.end)
        return [
            Earlier(str(row["backfill_id"]), BackfillStatus(row["status"]), _window(row), row["created_at"])
            for row in rows
        ]

    async def coverage(self, key: Key, window: EventTimeWindow, reprocess: Reprocess) -> Coverage:
        """Return what earlier batches under *key* left within *window*, as far as *reprocess* asks for it."""
        where = {**_key(key), "window_start": window.start, "window_end": window.end}
        match reprocess:
            case Reprocess.ALL:
                return Coverage()
            case Reprocess.MISSING:
                rows = await self.tx.all("backfill_succeeded", **where)
                return Coverage(succeeded=tuple(_window(row) for row in rows))
            case Reprocess.FAILED:
                rows = await self.tx.all("backfill_ended", **where)
                ended = (Ended(_window(row), row["finished_at"], row["status"] == "succeeded") for row in rows)
                return Coverage(failed=tuple(latest_failed(ended)))

    async def add(self, request: BackfillRequest, plan: Plan, job: JobKind, trace_id: str) -> None:
        """Store a new backfill and its plan; its first batches are ready when the transaction commits."""
        await self.tx.run("backfill_add", **_columns(request, plan, job, trace_id))
        await _add_ranges(self.tx, request.backfill_id, plan.ranges)
        await refill(self.tx, request.backfill_id)
        await settle(self.tx, request.backfill_id)

    async def lock(self, backfill_id: str) -> BackfillRequest:
        """Return the backfill and keep others from moving it; raises NotFound."""
        return request_of(await lock_row(self.tx, backfill_id))

    async def move(self, backfill_id: str, move: Move) -> Counts:
        """Carry out an allowed move of a locked backfill on its batches and return what is left."""
        row = await lock_row(self.tx, backfill_id)
        row["status"] = request_of(row).after(move).status.value
        match move:
            case Move.CANCEL:
                await self._cancel(row)
            case Move.RETRY_FAILED:
                await self._retry(row)
            case Move.PAUSE | Move.RESUME:
                pass
        await save(self.tx, row)
        return await settle(self.tx, backfill_id)

    async def _cancel(self, row: dict[str, Any]) -> None:
        row["cancel_requested_at"] = self.tx.now
        await cancel_open(self.tx, row)

    async def _retry(self, row: dict[str, Any]) -> None:
        where = {"backfill_id": row["backfill_id"]}
        # What a stop rule canceled never ran; without it the backfill could never complete.
        row["canceled"] -= await self.tx.run("backfill_revive_batches", **where)
        revived = (await self.tx.one("backfill_revive_ranges", **where))["partitions"]
        row |= {"canceled": row["canceled"] - revived, "untouched": row["untouched"] + revived}
        parked = await self.tx.one("backfill_park_failed", **where, sign=_sign(row), but=READY_AHEAD)
        ready = await self.tx.run("backfill_retry_failed", **where)
        row["failed"] -= parked["partitions"] + ready
        row["untouched"] += parked["partitions"]
        row |= {"finished_at": None, "stop_reason": None, "blocked_by": None}


async def lock_row(tx: Transaction, backfill_id: str) -> dict[str, Any]:
    """Return the locked row of a backfill; raises NotFound."""
    row = await tx.find("backfill_lock", backfill_id=backfill_id)
    if row is None:
        raise NotFound("there is no such backfill")
    return row


async def save(tx: Transaction, row: Mapping[str, Any]) -> None:
    """Store where a locked backfill stands."""
    await tx.run("backfill_save", **{name: row[name] for name in row if name != "tenant_id"})


async def lock_counted(tx: Transaction, backfill_id: str) -> dict[str, Any]:
    """Return the locked row of a backfill and how many of its batches wait and run; raises NotFound."""
    where = {"backfill_id": backfill_id}
    # One round trip; the batches are counted once the lock is held.
    rows, [counted] = await tx.together(("backfill_lock", where), ("backfill_open", where))
    if not rows:
        raise NotFound("there is no such backfill")
    return rows[0] | counted


async def refill(tx: Transaction, backfill_id: str) -> int:
    """Make partitions of a backfill ready, so that READY_AHEAD batches wait for a worker; return how many it made."""
    row = await lock_counted(tx, backfill_id)
    if row["status"] not in {"pending", "running", "paused"} or not row["untouched"]:
        return 0
    # Half empty before it is filled again: many batches in one step.
    if row["pending"] > READY_AHEAD // 2:
        return 0
    indices = await _take(tx, row, READY_AHEAD - row["pending"])
    request = request_of(row)
    windows = [request.partition.window_of(request.window, index) for index in indices]
    await tx.run(
        "batch_add",
        backfill_id=backfill_id,
        job_type=row["job_type"],
        batch_ids=[new_id() for _ in indices],
        indices=indices,
        starts=[window.start for window in windows],
        ends=[window.end for window in windows],
    )
    row["untouched"] -= len(indices)
    await save(tx, row)
    return len(indices)


async def _take(tx: Transaction, row: Mapping[str, Any], most: int) -> list[int]:
    backfill_id, order = row["backfill_id"], Order(row["run_order"])
    # A stretch holds a partition or more: no more stretches than partitions are needed, however many there are.
    if order is Order.FORWARD:
        rows = await tx.all("backfill_first_ranges", backfill_id=backfill_id, most=most)
    else:
        rows = await tx.all("backfill_last_ranges", backfill_id=backfill_id, most=most, total=row["total"])
    if not rows:
        rows = await tx.all("backfill_retried_ranges", backfill_id=backfill_id, most=most, sign=_sign(row))
    ranges = sorted((_range(piece) for piece in rows), key=lambda piece: piece.first_index)
    indices, left = take(ranges, order, most)
    await tx.run("backfill_drop_ranges", backfill_id=backfill_id, firsts=[piece.first_index for piece in ranges])
    await _add_ranges(tx, backfill_id, left)
    return indices


def _sign(row: Mapping[str, Any]) -> int:
    return 1 if Order(row["run_order"]) is Order.FORWARD else -1


async def _add_ranges(tx: Transaction, backfill_id: object, ranges: Sequence[PlanRange]) -> None:
    if ranges:
        await tx.run(
            "backfill_add_ranges",
            backfill_id=backfill_id,
            firsts=[piece.first_index for piece in ranges],
            lasts=[piece.last_index for piece in ranges],
            statuses=[piece.status.value for piece in ranges],
        )


async def cancel_open(tx: Transaction, row: dict[str, Any]) -> None:
    """Cancel everything of a locked backfill that does not run; the caller saves *row*."""
    backfill_id = str(row["backfill_id"])
    await tx.run("backfill_cancel_untouched", backfill_id=backfill_id)
    ended = await tx.run("backfill_cancel_pending", backfill_id=backfill_id, now=tx.now)
    row["canceled"] += row["untouched"] + ended
    row["untouched"] = 0


async def settle(tx: Transaction, backfill_id: str) -> Counts:
    """End a backfill whose batches have all ended, with a receipt in the log; return its counts."""
    row = await lock_counted(tx, backfill_id)
    counts = counts_of(row)
    if row["status"] == "canceling" and not counts.running:
        await save(tx, row | {"status": "canceled", "finished_at": tx.now})
    elif row["status"] in ("pending", "running"):
        if StopRules(max_failures=row["max_failures"], max_failure_rate=row["max_failure_rate"]).tripped(counts):
            counts = await _stop(tx, row, counts)
        if verdict := counts.verdict():
            await _finish(tx, row, counts, verdict)
    return counts


async def _stop(tx: Transaction, row: dict[str, Any], counts: Counts) -> Counts:
    if not row["stop_reason"]:
        row["stop_reason"] = f"{counts.failed} of {counts.total} batches failed"
    await cancel_open(tx, row)
    await save(tx, row)
    return counts_of(row | await tx.one("backfill_open", backfill_id=row["backfill_id"]))


async def _finish(tx: Transaction, row: dict[str, Any], counts: Counts, verdict: BackfillStatus) -> None:
    ended = {"status": verdict.value, "started_at": row["started_at"] or tx.now, "finished_at": tx.now}
    await save(tx, row | ended)
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


async def read_backfills(
    tx: Transaction,
    *,
    backfill_id: str | None = None,
    status: str | None = None,
    job_type: str | None = None,
    source: str | None = None,
    after: str | None = None,
    most: int = 1,
) -> list[dict[str, Any]]:
    """Return rows of backfills with the words of their requests, oldest first, after a cursor."""
    return list(
        await tx.all(
            "backfill_list",
            backfill_id=backfill_id,
            status=status,
            job_type=job_type,
            source=source,
            after=after,
            most=most,
        )
    )


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


def request_of(row: Mapping[str, Any]) -> BackfillRequest:
    """Read a backfill's row."""
    return BackfillRequest(
        backfill_id=str(row["backfill_id"]),
        tenant_id=row["tenant_id"],
        job_type=row["job_type"],
        source=row["source"],
        window=_window(row),
        params=row["params"].encode(),
        params_digest=bytes(row["params_digest"]),
        partition=Partition(row["partition"]),
        order=Order(row["run_order"]),
        reprocess=Reprocess(row["reprocess"]),
        max_active=row["max_active"],
        stop_rules=StopRules(max_failures=row["max_failures"], max_failure_rate=row["max_failure_rate"]),
        status=BackfillStatus(row["status"]),
        requested_by=row["requested_by"],
        token_id=row["token_id"],
        audit_entry_id=str(row["entry_id"]),
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
    )


def params_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Read the parameters of a backfill's row."""
    return json.loads(row["params"])


def running_for(row: Mapping[str, Any]) -> tuple[datetime | None, datetime]:
    """Return from when to when a backfill ran, up to the row's ``now``."""
    return row["started_at"], row["finished_at"] or row["now"]


def _window(row: Mapping[str, Any]) -> EventTimeWindow:
    return EventTimeWindow(row["window_start"], row["window_end"])


def _range(row: Mapping[str, Any]) -> PlanRange:
    return PlanRange(row["first_index"], row["last_index"], BatchStatus(row["status"]))


def _key(key: Key) -> dict[str, Any]:
    return {"job_type": key.job_type, "source": key.source, "params_digest": key.params_digest}


def _columns(request: BackfillRequest, plan: Plan, job: JobKind, trace_id: str) -> dict[str, Any]:
    return {
        "backfill_id": request.backfill_id,
        "job_type": request.job_type,
        "source": request.source,
        "params_digest": request.params_digest,
        "params": request.params.decode(),
        "window_start": request.window.start,
        "window_end": request.window.end,
        "partition": request.partition.text,
        "run_order": request.order.value,
        "reprocess": request.reprocess.value,
        "max_active": request.max_active,
        "max_failures": request.stop_rules.max_failures,
        "max_failure_rate": request.stop_rules.max_failure_rate,
        "handler_kind": "external" if job.external else "embedded",
        "handler_version": job.handler,
        "lease_seconds": job.lease_seconds,
        "max_attempts": job.max_attempts,
        "total": plan.total,
        "untouched": plan.pending,
        "skipped": plan.total - plan.pending,
        "requested_by": request.requested_by,
        "token_id": request.token_id,
        "entry_id": request.audit_entry_id,
        "trace_id": trace_id,
        "created_at": request.created_at,
    }
