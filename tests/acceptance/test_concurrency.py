"""Many at once: one winner among identical backfills, never a slot too many, one answer for one idempotency key."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import httpx2
from tests.acceptance.callers import API, ROOMY, Caller, backfill_ask, done
from tests.factories import expect_problem


async def at_once(
    caller: Caller, path: str, bodies: Sequence[object], urls: Sequence[str] = (), **headers: str
) -> list[httpx2.Response]:
    """Send every body at the same time, each over a connection of its own, to the servers in turn."""
    sent = {"Authorization": f"Bearer {caller.token()}", **headers}
    limits = httpx2.Limits(max_connections=len(bodies))
    targets = urls or [caller.url]
    async with httpx2.AsyncClient(trust_env=False, timeout=60, limits=limits, headers=sent) as client:
        asked = (
            client.post(f"{targets[number % len(targets)]}{API}{path}", json=body) for number, body in enumerate(bodies)
        )
        return list(await asyncio.gather(*asked))


def statuses(answers: Sequence[httpx2.Response]) -> Mapping[int, int]:
    return Counter(answer.status_code for answer in answers)


async def test_one_of_a_thousand_identical_backfill_requests_at_once_wins(caller: Caller) -> None:
    """The others are told that they are duplicates, each naming the winner, or that the server has too much to do."""
    answers = await at_once(caller, "/backfills", [backfill_ask()] * 1_000)

    counted = statuses(answers)
    assert counted[202] == 1
    assert counted[409] + counted[503] == 999
    [winner] = [answer.json() for answer in answers if answer.status_code == 202]
    for answer in answers:
        if answer.status_code == 409:
            problem = expect_problem(answer, 409, "duplicate_backfill")
            assert [other["backfill_id"] for other in problem["overlaps"]] == [winner["backfill_id"]]
    assert [found["backfill_id"] for found in caller.items("/backfills")] == [winner["backfill_id"]]
    caller.logged(1, action="backfill.requested")
    caller.logged(counted[409], action="backfill.duplicate_rejected")


async def test_overlapping_windows_asked_for_at_once_never_run_together(caller: Caller) -> None:
    """Of thirty windows that all share a day only one is accepted, whichever comes first."""
    asked = [
        backfill_ask(window={"start": f"2026-01-{day:02}T00:00:00Z", "end": f"2026-02-{day:02}T00:00:00Z"})
        for day in range(1, 29)
    ]

    answers = await at_once(caller, "/backfills", asked)

    assert statuses(answers) == {202: 1, 409: 27}


async def test_exactly_five_of_two_hundred_acquires_at_once_are_granted_where_max_active_is_five(
    caller: Caller,
) -> None:
    """Everybody else is told that max_active is full, and nobody waits for anything."""
    quota = done(caller.post("/quotas", {"job_type": "scan", "limits": ROOMY | {"max_active": 5}}), 201)

    answers = await at_once(caller, "/admissions", [{"job_type": "scan"}] * 200)

    assert statuses(answers) == {201: 5, 429: 195}
    for answer in answers:
        if answer.status_code == 429:
            [blocking] = expect_problem(answer, 429, "admission_denied")["blocking"]
            assert (blocking["limit"], blocking["quota_id"]) == ("max_active", quota["quota_id"])
            assert (blocking["maximum"], blocking["used"], blocking["requested"]) == (5, 5, 1)
    leases = [answer.json() for answer in answers if answer.status_code == 201]
    assert len({lease["fencing_token"] for lease in leases}) == 5
    assert {lease["lease_id"] for lease in caller.items("/admissions")} == {lease["lease_id"] for lease in leases}
    assert caller.get(f"/quotas/{quota['quota_id']}")["usage"]["active"] == 5
    assert caller.get("/quotas/drift")["drift"] == 0


async def test_hourly_limit_is_never_passed_by_acquires_at_once(caller: Caller) -> None:
    """Of 60 admissions exactly the 20 of the hour are granted, whatever their slots."""
    done(caller.post("/quotas", {"job_type": "scan", "limits": ROOMY | {"max_per_hour": 20}}), 201)

    answers = await at_once(caller, "/admissions", [{"job_type": "scan", "slots": 1 + n % 3} for n in range(60)])

    assert statuses(answers) == {201: 20, 429: 40}


async def test_tenant_wide_limit_holds_over_job_types_that_are_asked_for_at_once(caller: Caller) -> None:
    """Ten job types with room of their own share the tenant's seven slots."""
    done(caller.post("/quotas", {"job_type": None, "limits": ROOMY | {"max_active": 7}}), 201)
    for number in range(10):
        done(caller.post("/quotas", {"job_type": f"type-{number}", "limits": ROOMY}), 201)

    answers = await at_once(caller, "/admissions", [{"job_type": f"type-{n % 10}"} for n in range(60)])

    assert statuses(answers) == {201: 7, 429: 53}


async def test_one_job_asked_for_at_once_gets_one_lease(caller: Caller) -> None:
    """Everybody who names the job gets the same lease; one of them made it."""
    done(caller.post("/quotas", {"job_type": "scan", "limits": ROOMY}), 201)

    answers = await at_once(caller, "/admissions", [{"job_type": "scan", "job_id": "nightly"}] * 40)

    assert statuses(answers) == {201: 1, 200: 39}
    assert len({answer.json()["lease_id"] for answer in answers}) == 1


async def test_repeats_under_one_idempotency_key_at_once_act_once(caller: Caller) -> None:
    """All get the first answer; those that did not act say that it is a replay."""
    body = {"job_type": "scan", "limits": ROOMY}

    answers = await at_once(caller, "/quotas", [body] * 30, **{"Idempotency-Key": "make-it-once"})

    assert statuses(answers) == {201: 30}
    assert len({answer.content for answer in answers}) == 1
    assert sum("Idempotent-Replayed" in answer.headers for answer in answers) == 29
    assert len(caller.items("/quotas")) == 1


async def test_adjustments_under_one_version_at_once_apply_once(caller: Caller) -> None:
    """Of 20 changes that all name version 1 in If-Match one is applied, the others are told to look again."""
    quota: dict[str, Any] = caller.quota()
    headers = {"Authorization": f"Bearer {caller.token()}", "If-Match": '"1"'}
    url = f"{caller.url}{API}/quotas/{quota['quota_id']}"

    async with httpx2.AsyncClient(trust_env=False, timeout=60, headers=headers) as client:
        asked = [client.patch(url, json={"limits": {"max_active": 5 + number}}) for number in range(20)]
        answers = await asyncio.gather(*asked)

    assert statuses(answers) == {200: 1, 412: 19}
    [applied] = [answer.json() for answer in answers if answer.status_code == 200]
    assert caller.get(f"/quotas/{quota['quota_id']}")["limits"] == applied["limits"]
    assert len(caller.items(f"/quotas/{quota['quota_id']}/history")) == 2


async def test_workers_that_claim_at_once_never_get_the_same_batch(caller: Caller) -> None:
    """24 batches go to 40 workers, each batch to one."""
    done(caller.post("/quotas", {"job_type": "external", "limits": ROOMY}), 201)
    done(caller.backfill(partition="PT1H"), 202)

    answers = await at_once(caller, "/batches/claim", [{"job_types": ["external"]}] * 40)

    claimed = [batch["batch_id"] for answer in answers for batch in done(answer)["batches"]]
    assert len(claimed) == len(set(claimed)) == 24
