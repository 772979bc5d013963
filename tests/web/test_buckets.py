"""Contract sections 4 and 5: a bucket refills at the rate that held at the time, whatever changed since."""

from typing import Any

from tests.conftest import PassTime
from tests.factories import ROOMY, Api

SLOW = {**ROOMY, "burst": 100, "refill_per_second": 1}


async def emptied(api: Api, tokens: int = 100) -> None:
    """Take every token at once."""
    answer = await api.post("/admissions/batch", {"requests": [{"job_type": "scan", "lease_seconds": 5}] * tokens})
    assert all(result["granted"] for result in answer.json()["results"])


async def passing(api: Api) -> int:
    """How many of a thousand asks the bucket lets through now."""
    answer = await api.post("/admissions/batch", {"requests": [{"job_type": "scan"}] * 1_000})
    return sum(result["granted"] for result in answer.json()["results"])


async def test_a_raised_rate_does_not_fill_the_time_before_it(api: Api, later: PassTime) -> None:
    """Ten seconds at one a second, then two seconds at ten: thirty tokens, and not a hundred."""
    quota = await api.quota(**SLOW)
    await emptied(api)
    await later(api.tenant_id, 10)
    await api.patch(f"/quotas/{quota['quota_id']}", {"limits": {"refill_per_second": 10}})
    await later(api.tenant_id, 2)

    # What the test itself takes is time too: at ten a second, some tokens more.
    assert 30 <= await passing(api) <= 70


async def test_a_lowered_rate_takes_nothing_of_the_time_before_it(api: Api, later: PassTime) -> None:
    """Ten seconds at five a second are fifty tokens, also when the rate is nothing from then on."""
    quota = await api.quota(**SLOW | {"refill_per_second": 5})
    await emptied(api)
    await later(api.tenant_id, 10)
    await api.patch(f"/quotas/{quota['quota_id']}", {"limits": {"refill_per_second": 0}})
    await later(api.tenant_id, 100)

    assert 50 <= await passing(api) <= 100
    assert await passing(api) == 0


async def test_a_burst_lowered_and_raised_again_has_cut_the_bucket(api: Api) -> None:
    """What was above the burst in between is gone."""
    quota = await api.quota(**SLOW | {"refill_per_second": 0})
    await emptied(api, tokens=10)
    for burst in (20, 100):
        await api.patch(f"/quotas/{quota['quota_id']}", {"limits": {"burst": burst}})

    assert await passing(api) == 20


async def test_a_raise_that_has_ended_filled_only_while_it_held(api: Api, later: PassTime) -> None:
    """Nobody asked from before it began until after it ended: it still counts for its own ten seconds."""
    quota = await api.quota(**SLOW | {"burst": 1_000, "refill_per_second": 1})
    await emptied(api, tokens=1_000)
    raised = {"limits": {"refill_per_second": 10}, "until": await api.in_future(seconds=30)}
    assert (await api.post(f"/quotas/{quota['quota_id']}/overrides", raised)).status_code == 201
    await later(api.tenant_id, 130)

    # Thirty seconds at ten, a hundred at one; some seconds may pass while the test runs.
    assert 390 <= await passing(api) <= 460


async def test_defaults_that_change_act_from_then_on(
    api: Api, governor: Api, later: PassTime, any_policy: None
) -> None:
    """A job type without a quota lives under the policy as it was at each time."""
    assert any_policy is None
    defaults: dict[str, Any] = {"default_limits": {**SLOW, "burst": 100}}
    assert (await governor.put("/policy", defaults)).status_code == 200
    await emptied(api)
    await governor.put("/policy", {"default_limits": {"refill_per_second": 0}})
    await later(api.tenant_id, 1_000)

    assert await passing(api) <= 60
