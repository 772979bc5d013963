"""Allocations: pools of slots that tenants share, for whoever governs the platform."""

import re
from typing import Annotated, Any, Literal

import msgspec
from litestar import Response, Router, delete, get, post, put
from litestar.params import Parameter

from jobengine.audit.act import Act
from jobengine.clock import format_time
from jobengine.errors import NotFound, ValidationFailed
from jobengine.governance.allocations import AllocationManager, Plan
from jobengine.governance.model import MOST_MEMBERS, Allocation, Apply, Member, Pool, StrategyName
from jobengine.ids import JOB_TYPE
from jobengine.quota.rules import Refused
from jobengine.storage.audit import PostgresAudit
from jobengine.storage.database import Transaction
from jobengine.storage.governance import PostgresAllocations, SystemStandings, read_allocations
from jobengine.tenancy.model import PLATFORM, TENANT_PATTERN
from jobengine.web.edge import Answer, Edge, Refusal, needs
from jobengine.web.fields import Nothing
from jobengine.web.limits import Count
from jobengine.web.pages import DEFAULT_SIZE, PageSize, PageToken
from jobengine.web.quota_views import refusal

GOVERN = needs("orch:govern")
_JOB_TYPE = re.compile(JOB_TYPE)

StrategyWord = Literal["unlimited", "proportional", "priority", "reserved", "max_limit"]
JobTypePath = Annotated[str, Parameter(description="The job type that the pool is for.")]
Weight = Annotated[int, msgspec.Meta(ge=0, le=10**6)]
Turn = Annotated[int, msgspec.Meta(ge=-(10**6), le=10**6)]
TenantId = Annotated[str, msgspec.Meta(pattern=rf"^{TENANT_PATTERN}\Z")]


class Sharer(msgspec.Struct, forbid_unknown_fields=True):
    """A tenant in a pool: never below *reserved*, never above *max_limit*."""

    tenant_id: TenantId
    weight: Weight = 1
    priority: Turn = 0
    reserved: Count = 0
    max_limit: Count | None = None
    demand: Count | None = None


class NewAllocation(msgspec.Struct, forbid_unknown_fields=True):
    """A pool; *capacity* may be left out for `unlimited` alone."""

    strategy: StrategyWord
    tenants: Annotated[list[Sharer], msgspec.Meta(min_length=1, max_length=MOST_MEMBERS)]
    capacity: Count | None = None


class Planned(msgspec.Struct, forbid_unknown_fields=True):
    """Which plan is to be put into effect."""

    plan_token: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class ApplyView(msgspec.Struct):
    """The last time that the pool was put into effect; *done* of *total* tenants have their share.

    *stopped_by* names the tenant whose quota was no longer what the plan had seen.
    """

    started_at: str
    started_by: str
    total: int
    done: int
    ended_at: str | None
    stopped_by: str | None
    audit_entry_id: str


class AllocationView(msgspec.Struct):
    """A pool: `draft` until it is applied as it is, `applying`, `applied`, or `stopped` on its way."""

    job_type: str
    capacity: int | None
    strategy: StrategyWord
    tenants: list[Sharer]
    status: Literal["draft", "applying", "applied", "stopped"]
    apply: ApplyView | None
    version: int
    created_at: str
    updated_at: str
    updated_by: str
    audit_entry_id: str


class AllocationPage(msgspec.Struct):
    """A page of pools."""

    items: list[AllocationView]
    next_page_token: str | None


class TenantPlan(msgspec.Struct):
    """What one tenant has, would get, and uses now; without a quota it has the default limits."""

    tenant_id: str
    from_: int = msgspec.field(name="from")
    to: int
    active: int


class PlanView(msgspec.Struct):
    """What an apply with this *plan_token* would do."""

    plan_token: str
    tenants: list[TenantPlan]
    allocated: int
    unallocated: int


@get("/allocations", opt=GOVERN)
async def list_allocations(
    edge: Edge, page_size: PageSize = DEFAULT_SIZE, page_token: PageToken = None
) -> Response[AllocationPage]:
    """List the pools of the platform."""
    pager = edge.pager()

    async def work(tx: Transaction) -> object:
        found = await read_allocations(tx, after=pager.cursor(page_token), most=page_size + 1)
        return pager.page([_view(one) for one in found], page_size, [one.pool.job_type for one in found])

    return await edge.read(work, tenant_id=PLATFORM)


@get("/allocations/{job_type:str}", opt=GOVERN)
async def get_allocation(edge: Edge, job_type: JobTypePath) -> Response[AllocationView]:
    """Show a pool, and how far it has been put into effect."""

    async def work(tx: Transaction) -> Answer:
        found = await read_allocations(tx, job_type=_known(job_type))
        if not found:
            raise NotFound("there is no allocation for this job type")
        return _answer(200, found[0])

    return await edge.read(work, tenant_id=PLATFORM)


@put("/allocations/{job_type:str}", opt=GOVERN)
async def put_allocation(edge: Edge, job_type: JobTypePath, data: NewAllocation) -> Response[AllocationView]:
    """Write a pool down; from then on the slots of its tenants are raised by applying it alone."""
    pool, version = _pool(job_type, data), edge.if_match()

    async def work(tx: Transaction, act: Act) -> Answer | Refusal:
        made = await _manager(edge, tx, act).put(pool, version)
        if isinstance(made, Refused):
            return refusal(made)
        location = {"Location": f"/api/v1/allocations/{job_type}"}
        return _answer(201, made, location) if made.version == 1 else _answer(200, made)

    return await edge.change(work, tenant_id=PLATFORM)


