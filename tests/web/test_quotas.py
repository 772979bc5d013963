"""Contract section 4: what a quota is, and every way to change it."""

import asyncio
import itertools

import pytest
from tests.conftest import PassTime
from tests.factories import LIMITS, Api, expect_problem

MEMBERS = {
    "quota_id", "tenant_id", "job_type", "limits", "effective_limits", "usage", "allocation", "paused", "pause_reason",
    "version", "created_at", "updated_at", "updated_by", "last_change",
}  # fmt: skip


async def test_a_new_quota_has_every_member_and_nothing_in_use(api: Api) -> None:
    """The resource that POST answers is the one that GET shows."""
    answer = await api.post("/quotas", {"job_type": "scan", "limits": LIMITS})

    quota = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (201, f"/api/v1/quotas/{quota['quota_id']}")
    assert answer.headers["etag"] == '"1"'
    assert quota.keys() == MEMBERS
    assert quota["limits"] == quota["effective_limits"] == LIMITS
    assert quota["usage"] == {"active": 0, "active_backfill": 0, "granted_last_hour": 0, "tokens": 10}
    assert (quota["tenant_id"], quota["job_type"], quota["version"]) == (api.tenant_id, "scan", 1)
    assert (quota["paused"], quota["pause_reason"], quota["allocation"]) == (False, None, None)
    assert quota["created_at"] == quota["updated_at"] == quota["last_change"]["at"]
    assert quota["created_at"].endswith("Z")
    shown = await api.get(f"/quotas/{quota['quota_id']}")
    assert (shown.status_code, shown.json(), shown.headers["etag"]) == (200, quota, '"1"')


async def test_reason_ticket_and_author_come_from_the_token(api: Api) -> None:
    """``last_change`` names the entry that proves it; a ticket is optional."""
    change = (await api.quota())["last_change"]
    assert (change["action"], change["reason"], change["ticket"]) == ("created", "launch day", "OPS-1")
    assert len(change["audit_entry_id"]) == 36

    terse = api.speaking("orch:quota", quota_reason="no ticket for this", owner="night shift")
    quota = await terse.quota("load")
    assert (quota["updated_by"], quota["last_change"]["ticket"]) == ("night shift", None)


async def test_a_second_quota_for_a_job_type_is_a_conflict(api: Api) -> None:
    """One per (tenant, job type); the whole tenant counts as one."""
    for job_type in ("scan", None):
        await api.quota(job_type)
        again = await api.post("/quotas", {"job_type": job_type, "limits": LIMITS})
        expect_problem(again, 409, "quota_exists")


async def test_of_many_equal_creations_exactly_one_wins(api: Api) -> None:
    """Whoever comes second learns it, however close."""
    answers = await asyncio.gather(*[api.post("/quotas", {"job_type": "scan", "limits": LIMITS}) for _ in range(8)])

    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7
    [quota] = (await api.get("/quotas")).json()["items"]
    history = (await api.get(f"/quotas/{quota['quota_id']}/history")).json()["items"]
    assert [change["version"] for change in history] == [1]


@pytest.mark.parametrize("job_type", ["a", "A9", "a.b_c-d", "9", "a" * 100, "not-configured-anywhere"])
async def test_any_well_formed_job_type_may_have_a_quota(api: Api, job_type: str) -> None:
    """Quotas need no configured handler."""
    assert (await api.quota(job_type))["job_type"] == job_type


async def test_a_patch_changes_the_limits_it_names(api: Api) -> None:
    """The others stay, the version grows, and the answer is the adjusted quota."""
    quota = await api.quota()

    answer = await api.patch(f"/quotas/{quota['quota_id']}", {"limits": {"max_active": 8, "refill_per_second": 0.25}})

    changed = answer.json()
    assert (answer.status_code, answer.headers["etag"], changed["version"]) == (200, '"2"', 2)
    assert changed["limits"] == LIMITS | {"max_active": 8, "refill_per_second": 0.25}
    assert changed["effective_limits"] == changed["limits"]
    assert changed["last_change"]["action"] == "adjusted"
    assert changed["updated_at"] > quota["updated_at"]


@pytest.mark.parametrize("body", [{}, {"limits": {}}, {"limits": {"max_active": 1}, "on_excess": "kill"}])
async def test_a_patch_that_says_nothing_or_the_unknown_is_a_wrong_value(api: Api, body: object) -> None:
    """There is one thing to do about use above the limit: to deny new work."""
    path = f"/quotas/{(await api.quota())['quota_id']}"

    expect_problem(await api.patch(path, body), 422, "validation_failed")
    assert (await api.patch(path, {"limits": {"max_active": 1}, "on_excess": "block_new"})).status_code == 200


