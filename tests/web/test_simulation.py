"""Contract section 9: limits tried on what was recorded."""

import asyncio
import random
from datetime import timedelta
from typing import Any

import pytest
from tests.factories import Api, Connection, expect_problem

from jobengine.governance.simulation import Question, Simulation
from jobengine.governance.simulation_replay import simulate
from jobengine.storage.asks import read_extent, read_moments
from jobengine.storage.simulator import MOST_ASKS, Simulator

MEMBERS = {
    "asks", "granted", "denied", "would_grant", "would_deny", "peak_active", "wait_p95_seconds", "result_hash",
}  # fmt: skip


async def replayed(api: Api, account: str = "") -> Simulation:
    """Decide the tenant's whole record again under the limits of the time."""
    async with api.plane.database.transaction(api.tenant_id) as tx:
        extent = await read_extent(tx, tx.now - timedelta(days=2), timedelta(days=30))
    moments = [moment async for moment in read_moments(api.plane.database, api.tenant_id, extent)]
    return simulate(moments, Question(account))


async def give_back(api: Api, lease: dict[str, Any]) -> None:
    """Release a lease."""
    path = f"/admissions/{lease['lease_id']}/release"
    assert (await api.post(path, {"fencing_token": lease["fencing_token"]})).status_code == 204


async def simulated(api: Api, quota: dict[str, Any], **limits: float) -> dict[str, Any]:
    """Try limits on a quota."""
    answer = await api.post(f"/quotas/{quota['quota_id']}/simulate", {"limits": limits})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_replay_under_the_limits_of_the_time_decides_as_was_decided(api: Api) -> None:
    """Asks alone, in groups and in batches, renewals, releases, forced ends, expiries, and every change of limits."""
    rng = random.Random(7)  # noqa: S311 - a day that can be lived again
    quota = await api.quota(max_active=4, burst=6, refill_per_second=20)
    path = f"/quotas/{quota['quota_id']}"
    whole = await api.quota(None, max_active=9, burst=30, refill_per_second=50)
    until = await api.in_future(hours=1)
    events = [
        lambda: api.patch(path, {"limits": {"max_active": 2}}),
        lambda: api.patch(path, {"limits": {"refill_per_second": 5.5}}),
        lambda: api.post(f"{path}/overrides", {"limits": {"max_active": 6, "burst": 9}, "until": until}),
        lambda: api.post(f"{path}/pause"),
        lambda: api.post(f"{path}/resume"),
        lambda: api.patch(f"/quotas/{whole['quota_id']}", {"limits": {"max_active": 3}}),
        lambda: api.delete(f"/quotas/{whole['quota_id']}"),
        lambda: api.patch(path, {"limits": {"max_per_hour": 40}}),
    ]
    answers: list[bool] = []
    held: list[dict[str, Any]] = []
    for event in [None, *events, None]:
        if event is not None:
            assert (await event()).is_success
        await live(api, rng, answers, held)

    found = await replayed(api)

    assert found.changed == 0
    assert (found.asks, found.granted) == (len(answers), sum(answers))
    assert 0 < found.granted < found.asks


async def live(api: Api, rng: random.Random, answers: list[bool], held: list[dict[str, Any]]) -> None:
    """Ask many times at once, and give some of it back."""
    asks = [
        {"job_type": rng.choice(["scan", "mail"]), "slots": rng.choice([1, 1, 2, 50]), "lease_seconds": 5,
         "kind": rng.choice(["live", "backfill"])}
        for _ in range(12)
    ]  # fmt: skip
    many = (await api.post("/admissions/batch", {"requests": asks[:4]})).json()["results"]
    single = await asyncio.gather(*(api.post("/admissions", ask) for ask in asks[4:]))
    granted = [answer.json() for answer in single if answer.status_code == 201]
    granted += [result for result in many if result["granted"]]
    answers += [True] * len(granted) + [False] * (len(asks) - len(granted))
    held += granted
    rng.shuffle(held)
    if held:
        lease = held.pop()
        await api.post(f"/admissions/{lease['lease_id']}/renew", {"fencing_token": lease["fencing_token"]})
        await api.delete(f"/admissions/{lease['lease_id']}")
    await asyncio.gather(*(api.post(f"/admissions/{lease['lease_id']}/release",
                                    {"fencing_token": lease["fencing_token"]}) for lease in held[::2]))  # fmt: skip
    del held[::2]


async def test_an_expired_lease_ends_in_the_replay_when_it_ended(api: Api) -> None:
    """Nobody gave it back; the next ask found the slot free, and so does the replay."""
    await api.quota(max_active=1)
    assert (await api.admit(lease_seconds=5)).status_code == 201
    deadline = asyncio.get_running_loop().time() + 60
    while (await api.admit(lease_seconds=5)).status_code != 201:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.2)

    found = await replayed(api, "scan")

    assert (found.changed, found.granted) == (0, 2)
    assert found.wait_p95_micros is not None
    assert 0 < found.wait_p95_micros <= 5_000_000


