"""Backfills: preview, start, watch and move them."""

from typing import Annotated, Any, Literal

import msgspec
from litestar import Response, Router, get, post
from litestar.params import Parameter

from jobengine.audit.act import Act
from jobengine.backfill.manager import BackfillAsk, BackfillManager
from jobengine.backfill.model import BackfillStatus, Move, Order, Reprocess
from jobengine.backfill.ports import JobKind
from jobengine.backfill.suppressor import Duplicate
from jobengine.bootstrap import Plane
from jobengine.storage.audit import PostgresAudit
from jobengine.storage.backfill import PostgresBackfills, read_backfills, read_batches
from jobengine.storage.database import Transaction
from jobengine.web.backfill_events import follow_backfill
from jobengine.web.backfill_views import (
    BackfillPage,
    BackfillView,
    BatchPage,
    PreviewView,
    get_row,
    show_backfill,
    show_batch,
    show_overlaps,
    show_window,
)
from jobengine.web.edge import Answer, Edge, Refusal, known_id, needs
from jobengine.web.fields import PRINTABLE, JobType, Nothing, Printable
from jobengine.web.pages import DEFAULT_SIZE, JobTypeFilter, PageSize, PageToken
from jobengine.web.times import read_time

READ = needs("orch:read", "orch:backfill")
START = needs("orch:backfill")
MOVE = needs("orch:backfill", "orch:operate")

SourceFilter = Annotated[str | None, Parameter(pattern=PRINTABLE, max_length=200, description="Only of this source.")]
StatusFilter = Annotated[BackfillStatus | None, Parameter(description="Only those that stand there.")]
Bound = Annotated[int, msgspec.Meta(ge=0, le=10**12)]


class WindowIn(msgspec.Struct, forbid_unknown_fields=True):
    """A half-open window of event time."""

    start: str
    end: str


class NewBackfill(msgspec.Struct, forbid_unknown_fields=True):
    """A backfill to preview or to start."""

    job_type: JobType
    source: Printable
    window: WindowIn
    partition: Annotated[str, msgspec.Meta(max_length=32)] = "P1D"
    order: Literal["forward", "backward"] = "forward"
    reprocess: Literal["missing", "failed", "all"] = "missing"
    max_active: Annotated[int, msgspec.Meta(ge=1, le=10**12)] | None = None
    max_failures: Bound | None = None
    max_failure_rate: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    params: dict[str, Any] | None = None
    plan_token: Annotated[str, msgspec.Meta(max_length=200)] | None = None

    def ask(self) -> BackfillAsk:
        """Return the question as the core takes it; raises ValidationFailed for times."""
        return BackfillAsk(
            job_type=self.job_type,
            source=self.source,
            start=read_time("window.start", self.window.start),
            end=read_time("window.end", self.window.end),
            partition=self.partition,
            order=Order(self.order),
            reprocess=Reprocess(self.reprocess),
            max_active=self.max_active,
            max_failures=self.max_failures,
            max_failure_rate=self.max_failure_rate,
            params=self.params or {},
        )


@post("/backfills/preview", opt=READ, status_code=200)
async def preview(edge: Edge, data: NewBackfill) -> Response[PreviewView]:
    """Plan a backfill and change nothing."""

    async def work(tx: Transaction, act: Act) -> Answer:
        found = await manager(edge.plane, tx, act).preview(data.ask())
        overlaps, uncovered = show_overlaps(found.duplicate, found.plan.window)
        view = PreviewView(
            batches=found.plan.pending,
            first=None if found.first is None else show_window(found.first),
            last=None if found.last is None else show_window(found.last),
            window=show_window(found.plan.window),
            overlaps=overlaps,
            uncovered=uncovered,
            warnings=list(found.warnings),
            plan_token=found.plan_token,
        )
        return Answer(200, view)

    return await edge.change(work)


@post("/backfills", opt=START, status_code=202)
async def start(edge: Edge, data: NewBackfill) -> Response[BackfillView]:
    """Start a backfill, unless another one covers its window."""

    async def work(tx: Transaction, act: Act) -> Answer | Refusal:
        made = await manager(edge.plane, tx, act).start(data.ask(), data.plan_token)
        if isinstance(made, Duplicate):
            overlaps, uncovered = show_overlaps(made, None)
            detail = f"{len(overlaps)} other backfill covers the window, or a part of it"
            return Refusal("duplicate_backfill", detail, {"overlaps": overlaps, "uncovered": uncovered})
        location = {"Location": f"/api/v1/backfills/{made.backfill_id}"}
        return Answer(202, show_backfill(await get_row(tx, made.backfill_id)), location)

    return await edge.change(work)