async def test_if_match_guards_every_change(api: Api) -> None:
    """412 `version_conflict` names the present version, and nothing changes."""
    path = f"/quotas/{(await api.quota())['quota_id']}"
    await api.patch(path, {"limits": {"burst": 9}})
    raise_it = {"limits": {"max_active": 9}, "until": "2999-01-01T00:00:00Z"}

    for sent in ('"1"', '"3"', "2", '"x"', "", '"1", "2"x'):
        stale = {"If-Match": sent}
        for answer in (
            await api.patch(path, {"limits": {"burst": 8}}, headers=stale),
            await api.delete(path, headers=stale),
            await api.post(f"{path}/pause", headers=stale),
            await api.post(f"{path}/resume", headers=stale),
            await api.post(f"{path}/overrides", raise_it, headers=stale),
        ):
            assert expect_problem(answer, 412, "version_conflict")["version"] == 2

    assert (await api.get(path)).json()["limits"]["burst"] == 9
    for good in ('"2"', "*"):
        assert (await api.patch(path, {"limits": {"burst": 9}}, headers={"If-Match": good})).status_code == 200


async def test_of_concurrent_changes_under_one_version_exactly_one_wins(api: Api) -> None:
    """A lost update cannot happen to whoever sends ``If-Match``."""
    path = f"/quotas/{(await api.quota())['quota_id']}"

    answers = await asyncio.gather(*[
        api.patch(path, {"limits": {"burst": burst}}, headers={"If-Match": '"1"'}) for burst in range(1, 7)
    ])  # fmt: skip

    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 5
    assert (await api.get(path)).json()["version"] == 2


async def test_concurrent_changes_without_a_version_all_count(api: Api) -> None:
    """Each is one step of the history, with times that never go back."""
    path = f"/quotas/{(await api.quota())['quota_id']}"

    await asyncio.gather(*[api.patch(path, {"limits": {"burst": burst}}) for burst in range(1, 9)])

    changes = (await api.get(f"{path}/history")).json()["items"]
    assert [change["version"] for change in changes] == list(range(1, 10))
    assert [change["at"] for change in changes] == sorted(change["at"] for change in changes)
    assert all(before["to"] == after["from"] for before, after in itertools.pairwise(changes))


async def test_a_deleted_quota_is_gone_and_the_defaults_hold(api: Api) -> None:
    """204, then 404; an admission of the job type names no quota."""
    path = f"/quotas/{(await api.quota(max_active=1))['quota_id']}"

    assert (await api.delete(path)).status_code == 204

    for answer in (await api.get(path), await api.delete(path), await api.post(f"{path}/pause")):
        expect_problem(answer, 404, "not_found")
    assert (await api.get("/quotas")).json()["items"] == []
    granted = await api.admit(slots=10)
    assert (granted.status_code, granted.json()["quota_id"]) == (201, None)


async def test_a_paused_quota_denies_new_work_and_keeps_its_limits(api: Api) -> None:
    """Pause says why, never lifts a limit, and stops no lease; resume ends it."""
    quota = await api.quota()
    path = f"/quotas/{quota['quota_id']}"
    lease = (await api.admit()).json()

    paused = await api.post(f"{path}/pause", {"pause_reason": "disk full"})

    assert (paused.status_code, paused.json()["paused"], paused.json()["pause_reason"]) == (200, True, "disk full")
    assert paused.json()["limits"] == quota["limits"]
    denied = await api.admit()
    [blocking] = expect_problem(denied, 429, "admission_denied")["blocking"]
    assert (blocking["limit"], blocking["retry_after_seconds"]) == ("paused", None)
    assert "retry-after" not in denied.headers
    renewal = {"fencing_token": lease["fencing_token"]}
    assert (await api.post(f"/admissions/{lease['lease_id']}/renew", renewal)).status_code == 200

    resumed = await api.post(f"{path}/resume")
    assert (resumed.json()["paused"], resumed.json()["pause_reason"], resumed.json()["version"]) == (False, None, 3)
    assert (await api.admit()).status_code == 201


async def test_a_paused_tenant_denies_every_job_type(api: Api) -> None:
    """The tenant-wide quota must grant too."""
    quota = await api.quota(None)
    await api.post(f"/quotas/{quota['quota_id']}/pause")

    [blocking] = expect_problem(await api.admit("anything"), 429, "admission_denied")["blocking"]
    assert (blocking["limit"], blocking["job_type"], blocking["quota_id"]) == ("paused", None, quota["quota_id"])


