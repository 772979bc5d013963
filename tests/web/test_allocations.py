"""Contract section 9: pools of slots that tenants share, planned and put into effect."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

import httpx2
import pytest
from tests.factories import LIMITS, Api, Connection, audit_trail, expect_problem, make_api, new_tenant

from jobengine.bootstrap import Plane

APPLY_LOOKS = 600


@dataclass(frozen=True, slots=True)
class Pool:
    """Three tenants that share one job type, and who governs them; *path* is that of their pool."""

    governor: Api
    tenants: tuple[Api, Api, Api]
    job_type: str

    @property
    def path(self) -> str:
        """Where the pool is."""
        return f"/allocations/{self.job_type}"

    def body(self, *said: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
        """Return a pool of 100 slots shared by weight; *said* are further members of each tenant."""
        named = [
            {"tenant_id": api.tenant_id, **more} for api, more in zip(self.tenants, said or ({},) * 3, strict=True)
        ]
        return {"capacity": 100, "strategy": "proportional", "tenants": named, **changes}

    async def put(self, *said: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
        """Write the pool down."""
        answer = await self.governor.put(self.path, self.body(*said, **changes))
        assert answer.status_code in {200, 201}, answer.text
        return answer.json()

    async def plan(self) -> dict[str, Any]:
        """Plan."""
        answer = await self.governor.post(f"{self.path}/plan")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def apply(self, governor: Api | None = None) -> dict[str, Any]:
        """Plan and apply, and return the pool when it has ended."""
        token = (await self.plan())["plan_token"]
        answer = await (governor or self.governor).post(f"{self.path}/apply", {"plan_token": token})
        assert (answer.status_code, answer.json()["status"]) == (202, "applying"), answer.text
        return await self.ended()

    async def ended(self) -> dict[str, Any]:
        """Return the pool when nothing of it is under way."""
        for _ in range(APPLY_LOOKS):
            found = (await self.governor.get(self.path)).json()
            if found["status"] != "applying":
                return found
            await asyncio.sleep(0.1)
        raise AssertionError("the apply does not end")

    async def limits(self) -> list[int | None]:
        """Return the slots of each tenant, None where it has no quota."""
        return [quota and quota["limits"]["max_active"] for quota in [await self.quota(api) for api in self.tenants]]

    async def quota(self, api: Api) -> dict[str, Any] | None:
        """Return one tenant's quota."""
        items = (await api.get("/quotas", params={"job_type": self.job_type})).json()["items"]
        return items[0] if items else None


@pytest.fixture
async def pool(client: httpx2.AsyncClient, plane: Plane, governor: Api) -> AsyncIterator[Pool]:
    """Three tenants, with 30, 5 and no slots of their own."""
    tenants = tuple(sorted([await new_tenant(plane) for _ in range(3)]))
    first, second, third = (make_api(client, plane, tenant_id) for tenant_id in tenants)
    made = Pool(governor, (first, second, third), f"pool-{token_hex(6)}")
    await first.quota(made.job_type, max_active=30)
    await second.quota(made.job_type, max_active=5)
    yield made
    await governor.delete(made.path)


async def test_a_pool_is_read_as_it_was_written(pool: Pool) -> None:
    """What was left out has its default; the version is its ETag."""
    answer = await pool.governor.put(pool.path, pool.body({"weight": 3}, {}, {"reserved": 2, "max_limit": 9}))

    made = answer.json()
    assert (answer.status_code, answer.headers["etag"], answer.headers["location"]) == (
        201, '"1"', f"/api/v1{pool.path}",
    )  # fmt: skip
    usual = {"weight": 1, "priority": 0, "reserved": 0, "max_limit": None, "demand": None}
    said = [{"weight": 3}, {}, {"reserved": 2, "max_limit": 9}]
    named = zip(pool.tenants, said, strict=True)
    assert made["tenants"] == [{"tenant_id": api.tenant_id, **usual, **more} for api, more in named]
    assert (made["capacity"], made["strategy"], made["status"], made["apply"]) == (100, "proportional", "draft", None)
    assert (await pool.governor.get(pool.path)).json() == made
    listed = (await pool.governor.get("/allocations", params={"page_size": 500})).json()["items"]
    assert made in listed


