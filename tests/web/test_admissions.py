"""Contract section 5: asking for slots, and what is said to one who gets none."""

import asyncio
from math import ceil
from typing import Any

import httpx2
import pytest
from tests.conftest import PassTime
from tests.factories import LEASE, ROOMY, Api, expect_problem


def blocking_of(answer: httpx2.Response) -> list[dict[str, Any]]:
    return expect_problem(answer, 429, "admission_denied")["blocking"]


async def drift(api: Api) -> int:
    return (await api.get("/quotas/drift")).json()["drift"]


async def test_a_granted_admission_is_a_lease(api: Api) -> None:
    """201 with everything the holder needs."""
    quota = await api.quota()

    answer = await api.admit()

    lease = answer.json()
    assert (answer.status_code, lease.keys()) == (201, LEASE)
    assert (lease["job_type"], lease["slots"], lease["kind"], lease["job_id"]) == ("scan", 1, "live", None)
    assert (lease["quota_id"], lease["fencing_token"]) == (quota["quota_id"], 1)
    shown = (await api.get("/admissions")).json()["items"]
    assert shown == [lease]


@pytest.mark.parametrize(
    "ask",
    [
        {"slots": 0},
        {"slots": -1},
        {"slots": 1.5},
        {"slots": "1"},
        {"slots": True},
        {"slots": 10**12 + 1},
        {"lease_seconds": 4},
        {"lease_seconds": 3_601},
        {"lease_seconds": 5.5},
        {"kind": "urgent"},
        {"job_id": ""},
        {"job_id": "a" * 201},
        {"job_id": "a\nb"},
        {"job_id": "a\u2028b"},
        {"job_id": 5},
        {"job_type": "a b"},
    ],
)
async def test_a_question_out_of_range_is_a_wrong_value(api: Api, ask: dict[str, object]) -> None:
    """It costs nothing."""
    expect_problem(await api.admit(**{"job_type": "scan"} | ask), 422, "validation_failed")
    assert (await api.get("/admissions")).json()["items"] == []


@pytest.mark.parametrize(
    "ask", [{"lease_seconds": 5}, {"lease_seconds": 3_600}, {"job_id": "a" * 200}, {"job_id": "Ω 42/b"}, {"slots": 10}]
)
async def test_a_question_at_the_edge_of_its_range_is_granted(api: Api, ask: dict[str, object]) -> None:
    """Lease seconds 5 to 3,600, job ids up to 200 printable characters."""
    assert (await api.admit(**ask)).status_code == 201


async def test_without_a_quota_the_defaults_hold(api: Api) -> None:
    """`quota_id` is null, and there is no tenant-wide limit."""
    taken = await api.admit("scan", slots=10)
    other = await api.admit("load", slots=10)

    assert [answer.json()["quota_id"] for answer in (taken, other)] == [None, None]
    [blocking] = blocking_of(await api.admit("scan"))
    assert (blocking["limit"], blocking["quota_id"], blocking["maximum"]) == ("max_active", None, 10)


async def test_both_the_job_type_and_the_tenant_must_grant(api: Api) -> None:
    """Each limit that blocks is named with its own quota; the lease names the job type's."""
    own, whole = await api.quota("scan", max_active=2), await api.quota(None, max_active=3)
    assert (await api.admit("load", slots=2)).status_code == 201
    first = await api.admit("scan", slots=1)
    assert first.json()["quota_id"] == own["quota_id"]

    [blocking] = blocking_of(await api.admit("scan"))
    assert (blocking["quota_id"], blocking["job_type"], blocking["used"]) == (whole["quota_id"], None, 3)

    both = blocking_of(await api.admit("scan", slots=2))
    assert [(item["job_type"], item["used"], item["maximum"], item["requested"]) for item in both] == [
        (None, 3, 3, 2), ("scan", 1, 2, 2),
    ]  # fmt: skip


