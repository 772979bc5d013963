"""An apply in several hands at once: each change is made once, and what nobody expected stops it."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

import httpx2
import pytest
from tests.factories import Api, Connection, audit_trail, make_api, new_tenant

from jobengine.bootstrap import Plane
from jobengine.errors import Conflict
from jobengine.storage.governance_work import GovernanceWork

HANDS = 5
LOOKS = 1_200


@dataclass(frozen=True, slots=True)
class Shared:
    """Eight tenants of 10 slots each that share a pool, and who governs it."""

    governor: Api
    tenants: list[Api]
    job_type: str

    async def start(self, capacity: int) -> None:
        """Write the pool down, with rising weights, and start to apply it."""
        path = f"/allocations/{self.job_type}"
        named = [{"tenant_id": api.tenant_id, "weight": n + 1} for n, api in enumerate(self.tenants)]
        put = await self.governor.put(path, {"capacity": capacity, "strategy": "proportional", "tenants": named})
        assert put.is_success, put.text
        token = (await self.governor.post(f"{path}/plan")).json()["plan_token"]
        assert (await self.governor.post(f"{path}/apply", {"plan_token": token})).status_code == 202

    async def pool(self) -> dict[str, Any]:
        """Return the pool."""
        return (await self.governor.get(f"/allocations/{self.job_type}")).json()

    async def ended(self) -> dict[str, Any]:
        """Return the pool when its apply has ended."""
        for _ in range(LOOKS):
            if (found := await self.pool())["status"] != "applying":
                return found
            await asyncio.sleep(0.05)
        raise AssertionError("the apply does not end")


@pytest.fixture
async def shared(client: httpx2.AsyncClient, plane: Plane, governor: Api) -> Shared:
    """Eight tenants, with a quota each."""
    found = Shared(governor, [], f"pool-{token_hex(6)}")
    for tenant_id in sorted([await new_tenant(plane) for _ in range(8)]):
        found.tenants.append(make_api(client, plane, tenant_id))
        await found.tenants[-1].quota(found.job_type, max_active=10)
    return found


async def test_an_apply_that_many_hands_carry_at_once_changes_each_quota_once(
    shared: Shared, plane: Plane, owner: Connection
) -> None:
    """Even where nobody's claim holds: marks and locks in the tenants decide, not the claim."""
    await shared.start(80)

    async def carry(name: str) -> None:
        work = GovernanceWork(plane.database, name)
        while (await shared.pool())["status"] == "applying":
            steal = "update allocations set worker = null, worked_until = '-infinity' where job_type = %s"
            await owner.execute(steal, (shared.job_type,))
            with suppress(Conflict):  # two who make one quota, or lock in each other's way: the next step goes on
                await work.step()

    await asyncio.gather(*[carry(f"hand-{n}") for n in range(HANDS)])

    ended = await shared.pool()
    assert (ended["status"], ended["apply"]["done"]) == ("applied", 8)
    for api, share in zip(shared.tenants, [2, 4, 7, 9, 11, 13, 16, 18], strict=True):
        [quota] = (await api.get("/quotas", params={"job_type": shared.job_type})).json()["items"]
        assert (quota["limits"]["max_active"], quota["version"]) == (share, 2)
        assert [entry["action"] for entry in await audit_trail(owner, api.tenant_id)][1:] == ["quota.adjusted"]


async def test_a_quota_that_changed_under_way_stops_the_apply_and_the_log_says_so(
    shared: Shared, owner: Connection
) -> None:
    """Here a limit is lowered by hand between the plan and its turn; nobody is raised."""
    victim = shared.tenants[3]
    [quota] = (await victim.get("/quotas", params={"job_type": shared.job_type})).json()["items"]
    async with owner.transaction():
        # Held from before the plan until after the apply began: its step waits here, and finds another limit.
        lower = "update quotas set max_active = 3 where quota_id = %s"
        await owner.execute(lower, (quota["quota_id"],))
        await shared.start(200)

    ended = await shared.ended()

    assert (ended["status"], ended["apply"]["stopped_by"]) == ("stopped", victim.tenant_id)
    last = [e for e in await audit_trail(owner, "_platform") if (e["resource"] or {}).get("id") == shared.job_type][-1]
    assert (last["action"], last["outcome"], last["actor"]["type"]) == ("allocation.applied", "failure", "system")
