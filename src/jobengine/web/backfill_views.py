"""What a backfill, its progress and its batches look like on the wire."""

from datetime import datetime
from typing import Any

import msgspec

from jobengine.backfill.model import BackfillStatus, estimate
from jobengine.backfill.suppressor import Duplicate
from jobengine.backfill.window import EventTimeWindow
from jobengine.clock import format_time
from jobengine.errors import NotFound
from jobengine.storage.backfill import params_of, read_backfills, request_of, running_for
from jobengine.storage.course import counts_of
from jobengine.storage.database import Transaction
from jobengine.web.edge import known_id


class WindowView(msgspec.Struct):
    """A half-open window of event time."""

    start: str
    end: str


class Overlap(msgspec.Struct):
    """Another backfill that covers a part of the window."""

    backfill_id: str
    status: str
    window: WindowView


class PreviewView(msgspec.Struct):
    """What a backfill would do now."""

    batches: int
    first: WindowView | None
    last: WindowView | None
    window: WindowView
    overlaps: list[Overlap]
    uncovered: list[WindowView]
    warnings: list[str]
    plan_token: str


class BatchCounts(msgspec.Struct):
    """How many batches stand where."""

    total: int
    pending: int
    running: int
    succeeded: int
    failed: int
    skipped: int
    canceled: int


class EventCounts(msgspec.Struct):
    """What the batches that succeeded did with events."""

    processed: int
    duplicates: int
    failed: int


class Progress(msgspec.Struct):
    """How far a backfill is; *rate* is batches a second, *eta* when the last one is expected to end."""

    batches: BatchCounts
    events: EventCounts
    rate: float | None
    eta: str | None


class Scope(msgspec.Struct):
    """What a backfill works on."""

    job_type: str
    source: str
    window: WindowView
    params: dict[str, Any]


class BackfillView(msgspec.Struct):
    """A BackfillRequest."""

    backfill_id: str
    tenant_id: str
    scope: Scope
    job_type: str
    source: str
    window: WindowView
    params: dict[str, Any]
    partition: str
    order: str
    reprocess: str
    max_active: int | None
    max_failures: int | None
    max_failure_rate: float | None
    status: str
    stop_reason: str | None
    progress: Progress
    reason: str | None
    ticket: str | None
    requested_by: str
    token_id: str
    created_at: str
    started_at: str | None
    finished_at: str | None
    audit_entry_id: str


class BackfillPage(msgspec.Struct):
    """A page of backfills."""

    items: list[BackfillView]
    next_page_token: str | None


class BatchView(msgspec.Struct):
    """A batch, or a stretch of *count* batches that nobody touched yet."""

    batch_id: str | None
    status: str
    window: WindowView
    count: int
    attempts: int
    error: str | None
    why_waiting: str | None


class BatchPage(msgspec.Struct):
    """A page of batches."""

    items: list[BatchView]
    next_page_token: str | None


async def get_row(tx: Transaction, backfill_id: str) -> dict[str, Any]:
    """Return a backfill's row; raises NotFound."""
    found = await read_backfills(tx, backfill_id=known_id(backfill_id, "backfill"))
    if not found:
        raise NotFound("there is no such backfill")
    return found[0]


def show_backfill(row: dict[str, Any]) -> BackfillView:
    """Return the view of a backfill's row."""
    request = request_of(row)
    window, params = show_window(request.window), params_of(row)
    return BackfillView(
        backfill_id=request.backfill_id,
        tenant_id=request.tenant_id,
        scope=Scope(request.job_type, request.source, window, params),
        job_type=request.job_type,
        source=request.source,
        window=window,
        params=params,
        partition=request.partition.text,
        order=request.order.value,
        reprocess=request.reprocess.value,
        max_active=request.max_active,
        max_failures=request.stop_rules.max_failures,
        max_failure_rate=request.stop_rules.max_failure_rate,
        status=request.status.value,
        stop_reason=row["stop_reason"],
        progress=_progress(row, request.status),
        reason=row["reason"],
        ticket=row["ticket"],
        requested_by=request.requested_by,
        token_id=request.token_id,
        created_at=format_time(request.created_at),
        started_at=_maybe(request.started_at),
        finished_at=_maybe(request.finished_at),
        audit_entry_id=request.audit_entry_id,
    )


def show_window(window: EventTimeWindow) -> WindowView:
    """Return a window for the wire."""
    return WindowView(format_time(window.start), format_time(window.end))


def _maybe(moment: datetime | None) -> str | None:
    return None if moment is None else format_time(moment)


def _progress(row: dict[str, Any], status: BackfillStatus) -> Progress:
    counts = counts_of(row)
    started_at, until = running_for(row)
    pace = estimate(counts, status, ran_for=until - (started_at or until), now=row["now"])
    return Progress(
        batches=BatchCounts(**{name: getattr(counts, name) for name in BatchCounts.__struct_fields__}),
        events=EventCounts(**{name: row[f"events_{name}"] for name in EventCounts.__struct_fields__}),
        rate=None if pace.rate is None else round(pace.rate, 3),
        eta=_maybe(pace.eta),
    )


def show_overlaps(
    duplicate: Duplicate | None, window: EventTimeWindow | None
) -> tuple[list[Overlap], list[WindowView]]:
    """Return whom a request would repeat and what is still free: all of *window* when it repeats nobody."""
    if duplicate is None:
        return [], [] if window is None else [show_window(window)]
    overlaps = [
        Overlap(other.backfill_id, other.status.value, show_window(other.window)) for other in duplicate.overlaps
    ]
    return overlaps, [show_window(free) for free in duplicate.uncovered]


def show_batch(row: dict[str, Any], backfill: dict[str, Any]) -> BatchView:
    """Return the view of a batch's row, or of a stretch's, of the backfill with the row *backfill*."""
    request = request_of(backfill)
    first = request.partition.window_of(request.window, row["first_index"])
    last = request.partition.window_of(request.window, row["last_index"])
    return BatchView(
        batch_id=None if row["batch_id"] is None else str(row["batch_id"]),
        status=row["status"],
        window=show_window(EventTimeWindow(first.start, last.end)),
        count=row["last_index"] - row["first_index"] + 1,
        attempts=row["attempts"],
        error=row["error"],
        why_waiting=_why_waiting(row, backfill) if row["status"] == "pending" else None,
    )


def _why_waiting(row: dict[str, Any], backfill: dict[str, Any]) -> str:
    if backfill["status"] == "paused":
        return "pause"
    if row["not_before"] is not None and row["not_before"] > backfill["now"]:
        return "backoff"
    if backfill["max_active"] is not None and backfill["running"] >= backfill["max_active"]:
        return "max_active"
    return backfill["blocked_by"] or ("no worker" if not backfill["running"] else "turn")
