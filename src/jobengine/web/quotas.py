"""Quotas: see, create, adjust, pause, delete, and what became of them."""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from litestar import Response, Router, delete, get, patch, post

from jobengine.audit.act import Act
from jobengine.clock import format_time
from jobengine.errors import NotFound
from jobengine.governance.change import QuotaChange
from jobengine.quota.manager import QuotaManager
from jobengine.quota.rules import Refused
from jobengine.storage.audit import PostgresAudit
from jobengine.storage.database import Transaction
from jobengine.storage.quota import PostgresQuotas
from jobengine.storage.quota_reading import QuotaReading, limits_as_of, read_history, read_quotas
from jobengine.web.edge import Answer, Edge, Refusal, known_id, needs
from jobengine.web.fields import JobType, Nothing
from jobengine.web.limits import LimitsIn, LimitsView, SomeLimits, read_limits, read_some_limits, show_limits
from jobengine.web.pages import DEFAULT_SIZE, JobTypeFilter, PageSize, PageToken
from jobengine.web.quota_changes import change_manager, waiting
from jobengine.web.quota_views import QuotaView, quota_view, refusal
from jobengine.web.times import read_time

READ = needs("orch:read", "orch:quota")
CHANGE = needs("orch:quota")


class NewQuota(msgspec.Struct, forbid_unknown_fields=True):
    """A quota to create; *job_type* null limits the tenant as a whole."""

    job_type: JobType | None
    limits: LimitsIn


class Adjustment(msgspec.Struct, forbid_unknown_fields=True):
    """A change of some limits; an *emergency* waits for nobody, needs a ticket and is audited as one.

    Where use is above a lowered limit, `drain` refuses to renew leases after 60 s; `block_new` lets them run on.
    """

    limits: SomeLimits
    on_excess: Literal["block_new", "drain"] = "block_new"
    emergency: bool = False


class Pause(msgspec.Struct, forbid_unknown_fields=True):
    """Why a quota is paused, for those who meet it."""

    pause_reason: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] | None = None


class QuotaPage(msgspec.Struct):
    """A page of quotas."""

    items: list[QuotaView]
    next_page_token: str | None


class Change(msgspec.Struct):
    """One change of a quota."""

    version: int
    at: str
    action: str
    from_: LimitsView | None = msgspec.field(name="from")
    to: LimitsView | None
    who: str
    reason: str | None
    ticket: str | None
    audit_entry_id: str


class AsOf(msgspec.Struct):
    """The limits at one moment of the past."""

    at: str
    version: int
    limits: LimitsView
    effective_limits: LimitsView


class History(msgspec.Struct):
    """A page of changes, oldest first; with ``at`` the limits as of then."""

    items: list[Change]
    next_page_token: str | None
    as_of: AsOf | None = None


@get("/quotas", opt=READ)
async def list_quotas(
    edge: Edge,
    job_type: JobTypeFilter = None,
    paused: bool | None = None,  # noqa: FBT001 - a query parameter, always by name
    page_size: PageSize = DEFAULT_SIZE,
    page_token: PageToken = None,
) -> Response[QuotaPage]:
    """List the tenant's quotas."""
    pager = edge.pager(job_type=job_type, paused=paused)

    async def work(tx: Transaction) -> object:
        found = await read_quotas(
            tx, job_type=job_type, paused=paused, after=pager.cursor(page_token), most=page_size + 1
        )
        return pager.page([quota_view(r) for r in found], page_size, [r.quota.quota_id for r in found])

    return await edge.read(work)


@get("/quotas/{quota_id:str}", opt=READ)
async def get_quota(edge: Edge, quota_id: str) -> Response[QuotaView]:
    """Show a quota."""

    async def work(tx: Transaction) -> Answer:
        return _quota_answer(200, await one_quota(tx, quota_id))

    return await edge.read(work)


@post("/quotas", opt=CHANGE, status_code=201)
async def create_quota(edge: Edge, data: NewQuota) -> Response[QuotaView]:
    """Limit a job type, or the tenant as a whole."""
    limits = read_limits(data.limits)

    async def work(tx: Transaction, act: Act) -> Answer | Refusal:
        made = await change_manager(tx, act).create(data.job_type, limits)
        if isinstance(made, Refused):
            return refusal(made)
        if isinstance(made, QuotaChange):
            return await waiting(tx, made)
        location = {"Location": f"/api/v1/quotas/{made.quota_id}"}
        return _quota_answer(201, await one_quota(tx, made.quota_id), location)

    return await edge.change(work)


