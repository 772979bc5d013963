"""Contract section 9: raises that wait for a second person, emergencies, and what tenants ask for themselves."""

import asyncio
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from tests.conftest import PassTime
from tests.factories import LIMITS, Api, Connection, audit_trail, expect_problem

from jobengine.clock import parse_time

pytestmark = pytest.mark.usefixtures("any_policy")

WORDS = {"quota_reason": "launch day", "quota_ticket": "OPS-1"}


@pytest.fixture(autouse=True)
async def _above_double(governor: Api) -> None:
    """Whatever more than doubles a limit waits."""
    assert (await governor.put("/policy", {"approval_above": 2})).status_code == 200


@pytest.fixture
def second(api: Api) -> Api:
    """Another owner of the same tenant who may change quotas."""
    return api.speaking("orch:quota", owner="boss", client_id="jec_boss", quota_reason="seen and agreed")


@pytest.fixture
async def path(api: Api) -> str:
    """A quota of 5 slots."""
    return f"/quotas/{(await api.quota())['quota_id']}"


def waits(answer: httpx2.Response) -> dict[str, Any]:
    """Return the change that *answer* makes wait."""
    assert (answer.status_code, answer.json()["status"]) == (202, "pending"), answer.text
    assert answer.headers["location"] == f"/api/v1/quota-changes/{answer.json()['change_id']}"
    return answer.json()


async def slots(api: Api, path: str) -> int:
    return (await api.get(path)).json()["effective_limits"]["max_active"]


async def test_a_raise_beyond_the_factor_waits_and_changes_nothing(api: Api, path: str) -> None:
    """Exactly the factor is made at once; the change says who, why, from, to, and what is in use."""
    assert (await api.patch(path, {"limits": {"max_active": 10}})).status_code == 200
    await api.admit(slots=3)
    change = waits(await api.patch(path, {"limits": {"max_active": 21}}))

    shown = (await api.speaking("orch:read").get(f"/quota-changes/{change['change_id']}")).json()

    assert {**shown, "simulation": None, "usage": change["usage"]} == change
    assert (shown["requested_by"], shown["reason"], shown["ticket"]) == ("ops", "launch day", "OPS-1")
    assert (shown["kind"], shown["origin"], shown["job_type"]) == ("adjust", "operator", "scan")
    assert (shown["from"], shown["to"]) == (LIMITS | {"max_active": 10}, LIMITS | {"max_active": 21})
    assert shown["usage"]["active"] == 3
    assert {name: shown["simulation"][name] for name in ("asks", "granted", "would_grant", "peak_active")} == {
        "asks": 1, "granted": 1, "would_grant": 1, "peak_active": 3,
    }  # fmt: skip
    assert parse_time(shown["expires_at"]) - parse_time(shown["requested_at"]) == timedelta(hours=24)
    assert (await slots(api, path), (await api.get(path)).json()["version"]) == (10, 2)


async def test_another_owner_approves_and_both_stand_in_the_log(
    api: Api, second: Api, path: str, owner: Connection
) -> None:
    """The limits change with the approval; the comment can be read with the change."""
    change = waits(await api.patch(path, {"limits": {"max_active": 11}}))

    answer = await second.post(f"/quota-changes/{change['change_id']}/approve", {"comment": "go ahead"})

    decided = answer.json()
    assert (answer.status_code, decided["status"], decided["decided_by"]) == (200, "approved", "boss")
    assert (decided["comment"], decided["reason"]) == ("go ahead", "launch day")
    assert await slots(api, path) == 11
    *_, adjusted, approved = await audit_trail(owner, api.tenant_id)
    assert [adjusted["action"], approved["action"]] == ["quota.adjusted", "quota.change_approved"]
    assert (adjusted["properties"]["requested_by"], adjusted["properties"]["approved_by"]) == ("ops", "boss")
    assert adjusted["properties"]["request_entry_id"] == change["audit_entry_id"]
    assert approved["properties"]["comment.reason"].keys() == {"salted_sha256"}


async def test_another_owner_rejects(api: Api, second: Api, path: str, owner: Connection) -> None:
    """Nothing changes, and nobody can decide again."""
    change = waits(await api.patch(path, {"limits": {"max_active": 11}}))
    where = f"/quota-changes/{change['change_id']}"

    assert (await second.post(f"{where}/reject")).json()["status"] == "rejected"

    expect_problem(await second.post(f"{where}/approve"), 409, "invalid_state")
    assert await slots(api, path) == 5
    assert (await audit_trail(owner, api.tenant_id))[-1]["action"] == "quota.change_rejected"


