"""One resource of every kind that a tenant can have, as the API shows it."""

import asyncio
from typing import Any

from tests.backfilling import Crew
from tests.factories import Api

LOOKS = 100
PAUSE_SECONDS = 0.05


async def every_resource(api: Api) -> dict[str, Any]:
    """Fill a tenant and return the answers that show what is in it, by path."""
    path = f"/quotas/{(await api.quota())['quota_id']}"
    crew = Crew(api)
    await api.post(f"{path}/overrides", {"limits": {"max_active": 7}, "until": await api.in_future(hours=1)})
    await api.quota("external")
    lease = (await api.admit(slots=5)).json()
    denied = await api.admit(slots=5)
    backfill = await crew.start(2)
    [batch] = await _claimed(crew)
    beat = await api.post(f"/batches/{batch['batch_id']}/heartbeat", {"fencing_token": batch["fencing_token"]})
    entry = backfill["audit_entry_id"]
    await _placed(api, entry)
    reads = [
        path, "/quotas", f"{path}/history", f"{path}/overrides", "/quotas/summary", "/quotas/drift", "/policy",
        "/admissions", "/backfills", f"/backfills/{backfill['backfill_id']}",
        f"/backfills/{backfill['backfill_id']}/batches", "/audit/entries", f"/audit/entries/{entry}",
        f"/audit/entries/{entry}/proof", "/audit/verify",
    ]  # fmt: skip
    shown = {read: (await api.get(read)).json() for read in reads}
    return {**shown, "lease": lease, "denied": denied.json(), "batch": batch, "heartbeat": beat.json()}


async def _claimed(crew: Crew) -> list[Any]:
    for _ in range(LOOKS):
        if found := await crew.claim():
            return found
        await asyncio.sleep(PAUSE_SECONDS)
    raise AssertionError("no batch is ready")


async def _placed(api: Api, entry_id: str) -> None:
    for _ in range(LOOKS):
        if (await api.get(f"/audit/entries/{entry_id}")).json()["sequence"] is not None:
            return
        await asyncio.sleep(PAUSE_SECONDS)
    raise AssertionError("the entry has no place in the log")
