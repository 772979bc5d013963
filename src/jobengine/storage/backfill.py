"""Backfills: rows ↔ values, and the moves that touch their batches."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jobengine.backfill.model import BackfillRequest, BackfillStatus, BatchStatus, Move, Order, Reprocess, StopRules
from jobengine.backfill.planner import Coverage, Ended, Plan, latest_failed
from jobengine.backfill.ports import JobKind, Key
from jobengine.backfill.suppressor import Earlier
from jobengine.backfill.window import EventTimeWindow, Partition
from jobengine.storage.course import Row, add_ranges, cancel_open, go_on, lock_row, window_of
from jobengine.storage.database import Transaction


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
            Earlier(str(row["backfill_id"]), BackfillStatus(row["status"]), window_of(row), row["created_at"])
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
                return Coverage(succeeded=tuple(window_of(row) for row in rows))
            case Reprocess.FAILED:
                rows = await self.tx.all("backfill_ended", **where)
                ended = (Ended(window_of(row), row["finished_at"], row["status"] == "succeeded") for row in rows)
                return Coverage(failed=tuple(latest_failed(ended)))

    async def add(self, request: BackfillRequest, plan: Plan, job: JobKind, trace_id: str) -> None:
        """Store a new backfill and its plan; its first batches are ready when the transaction commits."""
        await self.tx.run("backfill_add", **_columns(request, plan, job, trace_id))
        # What is neither a batch nor a stretch is skipped: around many islands that is half of the plan.
        await add_ranges(
            self.tx, request.backfill_id, [piece for piece in plan.ranges if piece.status is BatchStatus.PENDING]
        )
        await go_on(self.tx, [await lock_row(self.tx, request.backfill_id)])

    async def lock(self, backfill_id: str) -> BackfillRequest:
        """Return the backfill and keep others from moving it; raises NotFound."""
        return request_of(await lock_row(self.tx, backfill_id))

    async def move(self, backfill_id: str, move: Move) -> None:
        """Carry out an allowed move of a locked backfill on its batches."""
        row = await lock_row(self.tx, backfill_id)
        row["status"] = request_of(row).after(move).status.value
        match move:
            case Move.CANCEL:
                row["cancel_requested_at"] = self.tx.now
                await cancel_open(self.tx, row)
            case Move.RETRY_FAILED:
                await self._retry(row)
            case Move.PAUSE | Move.RESUME:
                pass
        await go_on(self.tx, [row])

    async def _retry(self, row: Row) -> None:
        where = {"backfill_id": row["backfill_id"]}
        # What a stop rule canceled never ran; without it the backfill could never complete. All of it becomes stretches
        # again, however many batches they are, from which the first few are made ready in their order.
        revived = (await self.tx.one("backfill_revive_ranges", **where))["partitions"]
        parked = await self.tx.one("backfill_park", **where)
        row |= {
            "canceled": row["canceled"] - revived - parked["canceled"],
            "failed": row["failed"] - parked["failed"],
            "untouched": row["untouched"] + revived + parked["canceled"] + parked["failed"],
            "finished_at": None,
            "stop_reason": None,
            "blocked_by": None,
        }


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


async def read_batches(tx: Transaction, backfill: Mapping[str, Any], *, after: int, most: int) -> list[dict[str, Any]]:
    """Return batches and stretches of a backfill behind an index, in their order; every partition is in one of them."""
    rows = await tx.all("batch_list", backfill_id=backfill["backfill_id"], after=after, most=most)
    found: list[dict[str, Any]] = []
    at = after + 1
    for row in rows:
        if row["first_index"] > at:
            found.append(_skipped(at, row["first_index"] - 1))
        found.append(row)
        at = row["last_index"] + 1
    if len(rows) < most and at < backfill["total"]:
        found.append(_skipped(at, backfill["total"] - 1))
    return found[:most]


def _skipped(first: int, last: int) -> dict[str, Any]:
    nobody = {"batch_id": None, "attempts": 0, "error": None, "not_before": None}
    return {"first_index": first, "last_index": last, "status": "skipped", **nobody}


def request_of(row: Mapping[str, Any]) -> BackfillRequest:
    """Read a backfill's row."""
    return BackfillRequest(
        backfill_id=str(row["backfill_id"]),
        tenant_id=row["tenant_id"],
        job_type=row["job_type"],
        source=row["source"],
        window=window_of(row),
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