async def test_a_plan_says_what_would_become_of_each_tenant_and_changes_nothing(pool: Pool) -> None:
    """A tenant without a quota has the default limits; what it uses now stands beside."""
    await pool.put()
    await pool.tenants[0].admit(pool.job_type, slots=7)

    plan = await pool.plan()

    told = [(t["from"], t["to"], t["active"]) for t in plan["tenants"]]
    assert told == [(30, 34, 7), (5, 33, 0), (10, 33, 0)]
    assert [t["tenant_id"] for t in plan["tenants"]] == [api.tenant_id for api in pool.tenants]
    assert (plan["allocated"], plan["unallocated"]) == (100, 0)
    assert await pool.limits() == [30, 5, None]
    assert (await pool.plan())["plan_token"] == plan["plan_token"]


@pytest.mark.parametrize(
    ("strategy", "said", "expected"),
    [
        ("unlimited", ({}, {}, {}), [1_000, 1_000, 1_000]),
        ("proportional", ({"weight": 2}, {}, {}), [50, 25, 25]),
        ("priority", ({}, {"priority": 2, "demand": 60}, {"priority": 1, "max_limit": 30}), [10, 60, 30]),
        ("reserved", ({"reserved": 40}, {}, {}), [60, 20, 20]),
        ("max_limit", ({"max_limit": 10}, {}, {"weight": 2}), [10, 30, 60]),
    ],
)
async def test_an_apply_gives_each_tenant_its_share(
    pool: Pool, strategy: str, said: tuple[dict[str, int], ...], expected: list[int]
) -> None:
    """By each strategy; a tenant without a quota gets one, and the other limits stay."""
    await pool.put(*said, strategy=strategy)

    ended = await pool.apply()

    assert (ended["status"], ended["apply"]["done"], ended["apply"]["total"]) == ("applied", 3, 3)
    assert await pool.limits() == expected
    quota = await pool.quota(pool.tenants[0])
    assert quota
    assert quota["limits"] == LIMITS | {"max_active": expected[0]}


async def test_an_apply_is_audited_in_each_tenants_log_and_once_in_the_platforms(pool: Pool, owner: Connection) -> None:
    """With the operator's reason; the entries name each other."""
    await pool.put()
    ended = await pool.apply()

    platform = [e for e in await audit_trail(owner, "_platform") if (e["resource"] or {}).get("id") == pool.job_type]
    assert [(e["action"], e["actor"]["id"]) for e in platform] == [
        ("allocation.changed", "governor"), ("allocation.applied", "governor"),
    ]  # fmt: skip
    assert platform[-1]["entry_id"] == ended["apply"]["audit_entry_id"]
    quota = await pool.quota(pool.tenants[1])
    assert quota
    change = quota["last_change"]
    assert (change["action"], change["reason"], change["ticket"]) == ("adjusted", "launch day", "OPS-1")
    entry = (await audit_trail(owner, pool.tenants[1].tenant_id))[-1]
    assert entry["actor"] == {"type": "client", "id": "governor", "client_id": "jec_governor"}
    assert entry["properties"]["apply_entry_id"] == ended["apply"]["audit_entry_id"]
    assert (entry["before"]["limits"]["max_active"], entry["after"]["limits"]["max_active"]) == (5, 33)


async def test_slots_of_a_named_tenant_are_raised_by_applying_alone(pool: Pool) -> None:
    """PATCH, POST and overrides are refused; lowering, other limits and pauses are not."""
    await pool.put()
    first, _, third = pool.tenants
    path = f"/quotas/{(await pool.quota(first) or {})['quota_id']}"
    raised = {"limits": {"max_active": 31}, "until": await first.in_future(hours=1)}

    for answer in (
        await first.patch(path, {"limits": {"max_active": 31}}),
        await first.post(f"{path}/overrides", raised),
        await third.post("/quotas", {"job_type": pool.job_type, "limits": LIMITS | {"max_active": 11}}),
    ):
        assert expect_problem(answer, 422, "allocation_exceeded")["limit"] == "max_active"
    assert (await first.patch(path, {"limits": {"max_active": 20, "burst": 50}})).status_code == 200
    assert (await first.post(f"{path}/pause")).status_code == 200
    assert (await third.quota(pool.job_type, max_active=10))["limits"]["max_active"] == 10
    low = f"/quotas/{(await pool.quota(pool.tenants[1]) or {})['quota_id']}"
    expect_problem(await pool.tenants[1].delete(low), 422, "allocation_exceeded")
    assert (await first.delete(path)).status_code == 204


