"""Contract section 4: what the policy refuses, and what is left of a refusal."""

import hashlib
from typing import Any

import pytest
from tests.conftest import PassTime
from tests.factories import LIMITS, Api, Connection, audit_trail, expect_problem

CEILINGS = {"max_active": 1_000, "max_per_hour": 1_000_000, "burst": 100_000, "refill_per_second": 100_000}
SOON = "2999-01-01T00:00:00Z"


@pytest.mark.parametrize(("name", "ceiling"), CEILINGS.items())
async def test_a_limit_above_its_ceiling_is_refused_and_at_it_granted(api: Api, name: str, ceiling: int) -> None:
    """A POST is bounded by the ceilings alone."""
    refused = await api.post("/quotas", {"job_type": "scan", "limits": LIMITS | {name: ceiling + 1}})

    problem = expect_problem(refused, 422, "policy_maximum_exceeded")
    assert {key: problem[key] for key in ("limit", "maximum", "requested")} == {
        "limit": name, "maximum": ceiling, "requested": ceiling + 1,
    }  # fmt: skip
    assert (await api.get("/quotas")).json()["items"] == []
    assert (await api.quota(**{name: ceiling}))["limits"][name] == ceiling


@pytest.mark.parametrize("name", CEILINGS)
async def test_a_patch_may_raise_tenfold_and_no_further(api: Api, name: str) -> None:
    """``max_raise_factor`` times the base limit."""
    path = f"/quotas/{(await api.quota(max_active=5, max_per_hour=5, burst=5, refill_per_second=5))['quota_id']}"

    refused = await api.patch(path, {"limits": {name: 51}})

    problem = expect_problem(refused, 422, "policy_raise_too_large")
    assert (problem["limit"], problem["maximum"], problem["requested"]) == (name, 50, 51)
    assert (await api.get(path)).json()["version"] == 1
    assert (await api.patch(path, {"limits": {name: 50}})).json()["limits"][name] == 50
    assert (await api.patch(path, {"limits": {name: 500}})).json()["limits"][name] == 500


async def test_the_ceiling_is_told_before_the_factor(api: Api) -> None:
    """What no step can reach is not a matter of steps."""
    path = f"/quotas/{(await api.quota())['quota_id']}"

    expect_problem(await api.patch(path, {"limits": {"max_active": 1_001}}), 422, "policy_maximum_exceeded")


async def test_one_limit_too_many_refuses_the_whole_change(api: Api) -> None:
    """Changes are applied together or not at all."""
    path = f"/quotas/{(await api.quota())['quota_id']}"

    expect_problem(await api.patch(path, {"limits": {"burst": 9, "max_active": 51}}), 422, "policy_raise_too_large")

    assert (await api.get(path)).json()["limits"] == LIMITS


async def test_a_limit_of_zero_can_only_be_raised_by_a_new_quota(api: Api) -> None:
    """Any raise is more than ten times nothing."""
    path = f"/quotas/{(await api.quota(max_active=0))['quota_id']}"

    expect_problem(await api.patch(path, {"limits": {"max_active": 1}}), 422, "policy_raise_too_large")


async def test_lowering_is_never_refused(api: Api) -> None:
    """Down to zero in one step."""
    path = f"/quotas/{(await api.quota())['quota_id']}"

    answer = await api.patch(path, {"limits": dict.fromkeys(LIMITS, 0)})

    assert (answer.status_code, answer.json()["limits"]) == (200, dict.fromkeys(LIMITS, 0))


async def test_deleting_and_creating_again_does_not_pass_the_factor(api: Api, later: PassTime) -> None:
    """Within 24 h the factor counts from the last limits; after that the ceilings alone hold."""
    for job_type in ("scan", None):
        quota = await api.quota(job_type)
        await api.patch(f"/quotas/{quota['quota_id']}", {"limits": {"max_active": 6}})
        await api.delete(f"/quotas/{quota['quota_id']}")
        body = {"job_type": job_type, "limits": LIMITS | {"max_active": 61}}

        refused = await api.post("/quotas", body)
        assert expect_problem(refused, 422, "policy_raise_too_large")["maximum"] == 60
        await later(api.tenant_id, 86_399)
        expect_problem(await api.post("/quotas", body), 422, "policy_raise_too_large")
        await later(api.tenant_id, 10)
        assert (await api.post("/quotas", body)).status_code == 201


async def test_deleting_one_job_type_binds_no_other(api: Api) -> None:
    """The same quota is one of the same job type and tenant."""
    quota = await api.quota("scan", max_active=1)
    await api.delete(f"/quotas/{quota['quota_id']}")

    assert (await api.post("/quotas", {"job_type": "load", "limits": LIMITS | {"max_active": 500}})).status_code == 201


