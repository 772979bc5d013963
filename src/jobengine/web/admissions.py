"""Admissions: ask for slots, keep them, give them back."""

from collections.abc import Mapping
from math import ceil
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from litestar import Response, Router, delete, get, post

from jobengine.audit.act import Act, Family
from jobengine.audit.actions import Action
from jobengine.audit.model import Resource
from jobengine.bootstrap import Plane
from jobengine.clock import format_time
from jobengine.errors import JobengineError
from jobengine.metrics import note_admissions
from jobengine.quota.admission import Ask, Blocking, Denied, TooManySlots
from jobengine.quota.waiting import longest_wait
from jobengine.storage.admission import Answer as Decided
from jobengine.storage.admission import Lease, Repeated, force_out, lease_of
from jobengine.storage.admission_group import (
    Acquire,
    AcquireMany,
    Answers,
    Operation,
    Outcome,
    Release,
    Released,
    Renew,
    decide_group,
)
from jobengine.storage.audit import PostgresAudit
from jobengine.storage.database import Transaction
from jobengine.web.edge import Answer, Edge, Refusal, known_id, needs, respond
from jobengine.web.fields import JobType, Printable
from jobengine.web.pages import DEFAULT_SIZE, JobTypeFilter, PageSize, PageToken
from jobengine.web.strict_json import read_json

ADMIT = "orch:admit"
MAX_BATCH = 1_000
MAX_BATCH_BODY = 4 * 2**20
HOUR_SECONDS = 3_600

LeaseSeconds = Annotated[int, msgspec.Meta(ge=5, le=3600)]
Slots = Annotated[int, msgspec.Meta(ge=1, le=10**12)]
# Any integer that is not the lease's own token is a lost lease, so the range is wide on purpose.
FencingToken = int


class NewAdmission(msgspec.Struct, forbid_unknown_fields=True):
    """A question for slots."""

    job_type: JobType
    slots: Slots = 1
    lease_seconds: LeaseSeconds = 300
    job_id: Printable | None = None
    kind: Literal["live", "backfill"] = "live"

    def ask(self) -> Ask:
        """Return the question as the core takes it."""
        return Ask(self.job_type, self.slots, self.lease_seconds, self.kind, self.job_id)


class NewAdmissions(msgspec.Struct, forbid_unknown_fields=True):
    """Many questions, answered in their order."""

    requests: Annotated[list[NewAdmission], msgspec.Meta(max_length=MAX_BATCH)]


class Renewal(msgspec.Struct, forbid_unknown_fields=True):
    """Keep a lease for longer."""

    fencing_token: FencingToken
    lease_seconds: LeaseSeconds | None = None


class Giving(msgspec.Struct, forbid_unknown_fields=True):
    """Give a lease back."""

    fencing_token: FencingToken


class LeaseView(msgspec.Struct):
    """A lease."""

    lease_id: str
    fencing_token: int
    job_type: str
    slots: int
    expires_at: str
    quota_id: str | None
    kind: str
    job_id: str | None


class GrantView(LeaseView):
    """A lease among the answers to many asks."""

    granted: bool = True


Shown = TypeVar("Shown", bound=LeaseView)
_TOLD: Mapping[type, str] = {
    Lease: "granted",
    Repeated: "repeated",
    Denied: "denied",
    TooManySlots: "slots_exceed_limit",
    Released: "released",
}


class LeasePage(msgspec.Struct):
    """A page of live leases."""

    items: list[LeaseView]
    next_page_token: str | None


class BlockingView(msgspec.Struct):
    """One limit that stands in the way."""

    limit: str
    quota_id: str | None
    job_type: str | None
    maximum: int
    used: int
    requested: int
    retry_after_seconds: float | None