@get("/backfills", opt=READ)
async def list_backfills(
    edge: Edge,
    *,
    status: StatusFilter = None,
    job_type: JobTypeFilter = None,
    source: SourceFilter = None,
    page_size: PageSize = DEFAULT_SIZE,
    page_token: PageToken = None,
) -> Response[BackfillPage]:
    """List the tenant's backfills."""
    pager = edge.pager(status=status, job_type=job_type, source=source)

    async def work(tx: Transaction) -> object:
        after = pager.cursor(page_token)
        rows = await read_backfills(
            tx, status=status, job_type=job_type, source=source, after=after, most=page_size + 1
        )
        return pager.page([show_backfill(row) for row in rows], page_size, [str(row["backfill_id"]) for row in rows])

    return await edge.read(work)


@get("/backfills/{backfill_id:str}", opt=READ)
async def get_backfill(edge: Edge, backfill_id: str) -> Response[BackfillView]:
    """Show a backfill."""

    async def work(tx: Transaction) -> object:
        return show_backfill(await get_row(tx, backfill_id))

    return await edge.read(work)


@get("/backfills/{backfill_id:str}/batches", opt=READ)
async def list_batches(
    edge: Edge, backfill_id: str, page_size: PageSize = DEFAULT_SIZE, page_token: PageToken = None
) -> Response[BatchPage]:
    """List the batches of a backfill in the order of their windows; an untouched stretch is one item."""
    pager = edge.pager()

    async def work(tx: Transaction) -> object:
        backfill = await get_row(tx, backfill_id)
        cursor = pager.cursor(page_token)
        after = -1 if cursor is None else int(cursor)
        rows = await read_batches(tx, backfill, after=after, most=page_size + 1)
        items = [show_batch(row, backfill) for row in rows]
        return pager.page(items, page_size, [str(row["last_index"]) for row in rows])

    return await edge.read(work)


async def _move(edge: Edge, backfill_id: str, move: Move) -> Response[BackfillView]:
    async def work(tx: Transaction, act: Act) -> Answer:
        await manager(edge.plane, tx, act).move(known_id(backfill_id, "backfill"), move)
        return Answer(200, show_backfill(await get_row(tx, backfill_id)))

    return await edge.change(work)


@post("/backfills/{backfill_id:str}/pause", opt=MOVE, status_code=200)
async def pause(edge: Edge, backfill_id: str, data: Nothing | None = None) -> Response[BackfillView]:  # noqa: ARG001 - read and checked: none or {}
    """Hand out no further batch; running ones may finish."""
    return await _move(edge, backfill_id, Move.PAUSE)


@post("/backfills/{backfill_id:str}/resume", opt=MOVE, status_code=200)
async def resume(edge: Edge, backfill_id: str, data: Nothing | None = None) -> Response[BackfillView]:  # noqa: ARG001 - read and checked: none or {}
    """Hand out batches again."""
    return await _move(edge, backfill_id, Move.RESUME)


@post("/backfills/{backfill_id:str}/cancel", opt=MOVE, status_code=200)
async def cancel(edge: Edge, backfill_id: str, data: Nothing | None = None) -> Response[BackfillView]:  # noqa: ARG001 - read and checked: none or {}
    """End the backfill; running batches are fenced out after 10 s at the most."""
    return await _move(edge, backfill_id, Move.CANCEL)


@post("/backfills/{backfill_id:str}/retry-failed", opt=MOVE, status_code=200)
async def retry_failed(edge: Edge, backfill_id: str, data: Nothing | None = None) -> Response[BackfillView]:  # noqa: ARG001 - read and checked: none or {}
    """Run the failed batches again, and only those."""
    return await _move(edge, backfill_id, Move.RETRY_FAILED)


def manager(plane: Plane, tx: Transaction, act: Act) -> BackfillManager:
    """Return the manager for one transaction."""
    jobs = {
        name: JobKind(job.handler, job.is_external, job.lease_seconds, job.max_attempts)
        for name, job in plane.settings.job_types.items()
    }
    return BackfillManager(PostgresBackfills(tx), PostgresAudit(tx), act, plane.suppressor, jobs, plane.plan_key)


backfills = Router(
    "/",
    route_handlers=[
        preview,
        start,
        list_backfills,
        get_backfill,
        list_batches,
        follow_backfill,
        pause,
        resume,
        cancel,
        retry_failed,
    ],
    tags=["backfills"],
)
