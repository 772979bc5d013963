"""Contract section 4: what becomes of leases above a lowered limit, by the choice of whoever lowers it."""

import pytest
from tests.backfilling import ROOMY, Crew
from tests.conftest import PassTime
from tests.factories import Api, Connection, audit_trail, expect_problem

LONG = {"lease_seconds": 3_600}


async def held(api: Api, *slots: int) -> list[dict[str, object]]:
    """Take a lease for each number of slots."""
    return [(await api.admit(slots=number, **LONG)).json() for number in slots]


async def renew(api: Api, lease: dict[str, object]) -> int:
    answer = await api.post(f"/admissions/{lease['lease_id']}/renew", {"fencing_token": lease["fencing_token"]})
    if answer.status_code != 200:
        expect_problem(answer, 409, "lease_lost")
    return answer.status_code


async def test_a_limit_that_drains_refuses_renewals_after_a_minute_while_it_is_exceeded(
    api: Api, later: PassTime, owner: Connection
) -> None:
    """The lease lives to its end; once use has fallen to the limit, renewing is fine again."""
    path = f"/quotas/{(await api.quota())['quota_id']}"
    first, second = await held(api, 2, 3)

    lowered = await api.patch(path, {"limits": {"max_active": 3}, "on_excess": "drain"})

    assert (lowered.status_code, lowered.json()["usage"]["active"]) == (200, 5)
    assert "drain_after" in (await audit_trail(owner, api.tenant_id))[-1]["after"]
    assert [await renew(api, lease) for lease in (first, second)] == [200, 200]
    await later(api.tenant_id, 61)
    assert [await renew(api, lease) for lease in (first, second)] == [409, 409]
    assert (await api.get(path)).json()["usage"]["active"] == 5
    release = await api.post(f"/admissions/{first['lease_id']}/release", {"fencing_token": first["fencing_token"]})
    assert release.status_code == 204
    assert await renew(api, second) == 200


@pytest.mark.parametrize("then", [{"on_excess": "block_new"}, {}])
async def test_blocking_new_work_is_the_default_and_ends_a_drain(
    api: Api, later: PassTime, then: dict[str, str]
) -> None:
    """The newest change says what holds."""
    path = f"/quotas/{(await api.quota())['quota_id']}"
    [lease] = await held(api, 5)
    await api.patch(path, {"limits": {"max_active": 3}, "on_excess": "drain"})
    await later(api.tenant_id, 61)
    assert await renew(api, lease) == 409

    await api.patch(path, {"limits": {"max_active": 2}, **then})

    assert await renew(api, lease) == 200
    expect_problem(await api.admit(), 429, "admission_denied")


async def test_a_drain_concerns_its_own_job_type_and_its_own_tenant(api: Api, stranger: Api, later: PassTime) -> None:
    """Unless it is the whole tenant that drains."""
    path = f"/quotas/{(await api.quota())['quota_id']}"
    await held(api, 5)
    other = (await api.admit("ocr", **LONG)).json()
    [theirs] = await held(stranger, 5)
    await api.patch(path, {"limits": {"max_active": 3}, "on_excess": "drain"})
    await later(api.tenant_id, 61)
    assert [await renew(api, other), await renew(stranger, theirs)] == [200, 200]

    whole = f"/quotas/{(await api.quota(None))['quota_id']}"
    await api.patch(whole, {"limits": {"max_active": 1}, "on_excess": "drain"})
    await later(api.tenant_id, 61)

    assert [await renew(api, other), await renew(stranger, theirs)] == [409, 200]


async def test_an_override_that_holds_keeps_a_limit_from_draining(api: Api, later: PassTime) -> None:
    """What is in force counts."""
    path = f"/quotas/{(await api.quota())['quota_id']}"
    [lease] = await held(api, 5)
    await api.patch(path, {"limits": {"max_active": 3}, "on_excess": "drain"})
    await later(api.tenant_id, 61)
    await api.post(f"{path}/overrides", {"limits": {"max_active": 5}, "until": await api.in_future(hours=1)})

    assert await renew(api, lease) == 200


async def test_batches_that_run_go_on_while_a_limit_drains_and_no_other_is_handed_out(
    api: Api, later: PassTime
) -> None:
    """A heartbeat is answered as long as its lease lives: what a worker did is kept, and a pause is what stops it."""
    path = f"/quotas/{(await api.quota('external', **ROOMY))['quota_id']}"
    crew = Crew(api)
    await crew.start(3)
    batches = await crew.claim(2)
    await api.patch(path, {"limits": {"max_active": 1}, "on_excess": "drain"})

    for _ in range(7):
        await later(api.tenant_id, 10)
        assert [(await crew.say(batch, "heartbeat")).status_code for batch in batches] == [200, 200]

    assert await crew.claim(1) == []
    for batch in batches:
        await crew.done(batch)
    assert len(await crew.claim(2)) == 1


async def test_another_word_for_what_becomes_of_leases_is_refused(api: Api) -> None:
    """Revoking is not among them: an operator forces leases out one by one."""
    path = f"/quotas/{(await api.quota())['quota_id']}"

    problem = expect_problem(
        await api.patch(path, {"limits": {"max_active": 3}, "on_excess": "revoke"}), 422, "validation_failed"
    )

    assert problem["errors"][0]["path"] == "on_excess"
