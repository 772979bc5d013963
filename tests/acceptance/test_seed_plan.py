"""The promises that the project began with, one test each, against a real server."""

import pytest
from tests.acceptance.callers import REASON, SMALL, TICKET, Caller, done
from tests.acceptance.conftest import Forge
from tests.factories import expect_problem


def test_request_a_quota_adjustment_with_quota_reason_and_quota_ticket_is_applied_and_audited(caller: Caller) -> None:
    """The limit holds from the answer on, and the log says what changed, who changed it and why."""
    quota = caller.quota()

    adjusted = done(caller.patch(f"/quotas/{quota['quota_id']}", {"limits": {"max_active": 8}}), 200)

    assert adjusted["limits"] == {**SMALL, "max_active": 8}
    assert adjusted["version"] == quota["version"] + 1
    assert caller.get(f"/quotas/{quota['quota_id']}") == adjusted
    entry = caller.entry(adjusted["last_change"]["audit_entry_id"])
    assert (entry["action"], entry["outcome"]) == ("quota.adjusted", "success")
    assert entry["resource"] == {"type": "quota", "id": quota["quota_id"]}
    assert entry["actor"]["client_id"] == caller.credentials.client_id
    assert (entry["before"]["limits"], entry["after"]["limits"]) == (quota["limits"], adjusted["limits"])
    for _ in range(8):
        done(caller.post("/admissions", {"job_type": "scan"}), 201)


def test_attempt_a_quota_adjustment_without_quota_reason_is_rejected_with_400(caller: Caller) -> None:
    """Without a reason the authority grants no token that could adjust a quota, and the refusal is audited."""
    answer = caller.ask_token("orch:quota", quota_ticket=TICKET)

    assert answer.status_code == 400
    assert answer.json()["error"] == "invalid_request"
    assert "quota_reason" in answer.json()["error_description"]
    assert "access_token" not in answer.text
    [denial] = caller.logged(1, action="authority.client_credentials.deny")
    assert (denial["outcome"], denial["actor"]["client_id"]) == ("refused", caller.credentials.client_id)


@pytest.mark.parametrize("reason", [None, "", "   ", "test", "\u2800", "a" * 257, "line\nbreak"])
def test_a_quota_token_without_a_valid_quota_reason_is_rejected_with_400_at_the_quotas(
    caller: Caller, forge: Forge, reason: str | None
) -> None:
    """Whoever issued the token: without a reason that means something nothing changes."""
    quota = caller.quota()
    bare = caller.bearing(forge(caller.tenant, "orch:quota", quota_reason=reason, quota_ticket=TICKET))

    answers = [
        bare.patch(f"/quotas/{quota['quota_id']}", {"limits": {"max_active": 8}}),
        bare.send("DELETE", f"/quotas/{quota['quota_id']}"),
        bare.post(f"/quotas/{quota['quota_id']}/pause"),
        bare.post("/quotas", {"job_type": "other", "limits": SMALL}),
    ]

    for answer in answers:
        expect_problem(answer, 400, "quota_reason_required")
    assert caller.items("/quotas") == [quota]


def test_request_a_backfill_with_backfill_reason_is_initiated(caller: Caller) -> None:
    """The backfill exists with its batches, its reason and its audit entry, and workers get its batches."""
    answer = caller.backfill()

    started = done(answer, 202)
    assert answer.headers["Location"] == f"/api/v1/backfills/{started['backfill_id']}"
    assert (started["status"], started["progress"]["batches"]["total"]) == ("pending", 4)
    assert (started["reason"], started["ticket"]) == ("lost a day of events", "OPS-2")
    assert started["requested_by"]
    entry = caller.entry(started["audit_entry_id"])
    assert (entry["action"], entry["reason"]) == ("backfill.requested", "lost a day of events")
    claimed = done(caller.post("/batches/claim", {"job_types": ["external"], "max": 2}))["batches"]
    assert [batch["backfill_id"] for batch in claimed] == [started["backfill_id"]] * 2
    assert caller.get(f"/backfills/{started['backfill_id']}")["status"] == "running"