def plain_operation(rest: str, body: bytes, client_id: str) -> tuple[Operation, str] | None:
    """Return what a request about one lease asks for, and its route, both after ``/admissions``; None: nothing here.

    Raises what `read_json` raises, and NotFound for what can be no lease.
    """
    match rest.split("/"):
        case [""]:
            return Acquire(read_json(body, NewAdmission).ask(), client_id), ""
        case ["", lease_id, "renew"]:
            renewal = read_json(body, Renewal)
            known = known_id(lease_id, "lease")
            return Renew(known, renewal.fencing_token, renewal.lease_seconds), "/{lease_id}/renew"
        case ["", lease_id, "release"]:
            giving = read_json(body, Giving)
            return Release(known_id(lease_id, "lease"), giving.fencing_token), "/{lease_id}/release"
        case _:
            return None


async def carry_out(plane: Plane, tenant_id: str, operation: Operation, trace_id: str) -> Response[Any]:
    """Do what *operation* says, in a group with others of its tenant, and answer; raises what it was refused with."""
    outcome = await plane.committer.carry_out(tenant_id, operation)
    _count(plane, tenant_id, operation, outcome)
    return respond(_answer(operation, outcome), trace_id)


@post("/admissions", opt=needs(ADMIT), status_code=201)
async def acquire(edge: Edge, data: NewAdmission) -> Response[LeaseView]:
    """Ask for slots; all limits decide at once."""
    return await _carry_out(edge, Acquire(data.ask(), edge.principal.client_id))


@post("/admissions/batch", opt=needs(ADMIT), status_code=200, request_max_body_size=MAX_BATCH_BODY)
async def acquire_many(edge: Edge, data: NewAdmissions) -> Response[dict[str, Any]]:
    """Ask many times at once; each answer stands at its question's place."""
    asks = tuple(request.ask() for request in data.requests)
    return await _carry_out(edge, AcquireMany(asks, edge.principal.client_id))


@post("/admissions/{lease_id:str}/renew", opt=needs(ADMIT), status_code=200)
async def renew_lease(edge: Edge, lease_id: str, data: Renewal) -> Response[LeaseView]:
    """Keep a lease for longer."""
    return await _carry_out(edge, Renew(known_id(lease_id, "lease"), data.fencing_token, data.lease_seconds))


@post("/admissions/{lease_id:str}/release", opt=needs(ADMIT), status_code=204)
async def release_lease(edge: Edge, lease_id: str, data: Giving) -> Response[None]:
    """Give a lease back; saying so again within the hour is fine."""
    return await _carry_out(edge, Release(known_id(lease_id, "lease"), data.fencing_token))


async def _carry_out(edge: Edge, operation: Operation) -> Response[Any]:
    if not edge.has_idempotency_key:
        return await carry_out(edge.plane, edge.tenant_id, operation, edge.trace_id)

    async def work(tx: Transaction, act: Act) -> Answer | Refusal:  # noqa: ARG001 - the signature of a work
        [outcome] = await decide_group(tx, [operation])
        tx.when_committed(lambda: _count(edge.plane, edge.tenant_id, operation, outcome))
        return _answer(operation, outcome)

    # The answer is kept in the transaction that made it, so this one goes alone.
    return await edge.change(work)


@get("/admissions", opt=needs("orch:read"))
async def list_leases(
    edge: Edge, job_type: JobTypeFilter = None, page_size: PageSize = DEFAULT_SIZE, page_token: PageToken = None
) -> Response[LeasePage]:
    """List live leases."""
    pager = edge.pager(job_type=job_type)

    async def work(tx: Transaction) -> object:
        rows = await tx.all("lease_list", job_type=job_type, after=pager.cursor(page_token), most=page_size + 1)
        leases = [lease_of(row) for row in rows]
        return pager.page([_view(lease) for lease in leases], page_size, [lease.lease_id for lease in leases])

    return await edge.read(work)


@delete("/admissions/{lease_id:str}", opt=needs("orch:operate"), status_code=204)
async def force_lease_out(edge: Edge, lease_id: str) -> Response[None]:
    """Force a lease out; its holder learns so at its next word."""

    async def work(tx: Transaction, act: Act) -> Answer:
        lease = await force_out(tx, known_id(lease_id, "lease"))
        entry = act.entry(
            Action.LEASE_FORCED_OUT,
            Resource("lease", lease.lease_id),
            family=Family.OPERATE,
            before={"job_type": lease.job_type, "slots": lease.slots, "kind": lease.kind, "job_id": lease.job_id},
        )
        await PostgresAudit(tx).record(entry)
        return Answer(204)

    return await edge.change(work)