async def test_an_override_is_bounded_like_a_patch(api: Api) -> None:
    """By the ceilings, by the factor of the base limit, and by its length."""
    path = f"/quotas/{(await api.quota())['quota_id']}"
    await api.post(f"{path}/overrides", {"limits": {"max_active": 50}, "until": await api.in_future(days=1)})

    async def refused(limits: dict[str, int], days: float) -> dict[str, Any]:
        answer = await api.post(f"{path}/overrides", {"limits": limits, "until": await api.in_future(days=days)})
        return expect_problem(answer, 422, answer.json()["code"])

    assert (await refused({"max_active": 1_001}, 1))["code"] == "policy_maximum_exceeded"
    factor = await refused({"max_active": 51}, 1)
    assert (factor["code"], factor["maximum"]) == ("policy_raise_too_large", 50)
    long = await refused({"max_active": 6}, 7.001)
    assert (long["code"], long["maximum_seconds"]) == ("policy_override_too_long", 604_800)


async def test_a_refusal_is_audited_and_changes_nothing(api: Api, owner: Connection) -> None:
    """`quota.refused` says who wanted what, why it was refused, and the reason given, which can be erased."""
    quota = await api.quota()
    path = f"/quotas/{quota['quota_id']}"

    await api.patch(path, {"limits": {"max_active": 51}})
    await api.post("/quotas", {"job_type": "load", "limits": LIMITS | {"burst": 10**6}})
    await api.post(f"{path}/overrides", {"limits": {"burst": 11}, "until": SOON})

    patched, posted, raised = [e for e in await audit_trail(owner, api.tenant_id) if e["action"] == "quota.refused"]
    assert patched["outcome"] == posted["outcome"] == "refused"
    assert patched["resource"] == {"type": "quota", "id": quota["quota_id"]}
    assert patched["actor"] == {"type": "client", "id": "ops", "client_id": "jec_test"}
    assert patched["after"] == {"limits": {"max_active": 51}}
    assert patched["properties"]["code"] == "policy_raise_too_large"
    assert (patched["properties"]["maximum"], patched["properties"]["requested"]) == (50, 51)
    assert (posted["resource"], posted["properties"]["limit"]) == ({"type": "job_type", "id": "load"}, "burst")
    assert raised["properties"]["code"] == "policy_override_too_long"
    assert patched["reason"].keys() == patched["properties"]["quota.reason"].keys() == {"salted_sha256"}
    assert (await api.get(path)).json() == quota
    assert (await api.get(f"{path}/overrides")).json()["items"] == []


async def test_every_change_and_its_entry_commit_together(api: Api, owner: Connection) -> None:
    """The entry that ``last_change`` and the history name is there, sealed, with the limits before and after."""
    quota = await api.quota()
    path = f"/quotas/{quota['quota_id']}"
    await api.patch(path, {"limits": {"max_active": 6}})
    await api.post(f"{path}/pause", {"pause_reason": "disk full"})
    await api.post(f"{path}/resume")
    override = (
        await api.post(f"{path}/overrides", {"limits": {"burst": 11}, "until": await api.in_future(days=1)})
    ).json()
    await api.delete(f"{path}/overrides/{override['override_id']}")
    await api.delete(path)

    entries = {entry["entry_id"]: entry for entry in await audit_trail(owner, api.tenant_id)}

    assert [entry["action"] for entry in entries.values()] == [
        "quota.created", "quota.adjusted", "quota.paused", "quota.resumed", "quota.override_added",
        "quota.override_removed", "quota.deleted",
    ]  # fmt: skip
    assert entries[override["audit_entry_id"]]["action"] == "quota.override_added"
    for change in (await api.get(f"{path}/history")).json()["items"]:
        entry = entries[change["audit_entry_id"]]
        assert entry["action"] == f"quota.{change['action']}"
        assert [side and side["limits"] for side in (entry["before"], entry["after"])] == [change["from"], change["to"]]
        assert entry["token_id"]
    sealed = await (
        await owner.execute("select leaf, leaf_hash from audit_entries where tenant_id = %s", (api.tenant_id,))
    ).fetchall()
    assert all(hashlib.sha256(b"\0" + row["leaf"]).digest() == row["leaf_hash"] for row in sealed)


async def test_no_word_of_a_request_reaches_the_sealed_leaf(api: Api, owner: Connection) -> None:
    """What is hashed can never be erased, so texts of people stay out of it."""
    quota = await api.quota()
    await api.post(f"/quotas/{quota['quota_id']}/pause", {"pause_reason": "ask Nobody Inparticular"})

    leaves = str(await audit_trail(owner, api.tenant_id))
    for text in ("launch day", "OPS-1", "Inparticular"):
        assert text not in leaves