@pytest.mark.parametrize("move", ["approve", "reject"])
async def test_nobody_decides_on_their_own_change(api: Api, path: str, owner: Connection, move: str) -> None:
    """Owners are compared, so a second client does not help; the attempt is audited."""
    change = waits(await api.patch(path, {"limits": {"max_active": 11}}))
    second_client = api.speaking("orch:quota", client_id="jec_second", quota_reason="it is fine, believe me")

    for somebody in (api, second_client):
        expect_problem(await somebody.post(f"/quota-changes/{change['change_id']}/{move}"), 403, "same_person")

    assert await slots(api, path) == 5
    refused = (await audit_trail(owner, api.tenant_id))[-1]
    assert (refused["action"], refused["properties"]["code"]) == ("quota.refused", "same_person")


async def test_of_many_approvers_at_once_one_wins(api: Api, second: Api, path: str) -> None:
    """The limits change once."""
    change = waits(await api.patch(path, {"limits": {"max_active": 11}}))
    where = f"/quota-changes/{change['change_id']}"

    answers = await asyncio.gather(*[second.post(f"{where}/{move}") for move in ("approve", "reject") * 4])

    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7
    [won] = [answer.json() for answer in answers if answer.status_code == 200]
    assert (await slots(api, path), (await api.get(path)).json()["version"]) == (
        (11, 2) if won["status"] == "approved" else (5, 1)
    )


async def test_a_change_that_nobody_decided_in_time_is_over(
    api: Api, second: Api, path: str, later: PassTime, owner: Connection
) -> None:
    """It shows so by itself, is never made, and the log says so once."""
    change = waits(await api.patch(path, {"limits": {"max_active": 11}}))
    where = f"/quota-changes/{change['change_id']}"
    await later(api.tenant_id, 86_401)

    assert (await api.get(where)).json()["status"] == "expired"
    for move in ("approve", "reject"):
        expect_problem(await second.post(f"{where}/{move}"), 409, "change_expired")
    assert await slots(api, path) == 5
    told = [entry["actor"]["type"] for entry in await audit_trail(owner, api.tenant_id) if "expired" in entry["action"]]
    assert told == ["system"]


async def test_a_change_is_made_only_of_the_limits_it_was_asked_for(api: Api, second: Api, path: str) -> None:
    """A pause in between does not matter; other limits do, and so does a deletion."""
    first = waits(await api.patch(path, {"limits": {"max_active": 11}}))
    other = waits(await api.patch(path, {"limits": {"max_active": 12}}))
    await api.post(f"{path}/pause")
    assert (await second.post(f"/quota-changes/{first['change_id']}/approve")).status_code == 200

    where = f"/quota-changes/{other['change_id']}"
    expect_problem(await second.post(f"{where}/approve"), 409, "change_outdated")
    await api.delete(path)
    expect_problem(await second.post(f"{where}/approve"), 409, "change_outdated")

    assert (await api.get(where)).json()["status"] == "pending"
    assert (await second.post(f"{where}/reject")).status_code == 200


async def test_an_approval_is_judged_by_the_policy_of_now(api: Api, second: Api, path: str, governor: Api) -> None:
    """A ceiling that came down meanwhile holds."""
    change = waits(await api.patch(path, {"limits": {"max_active": 11}}))
    await governor.put("/policy", {"ceilings": {"max_active": 10}})

    where = f"/quota-changes/{change['change_id']}"
    expect_problem(await second.post(f"{where}/approve"), 422, "policy_maximum_exceeded")

    assert (await api.get(where)).json()["status"] == "pending"