def test_submit_a_duplicate_backfill_within_the_event_time_window_is_rejected_by_the_duplicate_suppressor(
    caller: Caller,
) -> None:
    """The second request is told which backfill covers its window; a window that only touches it is no duplicate."""
    first = done(caller.backfill(), 202)

    problem = expect_problem(caller.backfill(), 409, "duplicate_backfill")

    assert [other["backfill_id"] for other in problem["overlaps"]] == [first["backfill_id"]]
    assert problem["uncovered"] == []
    longer = {"start": "2026-02-28T00:00:00Z", "end": "2026-03-03T00:00:00Z"}
    problem = expect_problem(caller.backfill(window=longer), 409, "duplicate_backfill")
    assert problem["uncovered"] == [
        {"start": "2026-02-28T00:00:00Z", "end": "2026-03-01T00:00:00Z"},
        {"start": "2026-03-02T00:00:00Z", "end": "2026-03-03T00:00:00Z"},
    ]
    for uncovered in problem["uncovered"]:
        done(caller.backfill(window=uncovered), 202)
    caller.logged(2, action="backfill.duplicate_rejected")


def test_audit_trail_of_the_quota_adjustment_holds_reason_and_ticket(caller: Caller) -> None:
    """Entry, history and the quota itself tell the same reason and ticket, and so does the grant of the token."""
    quota = caller.quota()
    caller.patch(f"/quotas/{quota['quota_id']}", {"limits": {"burst": 20}})

    [adjusted] = caller.logged(1, action="quota.adjusted", resource_id=quota["quota_id"])

    assert (adjusted["reason"], adjusted["ticket"]) == (REASON, TICKET)
    assert adjusted["properties"]["quota.reason"] == REASON
    assert adjusted["properties"]["quota.ticket"] == TICKET
    change = caller.items(f"/quotas/{quota['quota_id']}/history")[-1]
    assert (change["reason"], change["ticket"]) == (REASON, TICKET)
    assert (change["from"]["burst"], change["to"]["burst"]) == (10, 20)
    [grant] = [
        entry
        for entry in caller.items("/audit/entries", action="authority.client_credentials.grant")
        if entry["token_id"] == adjusted["token_id"]
    ]
    assert grant["properties"]["quota.reason"] == REASON
    assert caller.get("/audit/verify")["ok"] is True


def test_query_current_quota_usage_returns_limits_and_current_usage(caller: Caller) -> None:
    """The use is that of the leases which live at the moment of the question."""
    quota = caller.quota()
    leases = [done(caller.post("/admissions", {"job_type": "scan", "slots": slots}), 201) for slots in (1, 2)]

    found = caller.get(f"/quotas/{quota['quota_id']}")

    assert found["limits"] == found["effective_limits"] == SMALL
    assert (found["usage"]["active"], found["usage"]["granted_last_hour"]) == (3, 2)
    assert 8 <= found["usage"]["tokens"] <= 10
    lease = leases[1]
    caller.post(f"/admissions/{lease['lease_id']}/release", {"fencing_token": lease["fencing_token"]})
    assert caller.get(f"/quotas/{quota['quota_id']}")["usage"]["active"] == 1


def test_adjust_quota_beyond_the_maximum_limit_is_rejected_by_policy(caller: Caller) -> None:
    """The refusal names limit and maximum, changes nothing, and is audited."""
    quota = caller.quota()

    answer = caller.patch(f"/quotas/{quota['quota_id']}", {"limits": {"max_active": 1_001}})

    problem = expect_problem(answer, 422, "policy_maximum_exceeded")
    assert (problem["limit"], problem["maximum"], problem["requested"]) == ("max_active", 1_000, 1_001)
    assert caller.get(f"/quotas/{quota['quota_id']}") == quota
    [refused] = caller.logged(1, action="quota.refused")
    assert (refused["outcome"], refused["reason"]) == ("refused", REASON)


def test_adjust_quota_for_tenant_a_leaves_tenant_b_quota_unchanged(caller: Caller, stranger: Caller) -> None:
    """The quota of the same job type in another tenant stays as it is, to the last byte; so does its log."""
    mine, theirs = caller.quota(), stranger.quota()
    path = f"/quotas/{theirs['quota_id']}"
    before = stranger.send("GET", path).content

    adjusted = done(caller.patch(f"/quotas/{mine['quota_id']}", {"limits": {"max_active": 8}}), 200)
    expect_problem(caller.patch(path, {"limits": {"max_active": 8}}), 404, "not_found")

    assert stranger.send("GET", path).content == before
    caller.entry(adjusted["last_change"]["audit_entry_id"])
    [created] = stranger.logged(1, resource_type="quota")
    assert created["entry_id"] == theirs["last_change"]["audit_entry_id"]