async def test_a_quota_shows_its_part_in_the_pool(pool: Pool) -> None:
    """Each tenant sees its own part and no other's; without a pool it is null."""
    first = pool.tenants[0]
    assert (await pool.quota(first) or {})["allocation"] is None

    await pool.put({"weight": 3, "max_limit": 80}, {"reserved": 7}, {})

    assert (await pool.quota(first) or {})["allocation"] == {
        "capacity": 100, "strategy": "proportional", "weight": 3, "priority": 0, "reserved": 0, "max_limit": 80,
    }  # fmt: skip
    assert (await pool.quota(pool.tenants[1]) or {})["allocation"]["reserved"] == 7
    assert (await pool.governor.delete(pool.path)).status_code == 204
    assert (await pool.quota(first) or {})["allocation"] is None


async def test_a_plan_that_is_no_longer_true_is_not_applied(pool: Pool) -> None:
    """Whether a quota or the pool has changed meanwhile; nothing is done."""
    first = pool.tenants[0]
    await pool.put()
    stale = (await pool.plan())["plan_token"]
    path = f"/quotas/{(await pool.quota(first) or {})['quota_id']}"
    await first.patch(path, {"limits": {"max_active": 29}})
    expect_problem(await pool.governor.post(f"{pool.path}/apply", {"plan_token": stale}), 409, "plan_changed")
    stale = (await pool.plan())["plan_token"]
    await pool.put(capacity=90)
    expect_problem(await pool.governor.post(f"{pool.path}/apply", {"plan_token": stale}), 409, "plan_changed")
    assert await pool.limits() == [29, 5, None]


async def test_an_override_of_slots_is_ended_before_a_pool_is_planned(pool: Pool) -> None:
    """Its slots would come on top of the capacity."""
    first = pool.tenants[0]
    path = f"/quotas/{(await pool.quota(first) or {})['quota_id']}/overrides"
    override = (await first.post(path, {"limits": {"max_active": 40}, "until": await first.in_future(hours=1)})).json()
    await pool.put()

    expect_problem(await pool.governor.post(f"{pool.path}/plan"), 422, "allocation_impossible")
    await first.delete(f"{path}/{override['override_id']}")

    assert (await pool.apply())["status"] == "applied"


@pytest.mark.parametrize(
    ("said", "changes", "code"),
    [
        (({"reserved": 60}, {"reserved": 41}, {}), {"strategy": "reserved"}, "allocation_impossible"),
        (({"reserved": 1_001}, {}, {}), {"capacity": 5_000}, "allocation_impossible"),
        (({"reserved": 9, "max_limit": 8}, {}, {}), {}, "validation_failed"),
        (({}, {}, {"tenant_id": "t-nobody"}), {}, "validation_failed"),
        (({"weight": -1}, {}, {}), {}, "validation_failed"),
        (({"weight": 0.5}, {}, {}), {}, "validation_failed"),
        (({}, {}, {}), {"capacity": None}, "validation_failed"),
        (({}, {}, {}), {"capacity": -1}, "validation_failed"),
        (({}, {}, {}), {"strategy": "fair"}, "validation_failed"),
        (({}, {}, {}), {"tenants": []}, "validation_failed"),
        (({}, {}, {}), {"tenants": [{"tenant_id": "a"}] * 1_001}, "validation_failed"),
        (({}, {}, {}), {"tenants": [{"tenant_id": "a"}, {"tenant_id": "a"}]}, "validation_failed"),
        (({"share": 1}, {}, {}), {}, "unknown_field"),
    ],
)
async def test_a_pool_that_cannot_be_is_refused_whole(
    pool: Pool, said: tuple[dict[str, Any], ...], changes: dict[str, Any], code: str
) -> None:
    """Nothing of it is stored."""
    expect_problem(await pool.governor.put(pool.path, pool.body(*said, **changes)), 422, code)
    expect_problem(await pool.governor.get(pool.path), 404, "not_found")