@delete("/allocations/{job_type:str}", opt=GOVERN, status_code=204)
async def delete_allocation(edge: Edge, job_type: JobTypePath) -> Response[None]:
    """Take a pool away; the limits of its tenants stay as they are."""

    async def work(tx: Transaction, act: Act) -> Answer:
        await _manager(edge, tx, act).delete(_known(job_type), edge.if_match())
        return Answer(204)

    return await edge.change(work, tenant_id=PLATFORM)


@post("/allocations/{job_type:str}/plan", opt=GOVERN, status_code=200)
async def plan_allocation(
    edge: Edge,
    job_type: JobTypePath,
    data: Nothing | None = None,  # noqa: ARG001 - read so that a body that says something is refused
) -> Response[PlanView]:
    """Show what applying would do to each tenant, and change nothing."""

    async def work(tx: Transaction, act: Act) -> Answer:
        return Answer(200, _plan_view(await _manager(edge, tx, act).plan(_known(job_type))))

    return await edge.change(work, tenant_id=PLATFORM)


@post("/allocations/{job_type:str}/apply", opt=GOVERN, status_code=202)
async def apply_allocation(edge: Edge, job_type: JobTypePath, data: Planned) -> Response[AllocationView]:
    """Put a plan into effect, tenant by tenant, lowered ones first; follow it with GET until it has ended."""

    async def work(tx: Transaction, act: Act) -> Answer | Refusal:
        started = await _manager(edge, tx, act).apply(_known(job_type), data.plan_token)
        if isinstance(started, Refused):
            return refusal(started)
        return _answer(202, started, {"Location": f"/api/v1/allocations/{job_type}"})

    return await edge.change(work, tenant_id=PLATFORM)


def _manager(edge: Edge, tx: Transaction, act: Act) -> AllocationManager:
    return AllocationManager(
        PostgresAllocations(tx, act), SystemStandings(edge.plane.database), PostgresAudit(tx), act, edge.plane.plan_key
    )


def _known(job_type: str) -> str:
    if not _JOB_TYPE.fullmatch(job_type):
        raise NotFound("there is no allocation for this job type")
    return job_type


def _pool(job_type: str, data: NewAllocation) -> Pool:
    if not _JOB_TYPE.fullmatch(job_type):
        path, message = "job_type", "is not the name of a job type"
        raise ValidationFailed(path, message)
    if data.capacity is None and data.strategy != StrategyName.UNLIMITED:
        path, message = "capacity", "is required, but for the strategy unlimited"
        raise ValidationFailed(path, message)
    seen: set[str] = set()
    for place, sharer in enumerate(data.tenants):
        if sharer.tenant_id in seen:
            path, message = f"tenants[{place}].tenant_id", "is named twice"
            raise ValidationFailed(path, message)
        if sharer.max_limit is not None and sharer.reserved > sharer.max_limit:
            path, message = f"tenants[{place}].reserved", "is above max_limit"
            raise ValidationFailed(path, message)
        seen.add(sharer.tenant_id)
    members = sorted((Member(**msgspec.structs.asdict(sharer)) for sharer in data.tenants), key=lambda m: m.tenant_id)
    return Pool(job_type, data.capacity, StrategyName(data.strategy), tuple(members))


def _answer(status: int, allocation: Allocation, headers: dict[str, str] | None = None) -> Answer:
    return Answer(status, _view(allocation), {"ETag": f'"{allocation.version}"'} | (headers or {}))


def _view(allocation: Allocation) -> AllocationView:
    pool = allocation.pool
    return AllocationView(
        job_type=pool.job_type,
        capacity=pool.capacity,
        strategy=pool.strategy.value,
        tenants=[Sharer(**member.as_json()) for member in pool.members],
        status=allocation.status.value,
        apply=None if allocation.apply is None else _apply_view(allocation.apply),
        version=allocation.version,
        created_at=format_time(allocation.created_at),
        updated_at=format_time(allocation.updated_at),
        updated_by=allocation.updated_by,
        audit_entry_id=allocation.entry_id,
    )


def _apply_view(apply: Apply) -> ApplyView:
    return ApplyView(
        started_at=format_time(apply.started_at),
        started_by=apply.started_by,
        total=apply.total,
        done=apply.done,
        ended_at=None if apply.ended_at is None else format_time(apply.ended_at),
        stopped_by=apply.stopped_by,
        audit_entry_id=apply.entry_id,
    )


def _plan_view(plan: Plan) -> PlanView:
    tenants: list[dict[str, Any]] = [
        {"tenant_id": t.tenant_id, "from_": t.from_active, "to": t.to_active, "active": t.active} for t in plan.tenants
    ]
    return PlanView(plan.plan_token, [TenantPlan(**one) for one in tenants], plan.allocated, plan.unallocated)


allocations = Router(
    "/",
    route_handlers=[
        list_allocations, get_allocation, put_allocation, delete_allocation, plan_allocation, apply_allocation,
    ],
    tags=["allocations"],
)  # fmt: skip
