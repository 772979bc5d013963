"""Changes of quotas that wait for a second person, and what tenants ask for themselves."""

from typing import Annotated, Any, Literal

import msgspec
from litestar import Response, Router, get, post
from litestar.params import Parameter

from jobengine.audit.act import Act
from jobengine.authority.intent import IntentRefused, check_reason
from jobengine.clock import format_time
from jobengine.errors import NotFound, ValidationFailed
from jobengine.governance.change import QuotaChange
from jobengine.governance.changes import ChangeManager
from jobengine.quota.manager import QuotaManager
from jobengine.quota.model import limits_of
from jobengine.quota.rules import Refused
from jobengine.storage.audit import PostgresAudit
from jobengine.storage.database import Transaction
from jobengine.storage.governance import ChangeReading, PostgresChanges, read_changes
from jobengine.storage.quota import PostgresQuotas
from jobengine.storage.quota_reading import read_quotas
from jobengine.web.edge import Answer, Edge, Refusal, known_id, needs, respond
from jobengine.web.fields import PRINTABLE, JobType
from jobengine.web.limits import LimitsView, SomeLimits, read_some_limits, show_limits
from jobengine.web.pages import DEFAULT_SIZE, PageSize, PageToken
from jobengine.web.quota_views import UsageView, refusal, usage_view
from jobengine.web.simulation import SimulationView, brief
from jobengine.web.times import read_time

READ = needs("orch:read", "orch:quota")
DECIDE = needs("orch:quota")

StatusWord = Literal["pending", "approved", "rejected", "expired", "emergency"]
StatusFilter = Annotated[StatusWord | None, Parameter(description="Only those of which this became.")]
Comment = Annotated[str, msgspec.Meta(min_length=1, max_length=256, pattern=PRINTABLE)]


class Decision(msgspec.Struct, forbid_unknown_fields=True):
    """What the second person says to the first."""

    comment: Comment | None = None


class NewRequest(msgspec.Struct, forbid_unknown_fields=True):
    """What a tenant asks for; with *until* it becomes an override."""

    job_type: JobType | None
    limits: SomeLimits
    request_reason: str
    until: str | None = None


class ChangeView(msgspec.Struct):
    """A change: who wants what, why, and what became of it.

    *usage* is what is in use now, *simulation* what the limits would have done in the last day while the change is
    pending, null where that cannot be told at once: both are shown of one change and not in lists.
    """

    change_id: str
    tenant_id: str
    kind: Literal["create", "adjust", "override"]
    origin: Literal["operator", "request"]
    status: StatusWord
    quota_id: str | None
    job_type: str | None
    from_: LimitsView | None = msgspec.field(name="from")
    to: LimitsView
    starts_at: str | None
    until: str | None
    usage: UsageView | None
    simulation: SimulationView | None
    requested_by: str
    reason: str | None
    ticket: str | None
    requested_at: str
    expires_at: str
    decided_by: str | None
    decided_at: str | None
    comment: str | None
    audit_entry_id: str
    decision_audit_entry_id: str | None


class ChangePage(msgspec.Struct):
    """A page of changes, oldest first."""

    items: list[ChangeView]
    next_page_token: str | None


@get("/quota-changes", opt=READ)
async def list_changes(
    edge: Edge, status: StatusFilter = None, page_size: PageSize = DEFAULT_SIZE, page_token: PageToken = None
) -> Response[ChangePage]:
    """List the changes that wait for a second person, and what became of them."""
    return await _list(edge, page_size, page_token, status=status, origin=None)


@get("/quota-changes/{change_id:str}", opt=READ)
async def get_change(edge: Edge, change_id: str) -> Response[ChangeView]:
    """Show a change as the second person needs it."""
    async with edge.plane.database.transaction(edge.tenant_id) as tx:
        view = await one_change(tx, change_id)
    if view.status == "pending":
        wanted = limits_of(msgspec.to_builtins(view.to))
        view.simulation = await brief(edge.plane, edge.tenant_id, view.job_type, wanted)
    answer: Response[Any] = respond(Answer(200, view), edge.trace_id)
    return answer


@post("/quota-changes/{change_id:str}/approve", opt=DECIDE, status_code=200)
async def approve_change(edge: Edge, change_id: str, data: Decision | None = None) -> Response[ChangeView]:
    """Make the change; the second person is another owner than the first."""
    return await _decide(edge, change_id, data, approve=True)


@post("/quota-changes/{change_id:str}/reject", opt=DECIDE, status_code=200)
async def reject_change(edge: Edge, change_id: str, data: Decision | None = None) -> Response[ChangeView]:
    """Let the change never be."""
    return await _decide(edge, change_id, data, approve=False)


