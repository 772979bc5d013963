"""Contract section 1: a request sent again under its key is done once."""

import asyncio

import httpx2
import pytest
from tests.conftest import PassTime
from tests.factories import API, LIMITS, Api, expect_problem, make_api

BODY = {"job_type": "scan", "limits": LIMITS}
REPLAYED = "idempotent-replayed"


def key(name: str) -> dict[str, str]:
    return {"Idempotency-Key": name}


async def test_a_repeat_gets_the_first_answer_and_changes_nothing(api: Api) -> None:
    """Status, body, ETag and Location are those of the first."""
    first = await api.post("/quotas", BODY, headers=key("k"))
    again = await api.post("/quotas", BODY, headers=key("k"))

    assert (first.status_code, REPLAYED in first.headers) == (201, False)
    assert (again.status_code, again.content, again.headers[REPLAYED]) == (201, first.content, "true")
    assert [again.headers[name] for name in ("etag", "location", "content-type")] == [
        first.headers[name] for name in ("etag", "location", "content-type")
    ]
    assert len((await api.get("/quotas")).json()["items"]) == 1


async def test_a_repeated_admission_takes_one_slot(api: Api) -> None:
    """A scheduler that lost the answer holds one lease, not two."""
    first, again = [await api.post("/admissions", {"job_type": "scan"}, headers=key("k")) for _ in range(2)]

    assert first.json() == again.json()
    assert len((await api.get("/admissions")).json()["items"]) == 1


async def test_concurrent_repeats_wait_for_the_first(api: Api) -> None:
    """Exactly one of them does the work; the others get its answer."""
    answers = await asyncio.gather(*[api.post("/admissions", {"job_type": "scan"}, headers=key("k")) for _ in range(8)])

    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["lease_id"] for answer in answers}) == 1
    assert sum(REPLAYED in answer.headers for answer in answers) == 7


async def test_another_body_under_the_same_key_is_refused(api: Api) -> None:
    """The key belongs to the request, and the first one stands."""
    await api.post("/quotas", BODY, headers=key("k"))

    other = await api.post("/quotas", BODY | {"job_type": "load"}, headers=key("k"))

    expect_problem(other, 422, "idempotency_key_reused")
    assert [quota["job_type"] for quota in (await api.get("/quotas")).json()["items"]] == ["scan"]


async def test_another_method_under_the_same_key_is_another_request(api: Api) -> None:
    """A DELETE is not the repeat of a PATCH."""
    path = f"/quotas/{(await api.quota())['quota_id']}"
    await api.send("PATCH", path, json={"limits": {"burst": 1}}, headers=key("k"))

    expect_problem(await api.delete(path, headers=key("k")), 422, "idempotency_key_reused")


async def test_a_delete_is_repeated_too(api: Api) -> None:
    """The second DELETE is answered like the first, not with 404."""
    path = f"/quotas/{(await api.quota())['quota_id']}"

    answers = [await api.delete(path, headers=key("k")) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [204, 204]
    assert answers[1].headers[REPLAYED] == "true"
    assert (await api.delete(path)).status_code == 404


async def test_an_error_frees_the_key(api: Api) -> None:
    """What failed can be tried again under the same key."""
    path = f"/quotas/{(await api.quota())['quota_id']}"
    await api.post("/quotas", BODY, headers=key("k"))
    expect_problem(await api.post("/quotas", BODY, headers=key("other")), 409, "quota_exists")
    await api.delete(path)

    assert (await api.post("/quotas", BODY, headers=key("other"))).status_code == 201


async def test_a_refusal_frees_the_key(api: Api) -> None:
    """A refused change and a denied admission are not remembered; the next try is judged anew."""
    quota = await api.quota(max_active=1)
    path = f"/quotas/{quota['quota_id']}"
    refused = await api.patch(path, {"limits": {"max_active": 11}}, headers=key("k"))
    expect_problem(refused, 422, "policy_raise_too_large")
    assert (await api.patch(path, {"limits": {"max_active": 10}}, headers=key("k"))).status_code == 200

    denied = await api.post("/admissions", {"job_type": "scan", "slots": 11}, headers=key("a"))
    expect_problem(denied, 422, "slots_exceed_limit")
    assert (await api.post("/admissions", {"job_type": "scan", "slots": 9}, headers=key("a"))).status_code == 201


async def test_a_key_is_free_again_after_a_day(api: Api, later: PassTime) -> None:
    """Repeats come within 24 h."""
    await api.post("/admissions", {"job_type": "scan"}, headers=key("k"))
    await later(api.tenant_id, 86_401)

    other = await api.post("/admissions", {"job_type": "load"}, headers=key("k"))
    assert (other.status_code, REPLAYED in other.headers) == (201, False)


async def test_a_key_belongs_to_one_client_tenant_and_path(api: Api, stranger: Api) -> None:
    """Nobody meets another's key."""
    await api.post("/admissions", {"job_type": "scan"}, headers=key("k"))
    colleague = make_api(api.client, api.plane, api.tenant_id, client_id="jec_other")

    for caller, path, body in (
        (colleague, "/admissions", {"job_type": "load"}),
        (stranger, "/admissions", {"job_type": "load"}),
        (api, "/quotas", BODY),
    ):
        answer = await caller.post(path, body, headers=key("k"))
        assert (answer.status_code, REPLAYED in answer.headers) == (201, False)


async def test_authorisation_comes_before_a_replay(api: Api) -> None:
    """Who may not do it does not learn what came of it."""
    await api.post("/quotas", BODY, headers=key("k"))

    expect_problem(await api.speaking("orch:read").post("/quotas", BODY, headers=key("k")), 403, "insufficient_scope")


@pytest.mark.parametrize("name", ["", " ", "a b", "ä", "a" * 129, "a\tb"])
async def test_a_key_that_is_not_visible_ascii_is_a_wrong_value(api: Api, name: str) -> None:
    """1 to 128 visible characters."""
    answer = await api.post("/quotas", BODY, headers={"Idempotency-Key": name.encode()})

    assert expect_problem(answer, 422, "validation_failed")["errors"][0]["path"] == "Idempotency-Key"


async def test_a_key_sent_twice_is_a_wrong_value(api: Api) -> None:
    """Nobody can say which one counts."""
    headers = [("Authorization", f"Bearer {api.token}"), ("Idempotency-Key", "a"), ("Idempotency-Key", "a")]

    answer: httpx2.Response = await api.client.post(f"{API}/quotas", json=BODY, headers=headers)
    expect_problem(answer, 422, "validation_failed")


async def test_an_answer_too_large_to_keep_is_refused_and_nothing_is_done(api: Api) -> None:
    """Over 64 KiB there is no promise to give, so there is no change either."""
    await api.quota(max_active=1_000, burst=1_000, max_per_hour=1_000)
    requests = {"requests": [{"job_type": "scan"}] * 500}

    refused = await api.post("/admissions/batch", requests, headers=key("k"))

    expect_problem(refused, 422, "idempotency_unsupported")
    assert (await api.get("/admissions")).json()["items"] == []
    few = await api.post("/admissions/batch", {"requests": [{"job_type": "scan"}] * 9}, headers=key("k"))
    assert (few.status_code, len(few.json()["results"])) == (200, 9)
