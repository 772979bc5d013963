"""Contract section 5: keeping a lease, giving it back, and losing it."""

import asyncio
from typing import Any

import pytest
from tests.conftest import PassTime
from tests.factories import Api, Connection, audit_trail, expect_problem

BIG = 10**400


@pytest.fixture
async def lease(api: Api) -> dict[str, Any]:
    """The only slot, for a minute."""
    await api.quota(max_active=1)
    return (await api.admit(lease_seconds=60)).json()


def token_of(lease: dict[str, Any]) -> dict[str, int]:
    return {"fencing_token": lease["fencing_token"]}


async def test_a_renewed_lease_lives_longer(api: Api, lease: dict[str, Any], later: PassTime) -> None:
    """As long as it was asked for, or as it is asked now, from the moment of the renewal."""
    await later(api.tenant_id, 50)

    renewed = await api.post(f"/admissions/{lease['lease_id']}/renew", token_of(lease))

    assert renewed.status_code == 200
    assert {**renewed.json(), "expires_at": None} == {**lease, "expires_at": None}
    await later(api.tenant_id, 50)
    assert (await api.admit()).status_code == 429
    longer = token_of(lease) | {"lease_seconds": 600}
    assert (await api.post(f"/admissions/{lease['lease_id']}/renew", longer)).status_code == 200
    await later(api.tenant_id, 590)
    assert (await api.admit()).status_code == 429
    assert (await api.post(f"/admissions/{lease['lease_id']}/renew", token_of(lease))).status_code == 200


async def test_a_released_lease_frees_its_slot_at_once(api: Api, lease: dict[str, Any], later: PassTime) -> None:
    """Saying so again is 204 for an hour, then 404."""
    path = f"/admissions/{lease['lease_id']}/release"

    assert (await api.post(path, token_of(lease))).status_code == 204
    assert (await api.admit()).status_code == 201
    assert (await api.post(path, token_of(lease))).status_code == 204
    await later(api.tenant_id, 3_590)
    assert (await api.post(path, token_of(lease))).status_code == 204
    await later(api.tenant_id, 20)
    expect_problem(await api.post(path, token_of(lease)), 404, "not_found")


@pytest.mark.parametrize("verb", ["renew", "release"])
@pytest.mark.parametrize("token", [0, -1, 2, 2**63, BIG, -BIG])
async def test_a_token_that_is_not_the_leases_loses(api: Api, lease: dict[str, Any], verb: str, token: int) -> None:
    """Any integer that is not the lease's is 409, and the lease lives on."""
    answer = await api.post(f"/admissions/{lease['lease_id']}/{verb}", {"fencing_token": token})

    expect_problem(answer, 409, "lease_lost")
    assert (await api.get("/admissions")).json()["items"] == [lease]


@pytest.mark.parametrize("body", [{}, {"fencing_token": "1"}, {"fencing_token": None}, {"fencing_token": 1.5}])
async def test_a_token_that_is_no_integer_is_a_wrong_value(api: Api, lease: dict[str, Any], body: object) -> None:
    """A missing one too."""
    for verb in ("renew", "release"):
        expect_problem(await api.post(f"/admissions/{lease['lease_id']}/{verb}", body), 422, "validation_failed")


async def test_an_expired_lease_is_lost_though_nobody_took_its_place(
    api: Api, lease: dict[str, Any], later: PassTime
) -> None:
    """Past `expires_at` there is nothing to renew or to release, and nothing in the list."""
    await later(api.tenant_id, 61)

    for verb in ("renew", "release"):
        expect_problem(await api.post(f"/admissions/{lease['lease_id']}/{verb}", token_of(lease)), 409, "lease_lost")
    assert (await api.get("/admissions")).json()["items"] == []
    assert (await api.get("/quotas")).json()["items"][0]["usage"]["active"] == 0
    assert (await api.admit()).status_code == 201


async def test_a_released_lease_can_not_be_renewed(api: Api, lease: dict[str, Any]) -> None:
    """It is over."""
    await api.post(f"/admissions/{lease['lease_id']}/release", token_of(lease))

    expect_problem(await api.post(f"/admissions/{lease['lease_id']}/renew", token_of(lease)), 409, "lease_lost")


async def test_expired_slots_come_back_whoever_notices(api: Api, later: PassTime) -> None:
    """A repeated release is the first to look: the sums follow the leases all the same."""
    quota = await api.quota(max_active=3)
    released = (await api.admit()).json()
    await api.admit(lease_seconds=5, slots=2)
    path = f"/admissions/{released['lease_id']}/release"
    await api.post(path, token_of(released))
    await later(api.tenant_id, 10)

    assert (await api.post(path, token_of(released))).status_code == 204

    assert (await api.get("/quotas/drift")).json()["drift"] == 0
    assert (await api.get(f"/quotas/{quota['quota_id']}")).json()["usage"]["active"] == 0
    assert (await api.admit(slots=3)).status_code == 201