async def test_a_limit_is_tried_before_anybody_sets_it(api: Api) -> None:
    """What was asked, what became of it, what would have; nothing of it changes anything."""
    quota = await api.quota(max_active=2)
    held = [(await api.admit()).json() for _ in range(2)]
    assert (await api.admit()).status_code == 429
    await give_back(api, held[0])

    raised, same = await simulated(api, quota, max_active=3), await simulated(api, quota, max_active=2)

    assert set(raised) == MEMBERS
    counts = ("asks", "granted", "denied", "would_grant", "would_deny", "peak_active")
    assert [raised[name] for name in counts] == [3, 2, 1, 3, 0, 3]
    assert [same[name] for name in counts] == [3, 2, 1, 2, 1, 2]
    assert (raised["wait_p95_seconds"], same["wait_p95_seconds"] > 0) == (0, True)
    assert raised["result_hash"] != same["result_hash"]
    assert (await simulated(api, quota, max_active=3))["result_hash"] == raised["result_hash"]
    assert (await api.get(f"/quotas/{quota['quota_id']}")).json()["version"] == 1


async def test_a_repeat_of_a_job_is_no_ask(api: Api) -> None:
    """It got the lease that it had; nothing was decided."""
    quota = await api.quota()
    for _ in range(3):
        await api.admit(job_id="one")

    assert (await simulated(api, quota, max_active=1))["asks"] == 1


async def test_since_leaves_out_what_was_asked_before(api: Api) -> None:
    """What was in use then still counts."""
    quota = await api.quota(max_active=2)
    await api.admit()
    since = await api.in_future()
    await api.admit()

    answer = await api.post(f"/quotas/{quota['quota_id']}/simulate", {"limits": {"max_active": 1}, "since": since})

    found = answer.json()
    assert [found[name] for name in ("asks", "granted", "would_grant", "peak_active")] == [1, 1, 0, 1]


@pytest.mark.parametrize("hours", [1, -24 * 31])
async def test_since_lies_in_the_record(api: Api, hours: int) -> None:
    """Neither in the future nor before the record can begin."""
    quota = await api.quota()
    body = {"limits": {"max_active": 1}, "since": await api.in_future(hours=hours)}

    answer = await api.post(f"/quotas/{quota['quota_id']}/simulate", body)

    assert expect_problem(answer, 422, "validation_failed")["errors"][0]["path"] == "since"


async def test_more_asks_than_can_be_replayed_are_refused(api: Api, owner: Connection) -> None:
    """Before anything is read, and with both numbers."""
    quota = await api.quota()
    await api.admit()
    await owner.execute("update asks set asked = %s where tenant_id = %s", (MOST_ASKS + 1, api.tenant_id))

    answer = await api.post(f"/quotas/{quota['quota_id']}/simulate", {"limits": {"max_active": 1}})

    found = expect_problem(answer, 422, "too_many_asks")
    assert (found["asks"], found["maximum"]) == (MOST_ASKS + 1, MOST_ASKS)


async def test_a_simulation_that_ends_badly_is_unavailable(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes longer than it may: 503, and the next one is answered."""
    quota = await api.quota()
    body = {"limits": {"max_active": 1}}
    with monkeypatch.context() as patch:
        patch.setattr(api.plane, "simulator", Simulator(api.plane.simulator.login, seconds=0.001))
        broken = await api.post(f"/quotas/{quota['quota_id']}/simulate", body)

    expect_problem(broken, 503, "temporarily_unavailable")
    assert (await simulated(api, quota, max_active=1))["asks"] == 0


async def test_days_beyond_the_retention_are_emptied(api: Api, owner: Connection) -> None:
    """Yesterday's partition stays, that of a day too old is empty; nobody who writes today waits."""
    await api.admit()
    await owner.execute(
        "insert into asks (tenant_id, day_slot, at, share, asked, accounts, limits, state, kinds, places, slots,"
        " seconds, tokens) select tenant_id, mod(day_slot + 64 - back, 64), at - back * interval '1 day', share, asked,"
        " accounts, limits, state, kinds, places, slots, seconds, tokens"
        " from asks, unnest(array[1, 62]) back where tenant_id = %s",
        (api.tenant_id,),
    )

    async with api.plane.database.system() as tx:
        await tx.run("system_forget_asks", days=60)

    rows = await (await owner.execute("select at from asks where tenant_id = %s", (api.tenant_id,))).fetchall()
    assert len(rows) == 2