async def test_a_denial_costs_nothing_anywhere(api: Api) -> None:
    """One limit says no: the others took neither slot nor token nor place in the hour."""
    own, whole = await api.quota("scan"), await api.quota(None, max_active=1)
    await api.admit("load")

    for _ in range(5):
        assert (await api.admit("scan")).status_code == 429

    for quota in (own, whole):
        usage = (await api.get(f"/quotas/{quota['quota_id']}")).json()["usage"]
        taken = 0 if quota is own else 1
        assert (usage["active"], usage["granted_last_hour"]) == (taken, taken)
    assert (await api.get(f"/quotas/{own['quota_id']}")).json()["usage"]["tokens"] == 10
    assert await drift(api) == 0


@pytest.mark.parametrize("kind", ["live", "backfill"])
async def test_more_slots_than_the_limit_can_ever_grant_are_refused_as_such(api: Api, kind: str) -> None:
    """422 with the maximum; waiting could not help."""
    await api.quota(max_active=5)

    problem = expect_problem(await api.admit(slots=6, kind=kind), 422, "slots_exceed_limit")

    assert (problem["maximum"], problem["requested"]) == (5, 6)


async def test_a_denial_says_when_to_ask_again_and_keeps_its_word(api: Api, later: PassTime) -> None:
    """`Retry-After` is the longest wait, rounded up; after it the same question, asked alone, is granted."""
    await api.quota(max_active=3)
    await api.admit(slots=1, lease_seconds=100)
    await api.admit(slots=1, lease_seconds=50)
    await api.admit(slots=1, lease_seconds=200)

    denied = await api.admit(slots=2)

    [blocking] = blocking_of(denied)
    assert blocking.keys() == {
        "limit", "quota_id", "job_type", "maximum", "used", "requested", "retry_after_seconds",
    }  # fmt: skip
    assert (blocking["limit"], blocking["used"], blocking["requested"]) == ("max_active", 3, 2)
    assert 99 < blocking["retry_after_seconds"] <= 100
    assert denied.headers["retry-after"] == str(ceil(blocking["retry_after_seconds"]))
    await later(api.tenant_id, blocking["retry_after_seconds"] - 1)
    assert (await api.admit(slots=2)).status_code == 429
    await later(api.tenant_id, 1)
    assert (await api.admit(slots=2)).status_code == 201


async def test_every_blocking_limit_has_its_own_wait_and_the_longest_counts(api: Api) -> None:
    """Slots for a minute, a token for ten seconds: `Retry-After` is a minute."""
    await api.quota(max_active=1, burst=1, refill_per_second=0.1)
    await api.admit(lease_seconds=60)

    denied = await api.admit()

    waits = {item["limit"]: item["retry_after_seconds"] for item in blocking_of(denied)}
    assert waits.keys() == {"max_active", "rate"}
    assert 59 < waits["max_active"] <= 60
    assert 9 < waits["rate"] <= 10
    assert denied.headers["retry-after"] == "60"


async def test_a_limit_that_never_gives_way_leaves_no_hope(api: Api) -> None:
    """One null among the waits, and there is no `Retry-After`: nothing an hour, or a bucket that nothing fills."""
    await api.quota("scan", max_per_hour=0)
    await api.quota("load", burst=1, refill_per_second=0)
    await api.quota("burn", burst=0)
    await api.admit("load")

    for job_type, limit in (("scan", "max_per_hour"), ("load", "rate"), ("burn", "rate")):
        denied = await api.admit(job_type)
        [blocking] = blocking_of(denied)
        assert (blocking["limit"], blocking["retry_after_seconds"]) == (limit, None)
        assert "retry-after" not in denied.headers


async def test_a_denial_carries_the_rate_limit_fields(api: Api) -> None:
    """One item a limit, as the IETF draft writes them: quota and window, remaining and reset."""
    await api.quota(max_active=1, max_per_hour=1, burst=5)
    await api.quota(None, max_active=9)
    await api.admit(lease_seconds=60)

    denied = await api.admit()

    assert denied.headers["ratelimit-policy"] == '"max_active:scan";q=1, "max_per_hour:scan";q=1;w=3600'
    assert denied.headers["ratelimit"] == '"max_active:scan";r=0;t=60, "max_per_hour:scan";r=0;t=3600'


