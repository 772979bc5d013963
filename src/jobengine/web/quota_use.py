"""How much of the quotas is in use, and whether what is kept of it is right."""

from typing import Any

from litestar import Response, Router, get

from jobengine.storage.admission import open_desk
from jobengine.storage.database import Transaction
from jobengine.storage.quota_reading import Drift, SummaryItem, read_drift, summarize
from jobengine.web.edge import Edge
from jobengine.web.quotas import READ


@get("/quotas/summary", opt=READ)
async def quota_summary(edge: Edge) -> Response[dict[str, Any]]:
    """Show use, limits, pauses and denials of the last hour by job type."""

    async def work(tx: Transaction) -> object:
        return _summary([_summary_item(item) for item in await summarize(tx)])

    return await edge.read(work)


@get("/quotas/drift", opt=READ)
async def quota_drift(edge: Edge) -> Response[dict[str, Any]]:
    """Compare the use that is kept with the leases; the difference is always 0."""

    async def work(tx: Transaction) -> object:
        desk = await open_desk(tx, [row["account"] for row in await tx.all("account_names") if row["account"]])
        await desk.write()
        found = await read_drift(tx, desk.now)
        return {"drift": sum(item.amount for item in found), "items": [_drift_item(item) for item in found]}

    return await edge.read(work)


def _summary_item(item: SummaryItem) -> dict[str, Any]:
    most = item.limits.max_active
    return {
        "job_type": item.job_type,
        "quota_id": item.quota_id,
        "active": item.active,
        "max_active": most,
        "utilisation": round(item.active / most, 4) if most else None,
        "paused": item.paused,
        "denials_last_hour": dict(item.denials),
    }


def _summary(items: list[dict[str, Any]]) -> dict[str, Any]:
    by_type = [item for item in items if item["job_type"] is not None]
    totals = {
        "quotas": sum(item["quota_id"] is not None for item in items),
        "paused": sum(item["paused"] for item in items),
        "active": sum(item["active"] for item in by_type),
        "denials_last_hour": sum(sum(item["denials_last_hour"].values()) for item in items),
    }
    return {"totals": totals, "items": items}


def _drift_item(item: Drift) -> dict[str, Any]:
    names = ("active", "active_backfill", "granted_last_hour")
    return {
        "job_type": item.job_type,
        "kept": dict(zip(names, item.kept, strict=True)),
        "recomputed": dict(zip(names, item.recomputed, strict=True)),
        "drift": item.amount,
    }


quota_use = Router("/", route_handlers=[quota_summary, quota_drift], tags=["quotas"])