def _answer(operation: Operation, outcome: Outcome) -> Answer | Refusal:
    match outcome:
        case Lease():
            return Answer(201 if isinstance(operation, Acquire) else 200, _view(outcome))
        case Repeated(lease):
            return Answer(200, _view(lease))
        case Denied():
            return _denial(outcome)
        case TooManySlots():
            return _too_many(outcome)
        case Answers(items):
            return Answer(200, {"results": [_result(item) for item in items]})
        case Released():
            return Answer(204)
        case JobengineError():
            raise outcome


def _count(plane: Plane, tenant: str, operation: Operation, outcome: Outcome) -> None:
    told: dict[str, int] = {}
    denied: dict[str, int] = {}
    for item in outcome.items if isinstance(outcome, Answers) else (outcome,):
        # A refusal is told as a problem, and counted there.
        if name := _TOLD.get(type(item)):
            told[name] = told.get(name, 0) + 1
        for found in item.blocking if isinstance(item, Denied) else ():
            denied[found.limit.value] = denied.get(found.limit.value, 0) + 1
    if isinstance(operation, Renew) and "granted" in told:
        told = {"renewed": 1}
    note_admissions(told, denied, tenant_id=tenant if plane.settings.metrics_port else None)


def _result(decided: Decided) -> "GrantView | dict[str, Any]":
    match decided:
        case Lease() | Repeated():
            return _view(decided if isinstance(decided, Lease) else decided.lease, GrantView)
        case Denied():
            return {"granted": False, "blocking": [_blocking(item) for item in decided.blocking]}
        case TooManySlots():
            blocking = BlockingView(
                "max_active", decided.quota_id, decided.job_type, decided.maximum, decided.used, decided.requested, None
            )
            return {"granted": False, "blocking": [blocking]}


def _denial(denied: Denied) -> Refusal:
    blocking = [_blocking(item) for item in denied.blocking]
    limits = ", ".join(item.limit for item in blocking)
    return Refusal("admission_denied", f"blocked by {limits}", {"blocking": blocking}, _rate_headers(denied))


def _rate_headers(denied: Denied) -> Mapping[str, str]:
    """Write each limit as draft-ietf-httpapi-ratelimit-headers does: q = maximum, r = left, t = seconds to wait."""
    policies: list[str] = []
    states: list[str] = []
    for item in denied.blocking:
        name = f'"{item.limit.value}:{item.job_type or "*"}"'
        window = f";w={HOUR_SECONDS}" if item.limit == "max_per_hour" else ""
        policies.append(f"{name};q={item.maximum}{window}")
        wait = item.retry_after_seconds
        states.append(f"{name};r={max(0, item.maximum - item.used)}" + (f";t={ceil(wait)}" if wait is not None else ""))
    headers = {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(states)}
    if (longest := longest_wait(denied)) is not None:
        headers["Retry-After"] = str(ceil(longest))
    return headers


def _too_many(refused: TooManySlots) -> Refusal:
    detail = f"{refused.requested} slots are more than {refused.maximum}, the most there can ever be"
    members = {"maximum": refused.maximum, "requested": refused.requested, "job_type": refused.job_type}
    return Refusal("slots_exceed_limit", detail, members)


def _blocking(item: Blocking) -> BlockingView:
    return BlockingView(
        item.limit.value,
        item.quota_id,
        item.job_type,
        item.maximum,
        item.used,
        item.requested,
        item.retry_after_seconds,
    )


def _view(lease: Lease, kind: type[Shown] = LeaseView) -> Shown:
    return kind(
        lease_id=lease.lease_id,
        fencing_token=lease.fencing_token,
        job_type=lease.job_type,
        slots=lease.slots,
        expires_at=format_time(lease.expires_at),
        quota_id=lease.quota_id,
        kind=lease.kind,
        job_id=lease.job_id,
    )


admissions = Router(
    "/",
    route_handlers=[acquire, acquire_many, renew_lease, release_lease, list_leases, force_lease_out],
    tags=["admissions"],
)