@post("/quota-requests", opt=needs("orch:read"), status_code=202)
async def request_quota(edge: Edge, data: NewRequest) -> Response[ChangeView]:
    """Ask for more; it becomes a change that somebody else decides on."""
    limits = read_some_limits(data.limits)
    until = None if data.until is None else read_time("until", data.until)
    said = check_reason("request_reason", data.request_reason)
    if isinstance(said, IntentRefused):
        raise ValidationFailed(said.parameter, said.message.removeprefix(f"{said.parameter} "))

    async def work(tx: Transaction, act: Act) -> Answer | Refusal:
        made = await change_manager(tx, act).request(data.job_type, limits, until, said.text)
        return refusal(made) if isinstance(made, Refused) else await waiting(tx, made)

    return await edge.change(work)


@get("/quota-requests", opt=needs("orch:read"))
async def list_requests(
    edge: Edge, status: StatusFilter = None, page_size: PageSize = DEFAULT_SIZE, page_token: PageToken = None
) -> Response[ChangePage]:
    """List what the tenant has asked for, and what became of it."""
    return await _list(edge, page_size, page_token, status=status, origin="request")


def change_manager(tx: Transaction, act: Act) -> ChangeManager:
    """Return the manager of changes that may have to wait, in an open transaction."""
    audit = PostgresAudit(tx)
    return ChangeManager(QuotaManager(PostgresQuotas(tx), audit, act), PostgresChanges(tx), audit, act)


async def waiting(tx: Transaction, change: QuotaChange) -> Answer:
    """Return the answer to what has to wait."""
    location = {"Location": f"/api/v1/quota-changes/{change.change_id}"}
    return Answer(202, await one_change(tx, change.change_id), location)


async def one_change(tx: Transaction, change_id: str) -> ChangeView:
    """Return a change with what its quota uses now; raises NotFound."""
    found = await read_changes(tx, change_id=known_id(change_id, "change"))
    if not found:
        raise NotFound("there is no such change")
    quota_id = found[0].change.quota_id
    quotas = [] if quota_id is None else await read_quotas(tx, quota_id=quota_id)
    return _view(found[0], tx, usage_view(quotas[0].usage) if quotas else None)


async def _list(
    edge: Edge, page_size: int, page_token: str | None, *, status: str | None, origin: str | None
) -> Response[Any]:
    pager = edge.pager(status=status)

    async def work(tx: Transaction) -> object:
        after = pager.cursor(page_token)
        found = await read_changes(tx, status=status, origin=origin, after=after, most=page_size + 1)
        return pager.page([_view(one, tx, None) for one in found], page_size, [one.change.change_id for one in found])

    return await edge.read(work)


async def _decide(edge: Edge, change_id: str, data: Decision | None, *, approve: bool) -> Response[Any]:
    comment = data.comment if data else None

    async def work(tx: Transaction, act: Act) -> Answer | Refusal:
        manager, known = change_manager(tx, act), known_id(change_id, "change")
        made = await (manager.approve(known, comment) if approve else manager.reject(known, comment))
        return refusal(made) if isinstance(made, Refused) else Answer(200, await one_change(tx, known))

    return await edge.change(work)


def _view(reading: ChangeReading, tx: Transaction, usage: UsageView | None) -> ChangeView:
    change = reading.change
    return ChangeView(
        change_id=change.change_id,
        tenant_id=tx.tenant_id,
        kind=change.kind,
        origin=change.origin,
        status=change.status_at(tx.now).value,
        quota_id=change.quota_id,
        job_type=change.job_type,
        from_=None if change.before is None else show_limits(change.before),
        to=show_limits(change.after),
        starts_at=None if change.starts_at is None else format_time(change.starts_at),
        until=None if change.until is None else format_time(change.until),
        usage=usage,
        simulation=None,
        requested_by=change.requested_by,
        reason=reading.reason,
        ticket=reading.ticket,
        requested_at=format_time(change.requested_at),
        expires_at=format_time(change.expires_at),
        decided_by=change.decided_by,
        decided_at=None if change.decided_at is None else format_time(change.decided_at),
        comment=reading.comment,
        audit_entry_id=change.entry_id,
        decision_audit_entry_id=change.decision_entry_id,
    )


quota_changes = Router(
    "/",
    route_handlers=[list_changes, get_change, approve_change, reject_change, request_quota, list_requests],
    tags=["changes"],
)  # fmt: skip