async def test_fencing_tokens_grow_for_each_job_type(api: Api, later: PassTime) -> None:
    """Whatever became of the leases before, and across quotas made and deleted."""
    quota = await api.quota(max_active=10)
    tokens = [(await api.admit(lease_seconds=5)).json()["fencing_token"] for _ in range(3)]
    await later(api.tenant_id, 10_000)
    await api.delete(f"/quotas/{quota['quota_id']}")
    tokens.append((await api.admit()).json()["fencing_token"])
    results = (await api.post("/admissions/batch", {"requests": [{"job_type": "scan"}] * 2})).json()["results"]
    tokens += [result["fencing_token"] for result in results]

    assert tokens == [1, 2, 3, 4, 5, 6]
    assert (await api.admit("load")).json()["fencing_token"] == 1


async def test_a_lease_that_is_forced_out_is_gone_and_audited(
    api: Api, owner: Connection, lease: dict[str, Any]
) -> None:
    """Its holder learns so at its next word; the entry carries the operator's reason and ticket."""
    operator = api.speaking("orch:operate", operator_reason="stuck node", operator_ticket="OPS-3", owner="night shift")

    assert (await operator.delete(f"/admissions/{lease['lease_id']}")).status_code == 204

    for verb in ("renew", "release"):
        expect_problem(await api.post(f"/admissions/{lease['lease_id']}/{verb}", token_of(lease)), 409, "lease_lost")
    assert (await api.admit()).status_code == 201
    expect_problem(await operator.delete(f"/admissions/{lease['lease_id']}"), 404, "not_found")
    [entry] = [e for e in await audit_trail(owner, api.tenant_id) if e["action"] == "lease.forced_out"]
    assert (entry["actor"]["id"], entry["resource"]) == ("night shift", {"type": "lease", "id": lease["lease_id"]})
    assert entry["properties"].keys() == {"request.reason", "request.ticket"}
    assert entry["reason"].keys() == {"salted_sha256"}


async def test_the_list_shows_live_leases_by_job_type_and_page(api: Api) -> None:
    """Oldest first."""
    for job_type in ("scan", "load", "scan"):
        await api.admit(job_type)

    first = (await api.get("/admissions", params={"page_size": 2})).json()
    query = {"page_size": 2, "page_token": first["next_page_token"]}
    second = (await api.get("/admissions", params=query)).json()
    scans = (await api.get("/admissions", params={"job_type": "scan"})).json()["items"]

    assert [item["job_type"] for item in first["items"] + second["items"]] == ["scan", "load", "scan"]
    assert second["next_page_token"] is None
    assert [item["fencing_token"] for item in scans] == [1, 2]


async def test_releases_and_asks_at_once_lose_no_slot(api: Api) -> None:
    """Twenty holders give back while forty ask: at the end exactly the limit is held."""
    await api.quota(max_active=20, max_per_hour=1_000, burst=1_000)
    held = [(await api.admit()).json() for _ in range(20)]

    releases = [api.post(f"/admissions/{lease['lease_id']}/release", token_of(lease)) for lease in held]
    answers = await asyncio.gather(*releases, *[api.admit() for _ in range(40)])

    assert {answer.status_code for answer in answers[:20]} == {204}
    granted = sum(answer.status_code == 201 for answer in answers[20:])
    assert len((await api.get("/admissions")).json()["items"]) == granted <= 20
    assert (await api.get("/quotas/drift")).json()["drift"] == 0
    rest = await asyncio.gather(*[api.admit() for _ in range(30)])
    assert granted + sum(answer.status_code == 201 for answer in rest) == 20


async def test_a_wait_counts_with_what_the_same_moment_changed(api: Api, later: PassTime) -> None:
    """A renewal that is decided together with a denial is in the denial's wait."""
    await api.quota(max_active=1)
    held = (await api.admit(lease_seconds=10)).json()
    renewal = token_of(held) | {"lease_seconds": 600}

    renewed, denied = await asyncio.gather(api.post(f"/admissions/{held['lease_id']}/renew", renewal), api.admit())

    [blocking] = expect_problem(denied, 429, "admission_denied")["blocking"]
    assert (renewed.status_code, 599 < blocking["retry_after_seconds"] <= 600) == (200, True)
    await later(api.tenant_id, 601)
    assert (await api.admit()).status_code == 201


async def test_drift_compares_what_is_kept_with_what_is_there(api: Api, owner: Connection) -> None:
    """It is no constant: a sum that parts from its leases shows."""
    await api.admit(slots=2)
    assert (await api.get("/quotas/drift")).json() == {
        "drift": 0,
        "items": [{"job_type": name, "kept": USED, "recomputed": USED, "drift": 0} for name in (None, "scan")],
    }

    spoil = "update admission_accounts set active = active + 3 where tenant_id = %s and account = 'scan'"
    await owner.execute(spoil, (api.tenant_id,))

    assert (await api.get("/quotas/drift")).json()["drift"] == 3


USED = {"active": 2, "active_backfill": 0, "granted_last_hour": 1}
