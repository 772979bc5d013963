"""Batches at work: handed out under a lease, kept alive, ended; every step under the tenant's lock.

Locks are taken in one order: the tenant's, then backfills, then batches. Whoever moves a backfill takes its row alone.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

from psycopg.types.json import Jsonb

from jobengine.backfill.attempts import Beat, Checkpoint, ClaimedBatch, Events
from jobengine.backfill.dispatcher import Cause, Ending, after_failure
from jobengine.backfill.model import BackfillStatus, BatchStatus
from jobengine.backfill.reports import error_text
from jobengine.backfill.window import EventTimeWindow
from jobengine.errors import LeaseLost, NotFound
from jobengine.metrics import BATCH_ATTEMPTS, note_completed
from jobengine.quota.admission import Ask, Denied
from jobengine.storage.admission import AdmissionDesk, Lease, open_desk
from jobengine.storage.backfill import lock_row, params_of, refill, save, settle
from jobengine.storage.database import Transaction

HandlerKind = Literal["embedded", "external"]

# A sweep is one transaction under the tenant's lock; the next one takes what is left.
MOST_SWEPT = 100


async def claim(
    tx: Transaction, kind: HandlerKind, job_types: Sequence[str], most: int, client_id: str
) -> list[ClaimedBatch]:
    """Hand out up to *most* batches; each runs under an admission of kind ``backfill``, or it does not run."""
    await sweep(tx)
    due = await tx.all("batch_due_types", handler_kind=kind, job_types=list(job_types))
    wanted = sorted(row["job_type"] for row in due)
    if not wanted:
        return []
    desk = await open_desk(tx, wanted)
    claimed: list[ClaimedBatch] = []
    while wanted and len(claimed) < most:
        candidate = await tx.find("batch_candidates", job_types=wanted, handler_kind=kind, now=desk.now)
        if candidate is None:
            if await _make_ready(tx, claimed):
                continue
            break
        row = await lock_row(tx, str(candidate["backfill_id"]))
        if row["status"] not in ("pending", "running"):
            continue  # paused or canceled since the look: the next look sees that
        ask = Ask(candidate["job_type"], 1, candidate["lease_seconds"], "backfill")
        [answer] = await desk.ask([ask], client_id, counted=False)
        if isinstance(answer, Lease):
            batch = await _hand_out(tx, candidate["batch_id"], row, lease=answer, client_id=client_id, now=desk.now)
            claimed.append(batch)
        else:
            wanted.remove(candidate["job_type"])
            await _note_blocked(tx, row, answer)
    if claimed:
        await _make_ready(tx, claimed)
        await desk.write()
    return claimed


async def _make_ready(tx: Transaction, claimed: Sequence[ClaimedBatch]) -> int:
    return sum([await refill(tx, backfill_id) for backfill_id in {batch.backfill_id for batch in claimed}])


async def sweep(tx: Transaction) -> int:
    """Take back batches whose lease is over, and those a cancel has waited for long enough; return how many."""
    suspects = await tx.all("batch_overdue", now=tx.now, most=MOST_SWEPT)
    if not suspects:
        return 0
    job_types = {batch["job_type"] for batch in suspects}
    desk = await open_desk(tx, job_types)
    # Once more, now that nobody can change them: a suspect may have been renewed or completed meanwhile.
    found = await tx.all("batch_overdue", now=desk.now, most=MOST_SWEPT)
    overdue = [batch for batch in found if batch["job_type"] in job_types]
    for batch in overdue:
        await _give_up(tx, desk, batch, Cause.LEASE_LOST, "the lease was lost")
    await desk.write()
    return len(overdue)


async def heartbeat(
    tx: Transaction, batch_id: str, fencing_token: int, checkpoint: Checkpoint | None, events: Events | None
) -> Beat:
    """Keep the batch for another lease; a *checkpoint* makes everything claimed so far final. Raises LeaseLost."""
    desk = await open_desk(tx, ())
    batch = await _held(tx, desk, batch_id, fencing_token)
    backfill = await lock_row(tx, str(batch["backfill_id"]))
    lease_seconds = backfill["lease_seconds"]
    expires_at = desk.now + timedelta(seconds=lease_seconds)
    await tx.one("lease_extend", lease_id=batch["lease_id"], expires_at=expires_at, lease_seconds=lease_seconds)
    await tx.run(
        "batch_beat",
        batch_id=batch_id,
        lease_expires_at=expires_at,
        has_checkpoint=checkpoint is not None,
        checkpoint=Jsonb(checkpoint.value) if checkpoint else None,
        **_reported(batch, events),
    )
    if checkpoint is not None:
        await tx.run("attempt_checkpoint", batch_id=batch_id, fencing_token=fencing_token)
    await desk.write()
    return Beat(expires_at, backfill["status"] == "canceling")


async def complete(tx: Transaction, batch_id: str, fencing_token: int, events: Events | None) -> None:
    """End the batch well; its claims are final. Saying so again is fine. Raises LeaseLost."""
    batch = await _get(tx, batch_id)
    desk = await open_desk(tx, [batch["job_type"]])
    attempt = await tx.find("attempt_find", batch_id=batch_id, fencing_token=fencing_token)
    if attempt is not None and attempt["state"] == "completed":
        return
    batch = await _held(tx, desk, batch_id, fencing_token)
    row = await lock_row(tx, str(batch["backfill_id"]))
    reported = _reported(batch, events)
    done = Ending(BatchStatus.SUCCEEDED, desk.now, batch["attempts"])
    await _end(tx, desk, batch, state="completed", ending=done, error=None, events=reported)
    row["succeeded"] += 1
    for name, count in reported.items():
        row[name] += count
    await save(tx, row)
    await _go_on(tx, str(batch["backfill_id"]))
    await desk.write()
    tx.when_committed(lambda: note_completed(*reported.values()))


async def fail(tx: Transaction, batch_id: str, fencing_token: int, error: str, *, retryable: bool) -> None:
    """End the attempt badly; its claims are free again. Raises LeaseLost."""
    await _stop_short(tx, batch_id, fencing_token, Cause.FAILED if retryable else Cause.HOPELESS, error_text(error))


async def give_back(tx: Transaction, batch_id: str, fencing_token: int) -> None:
    """End the attempt of a worker that leaves: claimable again at once, and not counted. Raises LeaseLost."""
    await _stop_short(tx, batch_id, fencing_token, Cause.GIVEN_BACK, "the worker stopped")


async def _stop_short(tx: Transaction, batch_id: str, fencing_token: int, cause: Cause, error: str) -> None:
    batch = await _get(tx, batch_id)
    desk = await open_desk(tx, [batch["job_type"]])
    batch = await _held(tx, desk, batch_id, fencing_token)
    await _give_up(tx, desk, batch, cause, error)
    await desk.write()


async def _give_up(tx: Transaction, desk: AdmissionDesk, batch: Mapping[str, Any], cause: Cause, error: str) -> None:
    row = await lock_row(tx, str(batch["backfill_id"]))
    ending = after_failure(
        cause,
        attempts=batch["attempts"],
        max_attempts=row["max_attempts"],
        backfill=BackfillStatus(row["status"]),
        stopped=row["stop_reason"] is not None,
        now=desk.now,
    )
    await _end(tx, desk, batch, state="lost", ending=ending, error=error, events=_NO_EVENTS)
    tx.when_committed(BATCH_ATTEMPTS.labels(ending.status.value, cause.value).inc)
    if ending.status is not BatchStatus.PENDING:
        row[ending.status.value] += 1
        await save(tx, row)
        await _go_on(tx, str(batch["backfill_id"]))


async def _end(
    tx: Transaction,
    desk: AdmissionDesk,
    batch: Mapping[str, Any],
    *,
    state: Literal["completed", "lost"],
    ending: Ending,
    error: str | None,
    events: Mapping[str, int],
) -> None:
    reason = "released" if state == "completed" else "forced_out"
    held = {"batch_id": batch["batch_id"], "fencing_token": batch["fencing_token"]}
    left: dict[str, object] = {
        "status": ending.status.value,
        "not_before": ending.not_before,
        "attempts": ending.attempts,
        "error": error,
        "finished_at": None if ending.status is BatchStatus.PENDING else desk.now,
    }
    ended, _, _ = await tx.together(
        ("lease_end", {"lease_id": batch["lease_id"], "now": desk.now, "ending": reason}),
        ("attempt_end", held | {"state": state, "now": desk.now}),
        ("batch_end", {**held, **left, **events}),
    )
    desk.give_back(ended)


async def _go_on(tx: Transaction, backfill_id: str) -> None:
    await refill(tx, backfill_id)
    await settle(tx, backfill_id)


async def _hand_out(
    tx: Transaction, batch_id: object, row: Mapping[str, Any], *, lease: Lease, client_id: str, now: datetime
) -> ClaimedBatch:
    backfill_id = str(row["backfill_id"])
    token, expires_at = lease.fencing_token, lease.expires_at
    held = {"batch_id": batch_id, "fencing_token": token}
    [batch], _ = await tx.together(
        ("batch_start", held | {"lease_id": lease.lease_id, "lease_expires_at": expires_at}),
        ("attempt_add", held | {"backfill_id": backfill_id, "client_id": client_id, "now": now}),
    )
    started = {"status": "running", "started_at": row["started_at"] or now, "dispatched_at": now, "blocked_by": None}
    await save(tx, {**row, **started})
    return ClaimedBatch(
        tenant_id=tx.tenant_id,
        batch_id=str(batch_id),
        backfill_id=backfill_id,
        job_type=row["job_type"],
        source=row["source"],
        window=EventTimeWindow(batch["window_start"], batch["window_end"]),
        params=params_of(row),
        attempt=batch["attempts"],
        fencing_token=token,
        lease_expires_at=expires_at,
        lease_seconds=lease.lease_seconds,
        checkpoint=batch["checkpoint"],
    )


async def _note_blocked(tx: Transaction, row: Mapping[str, Any], answer: object) -> None:
    by_share = isinstance(answer, Denied) and all(found.by_share for found in answer.blocking)
    blocked_by = "share" if by_share else "quota"
    if row["blocked_by"] != blocked_by:
        await save(tx, {**row, "blocked_by": blocked_by})


async def _get(tx: Transaction, batch_id: str) -> Mapping[str, Any]:
    batch = await tx.find("batch_get", batch_id=batch_id)
    if batch is None:
        raise NotFound("there is no such batch")
    return batch


async def _held(tx: Transaction, desk: AdmissionDesk, batch_id: str, fencing_token: int) -> Mapping[str, Any]:
    batch = await _get(tx, batch_id)
    held = batch["status"] == "running" and batch["fencing_token"] == fencing_token
    # An operator may have forced the admission out: a batch does not run without one.
    if not held or batch["lease_expires_at"] <= desk.now or not batch["is_admitted"]:
        raise LeaseLost("the batch is not held under this fencing token")
    return batch


def _reported(batch: Mapping[str, Any], events: Events | None) -> dict[str, int]:
    if events is None:
        return {name: batch[name] for name in _NO_EVENTS}
    return {
        "events_processed": events.processed,
        "events_duplicates": events.duplicates,
        "events_failed": events.failed,
    }


_NO_EVENTS: Mapping[str, int] = {"events_processed": 0, "events_duplicates": 0, "events_failed": 0}