async def test_a_release_while_paused_gives_its_slot_back(api: Api) -> None:
    """Pause, release, resume leaks nothing."""
    quota = await api.quota(max_active=1)
    lease = (await api.admit()).json()
    await api.post(f"/quotas/{quota['quota_id']}/pause")
    await api.post(f"/admissions/{lease['lease_id']}/release", {"fencing_token": lease["fencing_token"]})
    await api.post(f"/quotas/{quota['quota_id']}/resume")

    assert (await api.admit()).status_code == 201


async def test_a_list_shows_stored_quotas_by_filter(api: Api) -> None:
    """Defaults are not listed; filters join."""
    for job_type in ("scan", "load", None):
        await api.quota(job_type)
    await api.admit("unlisted")
    paused = (await api.get("/quotas", params={"job_type": "load"})).json()["items"][0]
    await api.post(f"/quotas/{paused['quota_id']}/pause")

    async def listed(**query: str) -> list[str | None]:
        return [quota["job_type"] for quota in (await api.get("/quotas", params=query)).json()["items"]]

    assert await listed() == ["scan", "load", None]
    assert await listed(job_type="scan") == ["scan"]
    assert await listed(paused="true") == ["load"]
    assert await listed(paused="false") == ["scan", None]
    assert await listed(paused="true", job_type="scan") == []


REASONLESS = [
    ("POST", "/quotas", {"job_type": "new", "limits": LIMITS}),
    ("PATCH", "/quotas/{id}", {"limits": {"burst": 1}}),
    ("DELETE", "/quotas/{id}", None),
    ("POST", "/quotas/{id}/pause", None),
    ("POST", "/quotas/{id}/resume", None),
    ("POST", "/quotas/{id}/overrides", {"limits": {"burst": 20}, "until": "2999-01-01T00:00:00Z"}),
    ("DELETE", "/quotas/{id}/overrides/{id}", None),
]


@pytest.mark.parametrize(("method", "path", "body"), REASONLESS)
@pytest.mark.parametrize(
    "claims", [{}, {"quota_reason": "test"}, {"quota_reason": " padded "}, {"quota_ticket": "T-1"}]
)
async def test_a_change_without_a_valid_reason_is_refused(
    api: Api, method: str, path: str, body: object, claims: dict[str, str]
) -> None:
    """``orch:quota`` alone is not enough, whoever issued the token; nothing changes."""
    quota = await api.quota()
    target = path.replace("{id}", quota["quota_id"])

    answer = await api.speaking("orch:quota", **claims).send(method, target, **({"json": body} if body else {}))

    expect_problem(answer, 400, "quota_reason_required")
    assert (await api.get(f"/quotas/{quota['quota_id']}")).json() == quota


async def test_an_emergency_needs_a_ticket_and_is_named_one(api: Api) -> None:
    """It is audited as `quota.emergency`."""
    path = f"/quotas/{(await api.quota())['quota_id']}"
    body = {"limits": {"max_active": 6}, "emergency": True}

    without = api.speaking("orch:quota", quota_reason="queue is full")
    expect_problem(await without.patch(path, body), 422, "validation_failed")
    changed = await api.patch(path, body)
    assert (changed.status_code, changed.json()["last_change"]["action"]) == (200, "emergency")


async def test_the_history_tells_every_change_with_who_and_why(api: Api) -> None:
    """From, to, who, reason and ticket, oldest first, of a deleted quota too."""
    quota = await api.quota()
    path = f"/quotas/{quota['quota_id']}"
    colleague = api.speaking("orch:quota", "orch:read", quota_reason="calm down", quota_ticket="OPS-9", owner="night")
    await colleague.patch(path, {"limits": {"max_active": 2}})
    await api.post(f"{path}/pause")
    await api.delete(path)

    changes = (await api.get(f"{path}/history")).json()["items"]

    assert [change["action"] for change in changes] == ["created", "adjusted", "paused", "deleted"]
    assert [(change["from"], change["to"]) for change in changes] == [
        (None, LIMITS),
        (LIMITS, LIMITS | {"max_active": 2}),
        (LIMITS | {"max_active": 2}, LIMITS | {"max_active": 2}),
        (LIMITS | {"max_active": 2}, None),
    ]
    assert [change["who"] for change in changes] == ["ops", "night", "ops", "ops"]
    assert (changes[1]["reason"], changes[1]["ticket"]) == ("calm down", "OPS-9")
    assert len({change["audit_entry_id"] for change in changes}) == 4


