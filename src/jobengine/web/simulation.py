"""Limits tried on what was asked in the past, before anybody sets them."""

from datetime import datetime, timedelta
from typing import Annotated, Any

import msgspec
from litestar import Response, Router, post

from jobengine.bootstrap import Plane
from jobengine.clock import utc_now
from jobengine.errors import JobengineError, Malformed, NotFound, ValidationFailed
from jobengine.quota.admission import WHOLE_TENANT
from jobengine.quota.model import Limits
from jobengine.storage.asks import read_extent
from jobengine.storage.database import Transaction
from jobengine.storage.quota_reading import read_quotas
from jobengine.storage.simulator import MOST_ASKS
from jobengine.web.edge import Answer, Edge, known_id, needs, respond
from jobengine.web.limits import SomeLimits, read_some_limits
from jobengine.web.times import read_time

BRIEF = timedelta(days=1)
MOST_ASKS_OF_A_VIEW = 100_000

_Count = Annotated[int, msgspec.Meta(ge=0)]


class Trial(msgspec.Struct, forbid_unknown_fields=True):
    """Limits to try; those left out are the quota's own of today. Without *since*: as far back as the record goes."""

    limits: SomeLimits
    since: str | None = None


class SimulationView(msgspec.Struct):
    """What became of the asks under this quota then (*granted*, *denied*), and what would have (*would_grant*, …).

    *peak_active*: the most slots held at once in the replay. *wait_p95_seconds*: 19 of 20 asks would have waited no
    longer until the same ask would have been granted, a granted one 0; null where that moment is not in the record.
    *result_hash*: SHA-256 over what was asked, of which asks, and each decision; the same on the same record.
    """

    asks: _Count
    granted: _Count
    denied: _Count
    would_grant: _Count
    would_deny: _Count
    peak_active: _Count
    wait_p95_seconds: float | None
    result_hash: str


@post("/quotas/{quota_id:str}/simulate", opt=needs("orch:read", "orch:quota"), status_code=200)
async def simulate_quota(edge: Edge, quota_id: str, data: Trial) -> Response[SimulationView]:
    """Decide the recorded asks of up to the last 30 days again, under other limits; changes nothing."""
    changes = read_some_limits(data.limits)
    async with edge.plane.database.transaction(edge.tenant_id) as tx:
        found = await read_quotas(tx, quota_id=known_id(quota_id, "quota"))
        if not found:
            raise NotFound("there is no such quota")
        quota = found[0].quota
        since = _since(tx, edge.plane, data.since)
    view = await run(edge.plane, edge.tenant_id, quota.job_type, quota.limits.changed(changes), since)
    answer: Response[Any] = respond(Answer(200, view), edge.trace_id)
    return answer


async def brief(plane: Plane, tenant_id: str, job_type: str | None, limits: Limits) -> SimulationView | None:
    """Return what *limits* would have done in the last day; None where that cannot be told at once."""
    try:
        return await run(plane, tenant_id, job_type, limits, utc_now() - BRIEF, most=MOST_ASKS_OF_A_VIEW)
    except JobengineError:
        return None


async def run(
    plane: Plane, tenant_id: str, job_type: str | None, limits: Limits, since: datetime, *, most: int = MOST_ASKS
) -> SimulationView:
    """Return what *limits* would have done from *since* on; raises Malformed `too_many_asks` above *most*."""
    async with plane.database.transaction(tenant_id) as tx:
        extent = await read_extent(tx, since, _retention(plane))
    if extent.asked > most:
        detail = f"{extent.asked} asks were recorded since then, {most} can be replayed: name a later since"
        raise Malformed(detail, code="too_many_asks", asks=extent.asked, maximum=most)
    found = await plane.simulator.replay(tenant_id, job_type or WHOLE_TENANT, limits, extent)
    return msgspec.convert(found, SimulationView)


def _since(tx: Transaction, plane: Plane, since: str | None) -> datetime:
    longest = _retention(plane)
    if since is None:
        return tx.now - longest
    found = read_time("since", since)
    if not timedelta(0) <= tx.now - found <= longest:
        path, message = "since", f"must lie in the last {longest.days} days"
        raise ValidationFailed(path, message)
    return found


def _retention(plane: Plane) -> timedelta:
    return timedelta(days=plane.settings.ask_retention_days)


simulation = Router("/", route_handlers=[simulate_quota], tags=["quotas"])
