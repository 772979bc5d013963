"""Contract section 4: the platform's policy and who may change it."""

import asyncio
from typing import Any

import pytest
from tests.factories import Api, Connection, audit_trail, expect_problem

from jobengine.quota.policy import FIRST_POLICY

pytestmark = pytest.mark.usefixtures("any_policy")


async def current(api: Api) -> dict[str, Any]:
    return (await api.get("/policy")).json()


async def test_the_first_policy_is_that_of_the_contract(api: Api) -> None:
    """Every reader sees it, with its version as ETag."""
    answer = await api.speaking("orch:read").get("/policy")

    version = answer.json()["version"]
    assert answer.headers["etag"] == f'"{version}"'
    assert answer.json() == {
        "ceilings": {"max_active": 1_000, "max_per_hour": 1_000_000, "burst": 100_000, "refill_per_second": 100_000},
        "default_limits": {"max_active": 10, "max_per_hour": 1_000, "burst": 20, "refill_per_second": 1},
        "max_raise_factor": 10,
        "max_override_duration": "P7D",
        "backfill_share": 0.5,
        "approval_above": None,
        "approval_expires": "PT24H",
        "version": version,
    }


async def test_a_governor_changes_some_members_and_the_others_stay(governor: Api) -> None:
    """Within ``ceilings`` and ``default_limits`` too; durations are echoed as sent."""
    before = await current(governor)

    answer = await governor.put("/policy", {"ceilings": {"max_active": 2_000}, "max_override_duration": "P1DT12H"})

    expected = before | {
        "ceilings": before["ceilings"] | {"max_active": 2_000},
        "max_override_duration": "P1DT12H",
        "version": before["version"] + 1,
    }
    assert (answer.status_code, answer.json()) == (200, expected)
    assert answer.headers["etag"] == f'"{expected["version"]}"'
    assert await current(governor) == expected


@pytest.mark.parametrize("scope", ["orch:quota", "orch:read", "orch:audit"])
async def test_nobody_but_a_governor_changes_the_policy(api: Api, scope: str) -> None:
    """An admin of one tenant rules that tenant."""
    answer = await api.speaking(scope, quota_reason="launch day").put("/policy", {"max_raise_factor": 100})

    expect_problem(answer, 403, "insufficient_scope")


async def test_a_governor_says_why(governor: Api) -> None:
    """Without a valid ``quota_reason`` nothing changes."""
    before = await current(governor)

    answer = await governor.speaking("orch:govern").put("/policy", {"max_raise_factor": 100})

    expect_problem(answer, 400, "quota_reason_required")
    assert await current(governor) == before


async def test_a_change_of_the_policy_stands_in_the_platforms_log(governor: Api, owner: Connection) -> None:
    """And in no tenant's."""
    before = await current(governor)
    await governor.put("/policy", {"max_raise_factor": 3})

    entry = (await audit_trail(owner, "_platform"))[-1]
    assert (entry["action"], entry["tenant_id"], entry["actor"]["id"]) == ("policy.changed", None, "governor")
    assert (entry["before"]["max_raise_factor"], entry["after"]["max_raise_factor"]) == (before["max_raise_factor"], 3)
    assert entry["properties"]["quota.reason"].keys() == {"salted_sha256"}
    assert await audit_trail(owner, governor.tenant_id) == []


async def test_a_stale_version_changes_nothing(governor: Api) -> None:
    """By ``If-Match`` or by the ``version`` member: 412 names the present one."""
    before = await current(governor)
    stale = before["version"] - 1

    for answer in (
        await governor.put("/policy", {"max_raise_factor": 3}, headers={"If-Match": f'"{stale}"'}),
        await governor.put("/policy", {"max_raise_factor": 3, "version": stale}),
    ):
        assert expect_problem(answer, 412, "version_conflict")["version"] == before["version"]

    assert await current(governor) == before
    fresh = {"If-Match": f'"{before["version"]}"'}
    assert (await governor.put("/policy", {"version": before["version"]}, headers=fresh)).status_code == 200


async def test_concurrent_changes_of_different_members_all_count(governor: Api) -> None:
    """Without a version nobody is refused, and nobody's member is overwritten by another's old one."""
    before = await current(governor)
    changes = [{"ceilings": {"max_active": 2_000}}, {"max_raise_factor": 3}, {"backfill_share": 0.25}] * 3

    answers = await asyncio.gather(*[governor.put("/policy", change) for change in changes])

    after = await current(governor)
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(answer.json()["version"] - before["version"] for answer in answers) == list(range(1, 10))
    assert (after["ceilings"]["max_active"], after["max_raise_factor"], after["backfill_share"]) == (2_000, 3, 0.25)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"max_raise_factor": 0.5}, "max_raise_factor"),
        ({"backfill_share": 1.5}, "backfill_share"),
        ({"backfill_share": -0.1}, "backfill_share"),
        ({"max_override_duration": "P1M"}, "max_override_duration"),
        ({"max_override_duration": "P0D"}, "max_override_duration"),
        ({"max_override_duration": "7 days"}, "max_override_duration"),
        ({"approval_expires": ""}, "approval_expires"),
        ({"ceilings": {"max_active": -1}}, "ceilings.max_active"),
        ({"ceilings": {"max_active": 9}}, "default_limits.max_active"),
        ({"default_limits": {"max_active": 1_001}}, "default_limits.max_active"),
        ({"default_limits": {"refill_per_second": 0.1234567}}, "default_limits.refill_per_second"),
        ({"version": "1"}, "version"),
    ],
)
async def test_a_policy_that_cannot_hold_is_a_wrong_value(governor: Api, body: object, path: str) -> None:
    """Ranges, durations of fixed length, and defaults below their own ceilings."""
    before = await current(governor)

    answer = await governor.put("/policy", body)

    assert expect_problem(answer, 422, "validation_failed")["errors"][0]["path"] == path
    assert await current(governor) == before


async def test_an_unknown_member_of_the_policy_is_refused(governor: Api) -> None:
    """A misspelled ceiling would not hold anybody back."""
    expect_problem(await governor.put("/policy", {"ceiling": {"max_active": 1}}), 422, "unknown_field")
    expect_problem(await governor.put("/policy", {"ceilings": {"max_actve": 1}}), 422, "unknown_field")


async def test_the_next_change_of_a_quota_is_judged_by_the_new_policy(governor: Api, api: Api) -> None:
    """Ceilings, factor and length of overrides."""
    path = f"/quotas/{(await api.quota())['quota_id']}"
    await governor.put("/policy", {"ceilings": {"max_active": 12}, "max_raise_factor": 2})

    expect_problem(await api.patch(path, {"limits": {"max_active": 13}}), 422, "policy_maximum_exceeded")
    expect_problem(await api.patch(path, {"limits": {"max_active": 11}}), 422, "policy_raise_too_large")
    assert (await api.patch(path, {"limits": {"max_active": 10}})).status_code == 200


async def test_the_next_admission_without_a_quota_counts_with_the_new_defaults(governor: Api, api: Api) -> None:
    """Defaults are read, never copied."""
    await governor.put("/policy", {"default_limits": {"max_active": 2}})

    assert expect_problem(await api.admit(slots=3), 422, "slots_exceed_limit")["maximum"] == 2
    assert (await api.admit(slots=2)).status_code == 201


async def test_the_first_policy_is_what_the_code_calls_it() -> None:
    """The fixture that puts it back would hide a change otherwise."""
    assert FIRST_POLICY.version == 1