async def test_the_history_comes_in_pages(api: Api) -> None:
    """Its token continues where the page ended."""
    path = f"/quotas/{(await api.quota())['quota_id']}"
    for burst in (1, 2):
        await api.patch(path, {"limits": {"burst": burst}})

    first = (await api.get(f"{path}/history", params={"page_size": 2})).json()
    query = {"page_size": 2, "page_token": first["next_page_token"]}
    second = (await api.get(f"{path}/history", params=query)).json()

    assert [change["version"] for change in first["items"] + second["items"]] == [1, 2, 3]
    assert second["next_page_token"] is None


async def test_the_limits_of_any_past_moment_can_be_asked(api: Api) -> None:
    """``at`` shows what held then: nothing before the quota, its limits between, nothing after it was deleted."""
    quota = await api.quota()
    path = f"/quotas/{quota['quota_id']}"
    changed = (await api.patch(path, {"limits": {"max_active": 9}})).json()
    await api.delete(path)

    async def as_of(at: str) -> object:
        return (await api.get(f"{path}/history", params={"at": at})).json()["as_of"]

    assert await as_of("2020-01-01T00:00:00Z") is None
    then = {"version": 1, "limits": LIMITS, "effective_limits": LIMITS}
    assert await as_of(quota["created_at"]) == then | {"at": quota["created_at"]}
    now = LIMITS | {"max_active": 9}
    assert await as_of(changed["updated_at"]) == {
        "at": changed["updated_at"], "version": 2, "limits": now, "effective_limits": now,
    }  # fmt: skip
    assert await as_of("2999-01-01T00:00:00Z") is None


@pytest.mark.parametrize(
    "at",
    [
        "2026-01-01T00:00:00",
        "2026-01-01T00:00:00+01:00",
        "2026-01-01T00:00:00+00:00",
        "2026-01-01T00:00:00.1234567Z",
        "2016-12-31T23:59:60Z",
        "2026-02-30T00:00:00Z",
        "2026-01-01",
        "yesterday",
        "2026-01-01t00:00:00z",
        "1767225600",
        "",
    ],
)
async def test_a_time_that_is_not_utc_to_the_microsecond_is_a_wrong_value(api: Api, at: str) -> None:
    """Other offsets, naive times, leap seconds and seven digits are refused alike, in queries and in bodies."""
    path = f"/quotas/{(await api.quota())['quota_id']}"

    asked = await api.get(f"{path}/history", params={"at": at})
    raised = await api.post(f"{path}/overrides", {"limits": {"burst": 11}, "until": at})

    assert expect_problem(asked, 422, "validation_failed")["errors"][0]["path"] == "at"
    assert expect_problem(raised, 422, "validation_failed")["errors"][0]["path"] == "until"


async def test_the_summary_adds_up_by_job_type(api: Api) -> None:
    """Totals, utilisation, pauses, and the denials of the last hour; unlisted job types show by their defaults."""
    await api.quota("scan", max_active=4)
    paused = await api.quota("load")
    await api.post(f"/quotas/{paused['quota_id']}/pause")
    await api.quota(None, max_active=10)
    await api.admit("scan", slots=3)
    await api.admit("scan", slots=2)
    await api.admit("load")
    await api.admit("unlisted")

    summary = (await api.get("/quotas/summary")).json()

    assert summary["totals"] == {"quotas": 3, "paused": 1, "active": 4, "denials_last_hour": 2}
    by_type = {item["job_type"]: item for item in summary["items"]}
    assert by_type.keys() == {"scan", "load", None, "unlisted"}
    assert (by_type["scan"]["active"], by_type["scan"]["max_active"], by_type["scan"]["utilisation"]) == (3, 4, 0.75)
    assert by_type["scan"]["denials_last_hour"] == {"max_active": 1}
    assert (by_type["load"]["paused"], by_type["load"]["denials_last_hour"]) == (True, {"paused": 1})
    assert (by_type[None]["active"], by_type[None]["utilisation"]) == (4, 0.4)
    assert (by_type["unlisted"]["quota_id"], by_type["unlisted"]["max_active"]) == (None, 10)


async def test_tokens_are_shown_as_the_next_decision_counts_them(api: Api, later: PassTime) -> None:
    """A raised refill rate acts from its own time on, not on the minutes before it."""
    quota = await api.quota(burst=10, refill_per_second=0.001)
    for _ in range(4):
        assert (await api.admit()).status_code == 201
    await later(api.tenant_id, 60)

    changed = await api.patch(f"/quotas/{quota['quota_id']}", {"limits": {"refill_per_second": 0.01}})

    assert changed.status_code == 200, changed.text
    shown = (await api.get(f"/quotas/{quota['quota_id']}")).json()["usage"]["tokens"]
    assert 6 <= shown < 6.5
