"""Overrides: raises of a quota's limits that end by themselves."""

import msgspec
from litestar import Response, Router, delete, get, post

from jobengine.audit.act import Act
from jobengine.clock import format_time
from jobengine.governance.change import QuotaChange
from jobengine.quota.manager import OverrideSpan
from jobengine.quota.model import Override, limits_json
from jobengine.quota.rules import Refused
from jobengine.storage.database import Transaction
from jobengine.storage.quota import override_of
from jobengine.web.edge import Answer, Edge, Refusal, known_id
from jobengine.web.limits import SomeLimits, read_some_limits
from jobengine.web.pages import DEFAULT_SIZE, PageSize, PageToken
from jobengine.web.quota_changes import change_manager, waiting
from jobengine.web.quota_views import refusal
from jobengine.web.quotas import CHANGE, READ, manager, one_quota
from jobengine.web.times import read_time


class NewOverride(msgspec.Struct, forbid_unknown_fields=True):
    """A raise that ends by itself at *until*."""

    limits: SomeLimits
    until: str
    starts_at: str | None = None


class OverrideView(msgspec.Struct):
    """An override; *active* tells whether it holds now."""

    override_id: str
    quota_id: str
    limits: SomeLimits
    starts_at: str
    until: str
    active: bool
    created_at: str
    created_by: str
    audit_entry_id: str


class OverridePage(msgspec.Struct):
    """A page of overrides."""

    items: list[OverrideView]
    next_page_token: str | None


@post("/quotas/{quota_id:str}/overrides", opt=CHANGE, status_code=201)
async def add_override(edge: Edge, quota_id: str, data: NewOverride) -> Response[OverrideView]:
    """Raise some limits of a quota until a time."""
    limits = read_some_limits(data.limits)
    starts_at = None if data.starts_at is None else read_time("starts_at", data.starts_at)
    span = OverrideSpan(starts_at, read_time("until", data.until))

    async def work(tx: Transaction, act: Act) -> Answer | Refusal:
        known = known_id(quota_id, "quota")
        made = await change_manager(tx, act).add_override(known, limits, span, edge.if_match())
        if isinstance(made, QuotaChange):
            return await waiting(tx, made)
        return refusal(made) if isinstance(made, Refused) else Answer(201, _override_view(made, tx))

    return await edge.change(work)


@get("/quotas/{quota_id:str}/overrides", opt=READ)
async def list_overrides(
    edge: Edge, quota_id: str, page_size: PageSize = DEFAULT_SIZE, page_token: PageToken = None
) -> Response[OverridePage]:
    """List the overrides of a quota that are not over."""
    pager = edge.pager()

    async def work(tx: Transaction) -> object:
        await one_quota(tx, quota_id)
        after = pager.cursor(page_token)
        rows = await tx.all("override_list", quota_id=quota_id, after=after, most=page_size + 1)
        found = [override_of(row) for row in rows]
        return pager.page([_override_view(o, tx) for o in found], page_size, [o.override_id for o in found])

    return await edge.read(work)


@delete("/quotas/{quota_id:str}/overrides/{override_id:str}", opt=CHANGE, status_code=204)
async def remove_override(edge: Edge, quota_id: str, override_id: str) -> Response[None]:
    """End an override now."""

    async def work(tx: Transaction, act: Act) -> Answer:
        quota, override = known_id(quota_id, "quota"), known_id(override_id, "override")
        await manager(tx, act).remove_override(quota, override, edge.if_match())
        return Answer(204)

    return await edge.change(work)


def _override_view(override: Override, tx: Transaction) -> OverrideView:
    return OverrideView(
        override_id=override.override_id,
        quota_id=override.quota_id,
        limits=msgspec.convert(limits_json(override.limits), SomeLimits),
        starts_at=format_time(override.starts_at),
        until=format_time(override.until),
        active=override.active(tx.now),
        created_at=format_time(override.created_at),
        created_by=override.created_by,
        audit_entry_id=override.entry_id,
    )


overrides = Router("/", route_handlers=[add_override, list_overrides, remove_override], tags=["quotas"])