async def test_the_bucket_starts_full_and_refills_continuously(api: Api, later: PassTime) -> None:
    """Bursts of 43 at 1.5 a second: 43 at once, the 44th after two thirds of a second; no fraction is lost."""
    quota = await api.quota(**ROOMY | {"burst": 43, "refill_per_second": 1.5})

    answers = await api.post("/admissions/batch", {"requests": [{"job_type": "scan"}] * 44})

    granted = [result["granted"] for result in answers.json()["results"]]
    assert granted == [True] * 43 + [False]
    [blocking] = answers.json()["results"][43]["blocking"]
    assert (blocking["limit"], blocking["maximum"], blocking["used"]) == ("rate", 43, 43)
    assert 0.6 < blocking["retry_after_seconds"] <= 2 / 3 + 1e-6
    await later(api.tenant_id, 2)
    tokens = (await api.get(f"/quotas/{quota['quota_id']}")).json()["usage"]["tokens"]
    assert 3 <= tokens < 4
    for _ in range(3):
        assert (await api.admit()).status_code == 201
    await later(api.tenant_id, 86_400)
    assert (await api.get(f"/quotas/{quota['quota_id']}")).json()["usage"]["tokens"] == 43


async def test_no_rolling_hour_holds_more_than_its_maximum(api: Api, later: PassTime) -> None:
    """3,600 s after an admission, and not a moment sooner, another may take its place; releases do not count."""
    await api.quota(**ROOMY | {"max_per_hour": 2})
    lease = (await api.admit()).json()
    await later(api.tenant_id, 1_000)
    await api.admit()
    await api.post(f"/admissions/{lease['lease_id']}/release", {"fencing_token": lease["fencing_token"]})

    denied = await api.admit()
    [blocking] = blocking_of(denied)
    assert (blocking["limit"], blocking["maximum"], blocking["used"]) == ("max_per_hour", 2, 2)
    assert 2_599 < blocking["retry_after_seconds"] <= 2_600
    await later(api.tenant_id, blocking["retry_after_seconds"] - 1)
    assert (await api.admit()).status_code == 429
    await later(api.tenant_id, 1)
    assert (await api.admit()).status_code == 201
    assert (await api.admit()).status_code == 429


async def test_the_hour_and_the_bucket_count_admissions_and_not_slots(api: Api) -> None:
    """Five slots at once are one admission."""
    quota = await api.quota(max_active=10)
    await api.admit(slots=5)

    usage = (await api.get(f"/quotas/{quota['quota_id']}")).json()["usage"]
    assert (usage["active"], usage["granted_last_hour"]) == (5, 1)
    assert 9 <= usage["tokens"] < 10


async def test_of_two_hundred_at_once_exactly_five_get_five_slots(api: Api) -> None:
    """However many ask at the same moment, `max_active` is never passed and never missed."""
    await api.quota(**ROOMY | {"max_active": 5})

    answers = await asyncio.gather(*[api.admit() for _ in range(200)])

    assert sorted({answer.status_code for answer in answers}) == [201, 429]
    granted = [answer.json() for answer in answers if answer.status_code == 201]
    assert len(granted) == 5
    assert len({lease["fencing_token"] for lease in granted}) == 5
    assert await drift(api) == 0
    assert {item["used"] for answer in answers if answer.status_code == 429 for item in blocking_of(answer)} == {5}


async def test_of_a_hundred_at_once_exactly_the_burst_passes(api: Api) -> None:
    """The bucket is decided under the same lock."""
    await api.quota(**ROOMY | {"burst": 7, "refill_per_second": 0})

    answers = await asyncio.gather(*[api.admit() for _ in range(100)])

    assert sum(answer.status_code == 201 for answer in answers) == 7