async def test_a_new_quota_is_a_raise_of_the_default_limits(api: Api, second: Api) -> None:
    """Or of the limits that it had within the day; the whole tenant had none."""
    made = await api.post("/quotas", {"job_type": "scan", "limits": LIMITS | {"max_active": 20}})
    assert made.status_code == 201
    assert (await api.quota(None, max_active=1_000))["job_type"] is None
    change = waits(await api.post("/quotas", {"job_type": "ocr", "limits": LIMITS | {"max_active": 21}}))
    assert (change["kind"], change["quota_id"], change["from"]["max_active"]) == ("create", None, 10)

    assert (await second.post(f"/quota-changes/{change['change_id']}/approve")).status_code == 200

    [quota] = (await api.get("/quotas", params={"job_type": "ocr"})).json()["items"]
    assert quota["limits"] == LIMITS | {"max_active": 21}
    await api.patch(f"/quotas/{quota['quota_id']}", {"limits": {"max_active": 2}})
    await api.delete(f"/quotas/{quota['quota_id']}")
    again = waits(await api.post("/quotas", {"job_type": "ocr", "limits": LIMITS | {"max_active": 5}}))
    assert again["from"]["max_active"] == 2


async def test_an_override_beyond_the_factor_waits_too(api: Api, second: Api, path: str) -> None:
    """Approved, it begins then, and still ends by itself."""
    until = await api.in_future(hours=3)
    change = waits(await api.post(f"{path}/overrides", {"limits": {"max_active": 11}, "until": until}))
    assert (change["kind"], change["until"], change["starts_at"]) == ("override", until, None)

    assert (await second.post(f"/quota-changes/{change['change_id']}/approve")).status_code == 200

    assert await slots(api, path) == 11
    [override] = (await api.get(f"{path}/overrides")).json()["items"]
    assert (override["until"], override["limits"]) == (until, {"max_active": 11})


async def test_lowering_pausing_and_resuming_never_wait(api: Api, path: str) -> None:
    """Whatever the factor."""
    assert (await api.patch(path, {"limits": {"max_active": 0}})).status_code == 200
    assert (await api.post(f"{path}/pause")).status_code == 200
    assert (await api.post(f"{path}/resume")).status_code == 200
    assert (await api.get("/quota-changes")).json()["items"] == []


async def test_an_emergency_waits_for_nobody_and_is_listed(api: Api, path: str, owner: Connection) -> None:
    """It needs a ticket, and stands in the log under its own name."""
    raised = {"limits": {"max_active": 11}, "emergency": True}
    silent = api.speaking("orch:quota", quota_reason="launch day")
    problem = expect_problem(await silent.patch(path, raised), 422, "validation_failed")
    assert problem["errors"][0]["path"] == "emergency"

    assert (await api.patch(path, raised)).status_code == 200

    assert await slots(api, path) == 11
    assert (await audit_trail(owner, api.tenant_id))[-1]["action"] == "quota.emergency"
    [listed] = (await api.get("/quota-changes", params={"status": "emergency"})).json()["items"]
    assert (listed["requested_by"], listed["ticket"], listed["to"]["max_active"]) == ("ops", "OPS-1", 11)
    expect_problem(await api.post(f"/quota-changes/{listed['change_id']}/approve"), 409, "invalid_state")


async def test_a_tenant_asks_for_more_and_follows_its_request(api: Api, second: Api, path: str) -> None:
    """With `orch:read` alone; whatever the size, somebody else decides."""
    tenant = api.speaking("orch:read", owner="team", client_id="jec_team")
    asked = {"job_type": "scan", "limits": {"max_active": 6}, "request_reason": "  the backlog grows "}
    change = waits(await tenant.post("/quota-requests", asked))
    assert (change["origin"], change["requested_by"], change["reason"]) == ("request", "team", "the backlog grows")
    waits(await api.patch(path, {"limits": {"max_active": 11}}))

    assert [found["change_id"] for found in (await tenant.get("/quota-requests")).json()["items"]] == [
        change["change_id"]
    ]
    where = f"/quota-changes/{change['change_id']}"
    expect_problem(await tenant.post(f"{where}/approve"), 403, "insufficient_scope")
    assert (await second.post(f"{where}/approve")).status_code == 200

    assert await slots(api, path) == 6
    listed = (await tenant.get("/quota-requests", params={"status": "approved"})).json()["items"]
    assert [found["status"] for found in listed] == ["approved"]