async def test_a_capacity_is_raised_as_far_as_the_factor(pool: Pool, owner: Connection) -> None:
    """Judged once, on the pool; the refusal stands in the platform's log."""
    await pool.put(capacity=10)

    problem = expect_problem(await pool.governor.put(pool.path, pool.body(capacity=101)), 422, "policy_raise_too_large")

    assert (problem["limit"], problem["maximum"], problem["requested"]) == ("capacity", 100, 101)
    refused = [e for e in await audit_trail(owner, "_platform") if (e["resource"] or {}).get("id") == pool.job_type]
    assert (refused[-1]["action"], refused[-1]["outcome"]) == ("quota.refused", "refused")
    assert (await pool.put(capacity=100))["version"] == 2


async def test_a_stale_version_of_a_pool_changes_nothing(pool: Pool) -> None:
    """By If-Match, for PUT and DELETE."""
    await pool.put()
    await pool.put(capacity=90)
    stale = {"headers": {"If-Match": '"1"'}}

    expect_problem(await pool.governor.put(pool.path, pool.body(), **stale), 412, "version_conflict")
    expect_problem(await pool.governor.delete(pool.path, **stale), 412, "version_conflict")
    assert (await pool.governor.delete(pool.path, headers={"If-Match": '"2"'})).status_code == 204
    expect_problem(await pool.governor.delete(pool.path), 404, "not_found")


@pytest.mark.parametrize("scope", ["orch:read", "orch:quota", "orch:audit"])
async def test_pools_are_for_governors_alone(pool: Pool, scope: str) -> None:
    """A pool tells of several tenants."""
    somebody = pool.tenants[0].speaking(scope, quota_reason="launch day")
    for method, path in (
        ("GET", "/allocations"),
        ("GET", pool.path),
        ("DELETE", pool.path),
        ("POST", f"{pool.path}/plan"),
    ):
        expect_problem(await somebody.send(method, path), 403, "insufficient_scope")
    expect_problem(await somebody.put(pool.path, pool.body()), 403, "insufficient_scope")
    expect_problem(await somebody.post(f"{pool.path}/apply", {"plan_token": "x"}), 403, "insufficient_scope")


async def test_a_governor_says_why_a_pool_changes(pool: Pool) -> None:
    """Without a valid reason nothing is written, applied or deleted."""
    await pool.put()
    silent = pool.governor.speaking("orch:govern")
    token = (await pool.plan())["plan_token"]

    for answer in (
        await silent.put(pool.path, pool.body(capacity=5)),
        await silent.delete(pool.path),
        await silent.post(f"{pool.path}/apply", {"plan_token": token}),
    ):
        expect_problem(answer, 400, "quota_reason_required")
    assert (await pool.governor.get(pool.path)).json()["version"] == 1


@pytest.mark.usefixtures("any_policy")
async def test_a_raise_beyond_the_factor_of_approval_is_applied_by_a_second_person(pool: Pool) -> None:
    """Judged once, on what the tenants have together: whoever wrote the pool does not apply it."""
    await pool.governor.put("/policy", {"approval_above": 2})
    await pool.put()
    token = (await pool.plan())["plan_token"]

    refused = await pool.governor.post(f"{pool.path}/apply", {"plan_token": token})
    expect_problem(refused, 403, "same_person")
    again = pool.governor.speaking("orch:govern", owner="governor", client_id="jec_other", quota_reason="launch day")
    expect_problem(await again.post(f"{pool.path}/apply", {"plan_token": token}), 403, "same_person")
    assert await pool.limits() == [30, 5, None]
    second = pool.governor.speaking("orch:govern", owner="chief", quota_reason="I have seen it")

    assert (await pool.apply(second))["apply"]["started_by"] == "chief"
    assert await pool.limits() == [34, 33, 33]
    await pool.put(capacity=60)
    assert (await pool.apply())["status"] == "applied"
