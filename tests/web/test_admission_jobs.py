"""Contract section 5: many questions at once, and the same question asked again for the same job."""

import asyncio

import pytest
from tests.conftest import PassTime
from tests.factories import LEASE, ROOMY, Api, expect_problem


async def test_a_batch_is_decided_in_its_order(api: Api) -> None:
    """Each question sees what those before it took; each answer stands at its question's place."""
    await api.quota(max_active=3)
    requests = [
        {"job_type": "scan", "slots": 2},
        {"job_type": "scan", "slots": 2},
        {"job_type": "load", "slots": 1},
        {"job_type": "scan", "slots": 1},
        {"job_type": "scan", "slots": 4},
    ]

    answer = await api.post("/admissions/batch", {"requests": requests})

    results = answer.json()["results"]
    assert (answer.status_code, [result["granted"] for result in results]) == (200, [True, False, True, True, False])
    assert results[0].keys() == LEASE | {"granted"}
    assert results[1].keys() == {"granted", "blocking"}
    assert [(item["used"], item["requested"]) for item in results[1]["blocking"]] == [(2, 2)]
    [impossible] = results[4]["blocking"]
    assert (impossible["limit"], impossible["used"], impossible["maximum"]) == ("max_active", 3, 3)
    assert impossible["retry_after_seconds"] is None
    assert [results[index]["fencing_token"] for index in (0, 2, 3)] == [1, 1, 2]
    assert (await api.get("/quotas/drift")).json()["drift"] == 0


async def test_a_batch_holds_up_to_a_thousand_questions(api: Api) -> None:
    """None at all is fine; one more than a thousand is a wrong value."""
    await api.quota(**ROOMY)

    answer = await api.post("/admissions/batch", {"requests": [{"job_type": "scan"}] * 1_000})
    assert sum(result["granted"] for result in answer.json()["results"]) == 1_000
    denied = (await api.post("/admissions/batch", {"requests": [{"job_type": "scan"}] * 1_000})).json()["results"]
    assert {(result["granted"], len(result["blocking"])) for result in denied} == {(False, 1)}
    assert (await api.post("/admissions/batch", {"requests": []})).json() == {"results": []}
    over = await api.post("/admissions/batch", {"requests": [{"job_type": "scan"}] * 1_001})
    expect_problem(over, 422, "validation_failed")


async def test_the_same_job_asking_again_gets_its_lease(api: Api) -> None:
    """200 with the same lease, even when nothing else would be admitted, and in a batch as well."""
    quota = await api.quota(max_active=1)
    first = await api.admit(job_id="job-1")
    await api.post(f"/quotas/{quota['quota_id']}/pause")

    again = await api.admit(job_id="job-1")
    batch = await api.post("/admissions/batch", {"requests": [{"job_type": "scan", "job_id": "job-1"}] * 2})

    assert (first.status_code, again.status_code, again.json()) == (201, 200, first.json())
    assert batch.json()["results"] == [{"granted": True, **first.json()}] * 2


@pytest.mark.parametrize("other", [{"job_type": "load"}, {"slots": 2}, {"kind": "backfill"}])
async def test_the_same_job_asking_otherwise_is_a_conflict(api: Api, other: dict[str, object]) -> None:
    """409, and the lease stays as it is."""
    first = (await api.admit(job_id="job-1")).json()

    expect_problem(await api.admit(**{"job_type": "scan", "job_id": "job-1"} | other), 409, "job_id_conflict")
    assert (await api.get("/admissions")).json()["items"] == [first]


async def test_another_length_of_lease_is_no_other_question(api: Api) -> None:
    """`lease_seconds` is for renewals to change."""
    first = (await api.admit(job_id="job-1", lease_seconds=60)).json()

    assert (await api.admit(job_id="job-1", lease_seconds=600)).json() == first


async def test_a_job_whose_lease_is_over_gets_a_new_one(api: Api, later: PassTime) -> None:
    """Released or expired alike."""
    first = (await api.admit(job_id="job-1", lease_seconds=60)).json()
    await api.post(f"/admissions/{first['lease_id']}/release", {"fencing_token": first["fencing_token"]})
    second = await api.admit(job_id="job-1", lease_seconds=60)
    await later(api.tenant_id, 61)
    third = await api.admit(job_id="job-1", slots=2)

    assert [answer.status_code for answer in (second, third)] == [201, 201]
    assert len({first["lease_id"], second.json()["lease_id"], third.json()["lease_id"]}) == 3


async def test_of_many_equal_jobs_at_once_one_lease_is_made(api: Api) -> None:
    """One 201, and for the others 200 with the same lease."""
    answers = await asyncio.gather(*[api.admit(job_id="job-1") for _ in range(20)])

    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [201]
    assert len({answer.json()["lease_id"] for answer in answers}) == 1