@patch("/quotas/{quota_id:str}", opt=CHANGE)
async def adjust_quota(edge: Edge, quota_id: str, data: Adjustment) -> Response[QuotaView]:
    """Change some limits of a quota."""
    changes = read_some_limits(data.limits)

    async def work(tx: Transaction, act: Act) -> Answer | Refusal:
        known, version = known_id(quota_id, "quota"), edge.if_match()
        found = await change_manager(tx, act).adjust(
            known, changes, version, emergency=data.emergency, drain=data.on_excess == "drain"
        )
        if isinstance(found, QuotaChange):
            return await waiting(tx, found)
        return refusal(found) if isinstance(found, Refused) else _quota_answer(200, await one_quota(tx, known))

    return await edge.change(work)


@delete("/quotas/{quota_id:str}", opt=CHANGE, status_code=204)
async def delete_quota(edge: Edge, quota_id: str) -> Response[None]:
    """Take a quota away; the default limits hold then."""

    async def work(tx: Transaction, act: Act) -> Answer | Refusal:
        refused = await manager(tx, act).delete(known_id(quota_id, "quota"), edge.if_match())
        return refusal(refused) if refused else Answer(204)

    return await edge.change(work)


@post("/quotas/{quota_id:str}/pause", opt=CHANGE, status_code=200)
async def pause_quota(edge: Edge, quota_id: str, data: Pause | None = None) -> Response[QuotaView]:
    """Deny new work until the quota is resumed."""
    why = data.pause_reason if data else None

    async def work(tx: Transaction, act: Act) -> Answer:
        await manager(tx, act).pause(known_id(quota_id, "quota"), why, edge.if_match())
        return _quota_answer(200, await one_quota(tx, quota_id))

    return await edge.change(work)


@post("/quotas/{quota_id:str}/resume", opt=CHANGE, status_code=200)
async def resume_quota(
    edge: Edge,
    quota_id: str,
    data: Nothing | None = None,  # noqa: ARG001 - read so that a body that says something is refused
) -> Response[QuotaView]:
    """Admit new work again."""

    async def work(tx: Transaction, act: Act) -> Answer:
        await manager(tx, act).resume(known_id(quota_id, "quota"), edge.if_match())
        return _quota_answer(200, await one_quota(tx, quota_id))

    return await edge.change(work)


@get("/quotas/{quota_id:str}/history", opt=READ)
async def quota_history(
    edge: Edge, quota_id: str, at: str | None = None, page_size: PageSize = DEFAULT_SIZE, page_token: PageToken = None
) -> Response[History]:
    """List the changes of a quota, of a deleted one too; ``at`` adds the limits as of a time."""
    pager = edge.pager(at=at)
    moment = None if at is None else read_time("at", at)

    async def work(tx: Transaction) -> object:
        known = known_id(quota_id, "quota")
        after = int(pager.cursor(page_token) or 0)
        rows = await read_history(tx, known, after=after, most=page_size + 1)
        if not rows:
            raise NotFound("there is no such quota")
        page = pager.page([_change(row) for row in rows], page_size, [str(row["version"]) for row in rows])
        return {**page, "as_of": None if moment is None else await _as_of(tx, known, moment)}

    return await edge.read(work)


def manager(tx: Transaction, act: Act) -> QuotaManager:
    """Return the manager of an open transaction."""
    return QuotaManager(PostgresQuotas(tx), PostgresAudit(tx), act)


async def one_quota(tx: Transaction, quota_id: str) -> QuotaReading:
    """Return a quota with its use; raises NotFound."""
    found = await read_quotas(tx, quota_id=known_id(quota_id, "quota"))
    if not found:
        raise NotFound("there is no such quota")
    return found[0]


def _quota_answer(status: int, reading: QuotaReading, headers: dict[str, str] | None = None) -> Answer:
    etag = {"ETag": f'"{reading.quota.version}"'}
    return Answer(status, quota_view(reading), etag | (headers or {}))


async def _as_of(tx: Transaction, quota_id: str, moment: datetime) -> AsOf | None:
    found = await limits_as_of(tx, quota_id, moment)
    if found is None:
        return None
    version, limits, effective = found
    return AsOf(format_time(moment), version, show_limits(limits), show_limits(effective))


def _change(row: dict[str, Any]) -> Change:
    def limits(side: dict[str, Any] | None) -> LimitsView | None:
        return None if side is None else LimitsView(**side["limits"])

    return Change(
        version=row["version"],
        at=format_time(row["at"]),
        action=row["action"],
        from_=limits(row["before"]),
        to=limits(row["after"]),
        who=row["changed_by"],
        reason=row["reason"],
        ticket=row["ticket"],
        audit_entry_id=str(row["entry_id"]),
    )


quotas = Router(
    "/",
    route_handlers=[
        list_quotas, get_quota, create_quota, adjust_quota, delete_quota, pause_quota, resume_quota, quota_history,
    ],
    tags=["quotas"],
)  # fmt: skip