async def test_askers_with_and_without_keys_share_one_limit(api: Api) -> None:
    """Grouped or alone, single or in a batch: one count."""
    await api.quota(**ROOMY | {"max_active": 5})

    answers = await asyncio.gather(
        *[api.admit() for _ in range(20)],
        *[api.post("/admissions", {"job_type": "scan"}, headers={"Idempotency-Key": f"k{n}"}) for n in range(20)],
        *[api.post("/admissions/batch", {"requests": [{"job_type": "scan"}] * 3}) for _ in range(5)],
    )

    single = sum(answer.status_code == 201 for answer in answers[:40])
    batched = sum(result["granted"] for answer in answers[40:] for result in answer.json()["results"])
    assert single + batched == 5
    assert await drift(api) == 0


async def test_a_lowered_limit_denies_new_work_and_stops_none(api: Api) -> None:
    """Leases run on; work is admitted again when use has fallen below the new limit."""
    quota = await api.quota(max_active=5)
    leases = [(await api.admit()).json() for _ in range(4)]
    await api.patch(f"/quotas/{quota['quota_id']}", {"limits": {"max_active": 2}})

    [blocking] = blocking_of(await api.admit())
    assert (blocking["maximum"], blocking["used"]) == (2, 4)
    assert len((await api.get("/admissions")).json()["items"]) == 4
    for lease in leases[:3]:
        assert (await api.admit()).status_code == 429
        await api.post(f"/admissions/{lease['lease_id']}/release", {"fencing_token": lease["fencing_token"]})
    assert (await api.admit()).status_code == 201
    assert (await api.admit()).status_code == 429


async def test_a_raised_limit_acts_on_the_next_decision(api: Api) -> None:
    """A denial before it is no obstacle after it."""
    quota = await api.quota(max_active=1)
    await api.admit()
    assert (await api.admit()).status_code == 429

    await api.patch(f"/quotas/{quota['quota_id']}", {"limits": {"max_active": 2}})

    assert (await api.admit()).status_code == 201


async def test_a_quota_created_over_running_work_counts_it(api: Api) -> None:
    """Leases admitted under the defaults use the new quota's slots too."""
    await api.admit(slots=4)
    quota, whole = await api.quota(max_active=5), await api.quota(None, max_active=5)

    for name in (quota, whole):
        usage = (await api.get(f"/quotas/{name['quota_id']}")).json()["usage"]
        assert (usage["active"], usage["granted_last_hour"]) == (4, 1)
    assert {item["used"] for item in blocking_of(await api.admit(slots=2))} == {4}


async def test_backfills_hold_no_more_than_their_share(api: Api) -> None:
    """max(1, floor(0.5 × max_active)) slots; live work may use the rest and all."""
    await api.quota(**ROOMY | {"max_active": 5})
    assert (await api.admit(kind="backfill", slots=2)).status_code == 201

    [blocking] = blocking_of(await api.admit(kind="backfill"))
    assert (blocking["limit"], blocking["maximum"], blocking["used"]) == ("max_active", 2, 2)
    assert (await api.admit(slots=3)).status_code == 201
    assert {item["maximum"] for item in blocking_of(await api.admit(kind="backfill"))} == {5, 2}


async def test_a_single_slot_may_be_a_backfills(api: Api) -> None:
    """The share is never less than one, and nothing of a share more than itself."""
    await api.quota(max_active=1)

    assert (await api.admit(kind="backfill")).status_code == 201
    assert (await api.admit()).status_code == 429


async def test_a_denied_backfill_waits_for_both_its_share_and_the_whole(api: Api, later: PassTime) -> None:
    """A live lease that ends soon does not help where only a backfill's end can."""
    await api.quota(**ROOMY | {"max_active": 4})
    await api.admit(kind="backfill", slots=2, lease_seconds=500)
    await api.admit(slots=2, lease_seconds=10)

    denied = await api.admit(kind="backfill")

    assert {ceil(item["retry_after_seconds"]) for item in blocking_of(denied)} == {10, 500}
    assert denied.headers["retry-after"] == "500"
    await later(api.tenant_id, 11)
    assert (await api.admit(kind="backfill")).status_code == 429
    await later(api.tenant_id, 490)
    assert (await api.admit(kind="backfill")).status_code == 201