async def test_a_request_with_an_end_becomes_an_override(api: Api, second: Api, path: str) -> None:
    """And one for a job type without a quota makes one, of the default limits."""
    tenant = api.speaking("orch:read", owner="team")
    asked = {"job_type": "scan", "limits": {"max_active": 8}, "request_reason": "the backlog grows"}
    timed = waits(await tenant.post("/quota-requests", asked | {"until": await api.in_future(hours=2)}))
    fresh = waits(await tenant.post("/quota-requests", asked | {"job_type": "ocr", "limits": {"burst": 30}}))

    for change in (timed, fresh):
        assert (await second.post(f"/quota-changes/{change['change_id']}/approve")).status_code == 200

    quota = (await api.get(path)).json()
    assert (quota["limits"]["max_active"], quota["effective_limits"]["max_active"]) == (5, 8)
    [made] = (await api.get("/quotas", params={"job_type": "ocr"})).json()["items"]
    assert made["limits"] == {"max_active": 10, "max_per_hour": 1_000, "burst": 30, "refill_per_second": 1}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"request_reason": "n/a"}, "validation_failed"),
        ({"request_reason": ""}, "validation_failed"),
        ({"request_reason": "x" * 257}, "validation_failed"),
        ({"request_reason": "launch\u202eday"}, "validation_failed"),
        ({"limits": {}}, "validation_failed"),
        ({"limits": {"max_active": 4}}, "validation_failed"),
        ({"limits": {"max_active": 1_001}}, "policy_maximum_exceeded"),
        ({"limits": {"max_active": 51}}, "policy_raise_too_large"),
        ({"until": "2020-01-01T00:00:00Z"}, "validation_failed"),
        ({"until": "2999-01-01T00:00:00Z"}, "policy_override_too_long"),
        ({"job_type": None}, "validation_failed"),
        ({"job_type": "ocr", "until": "2999-01-01T00:00:00Z"}, "validation_failed"),
        ({"ticket": "OPS-1"}, "unknown_field"),
    ],
)
async def test_a_request_that_could_never_be_granted_is_refused_at_once(
    api: Api, path: str, changes: dict[str, Any], code: str
) -> None:
    """Nobody should wait for it."""
    asked = {"job_type": "scan", "limits": {"max_active": 6}, "request_reason": "the backlog grows"}

    expect_problem(await api.speaking("orch:read").post("/quota-requests", asked | changes), 422, code)

    assert (await api.get("/quota-changes")).json()["items"] == []
    assert await slots(api, path) == 5


async def test_no_more_than_a_hundred_changes_of_a_tenant_wait(api: Api, path: str, owner: Connection) -> None:
    """Whoever may only read cannot fill the table either."""
    change = waits(await api.patch(path, {"limits": {"max_active": 11}}))
    many = """insert into quota_changes
        select (jsonb_populate_record(c, jsonb_build_object('change_id', gen_random_uuid()))).*
        from quota_changes c, generate_series(1, 99) where c.tenant_id = %s and c.change_id = %s"""
    await owner.execute(many, (api.tenant_id, change["change_id"]))

    expect_problem(await api.patch(path, {"limits": {"max_active": 11}}), 409, "conflict")
    assert (await api.patch(path, {"limits": {"max_active": 6}})).status_code == 200


async def test_an_approval_says_why(api: Api, path: str) -> None:
    """A token of somebody else's making without a reason decides nothing."""
    change = waits(await api.patch(path, {"limits": {"max_active": 11}}))
    silent = api.speaking("orch:quota", owner="boss")

    for move in ("approve", "reject"):
        answer = await silent.post(f"/quota-changes/{change['change_id']}/{move}")
        expect_problem(answer, 400, "quota_reason_required")


async def test_a_repeat_under_one_key_asks_once(api: Api, path: str) -> None:
    """What waits is an answer like any other."""
    key = {"headers": {"Idempotency-Key": "once"}}
    first = waits(await api.patch(path, {"limits": {"max_active": 11}}, **key))
    again = await api.patch(path, {"limits": {"max_active": 11}}, **key)

    assert (again.json(), again.headers["idempotent-replayed"]) == (first, "true")
    assert len((await api.get("/quota-changes")).json()["items"]) == 1


async def test_changes_of_another_tenant_do_not_exist(api: Api, stranger: Api, path: str) -> None:
    """Nor are they listed."""
    change = waits(await api.patch(path, {"limits": {"max_active": 11}}))
    where = f"/quota-changes/{change['change_id']}"

    for answer in (
        await stranger.get(where), await stranger.post(f"{where}/approve"), await stranger.post(f"{where}/reject"),
    ):  # fmt: skip
        expect_problem(answer, 404, "not_found")
    assert (await stranger.get("/quota-changes")).json()["items"] == []
