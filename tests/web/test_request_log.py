"""The log of requests: one line each, with who and how long, and never a token, a secret or a reason."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.factories import Api
from tests.web.authority_desk import GRANT_TYPE, Desk

from jobengine.logs import Level, configure_logs

REASON = "the spring catalogue doubles"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

Told = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def told(capfd: pytest.CaptureFixture[str]) -> Told:
    """What the log has said since the last look."""
    configure_logs()

    def look() -> list[dict[str, Any]]:
        return [json.loads(line) for line in capfd.readouterr().err.splitlines()]

    look()
    return look


async def test_a_request_is_one_line_with_who_and_how_long(desk: Desk, told: Told) -> None:
    """Method, route template, status, time, trace, tenant and client."""
    token = await desk.granted()
    told()

    headers = {"Authorization": f"Bearer {token}", "traceparent": TRACEPARENT}
    await desk.http.get("/api/v1/quotas?page_size=1", headers=headers)

    [line] = told()
    assert line.pop("duration_ms") > 0
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "request.done",
        "level": "info",
        "method": "GET",
        "route": "/api/v1/quotas",
        "status": 200,
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "tenant": desk.client.tenants[0],
        "client_id": desk.client.client_id,
    }


async def test_a_refused_request_names_its_client_once_that_is_proved(desk: Desk, told: Told) -> None:
    """A token proves it, and so does a secret; a claimed id proves nothing."""
    token = await desk.granted("orch:read")
    told()

    await desk.http.post("/api/v1/admissions", headers={"Authorization": f"Bearer {token}"}, json={"job_type": "x"})
    await desk.ask(**GRANT_TYPE)
    await desk.http.post("/oauth2/token", data=GRANT_TYPE, auth=(desk.client.client_id, "wrong"))

    lines = told()
    assert [(line["status"], line["client_id"]) for line in lines] == [
        (403, desk.client.client_id),
        (400, desk.client.client_id),
        (401, None),
    ]
    assert [line["tenant"] for line in lines] == [desk.client.tenants[0], None, None]


async def test_a_path_that_no_route_takes_is_logged_without_it(desk: Desk, told: Told) -> None:
    """Whoever types a token into a path does not find it in the log."""
    await desk.http.get("/api/v1/eyJhbGciOi")
    await desk.http.request("DELETE", "/api/v1/quotas")

    assert [(line["route"], line["status"]) for line in told()] == [("unknown", 404), ("unknown", 405)]


async def test_what_machines_ask_every_few_seconds_is_not_logged(desk: Desk, told: Told) -> None:
    """Unless somebody wants to hear everything."""
    for path in ("/healthz", "/readyz", "/metrics"):
        await desk.http.get(path)
    assert told() == []

    configure_logs("debug")
    try:
        await desk.http.get("/healthz")
        assert [line["route"] for line in told()] == ["/healthz"]
    finally:
        configure_logs()


@pytest.mark.parametrize("level", ["warning", "error"])
async def test_a_higher_level_leaves_requests_out(desk: Desk, told: Told, level: Level) -> None:
    """JOBENGINE_LOG_LEVEL decides."""
    configure_logs(level)
    try:
        await desk.granted()
        assert told() == []
    finally:
        configure_logs()


async def secrets_of(desk: Desk, api: Api) -> list[str]:
    """Send secrets by every way there is, right and wrong, and return them all."""
    reasons = {"quota_reason": REASON, "quota_ticket": "CHG-1042"}
    token = await desk.granted("orch:quota orch:read", **reasons)
    bearer = {"Authorization": f"Bearer {token}"}
    await desk.http.post("/oauth2/token", data=GRANT_TYPE | desk.in_body | {"scope": "orch:quota"} | reasons)
    await desk.http.post(
        "/oauth2/token", data={**GRANT_TYPE, "client_id": desk.secret, "client_secret": "wr0ng-s3cret"}
    )
    await desk.http.post(f"/oauth2/token?client_secret={desk.secret}")
    await desk.http.get(f"/api/v1/quotas?access_token={token}")
    await desk.http.get(f"/api/v1/quotas/{token}", headers=bearer)
    await desk.http.get(f"/api/v1/quotas?page_token={desk.secret}", headers=bearer)
    await desk.http.get("/api/v1/quotas", headers={"Authorization": f"Bearer {token[:-2]}"})
    await desk.http.get("/api/v1/quotas", headers={"Authorization": f"Bearer {desk.secret}"})
    await desk.http.get("/api/v1/quotas", headers=bearer | {"X-StellaOps-Tenant": desk.secret})
    limits = {"max_active": 1, "max_per_hour": 1, "burst": 1, "refill_per_second": 1}
    made = await desk.http.post("/api/v1/quotas", json={"job_type": "scan", "limits": limits}, headers=bearer)
    await desk.http.patch(
        f"/api/v1/quotas/{made.json()['quota_id']}", json={"limits": {"max_active": 10**9}}, headers=bearer
    )
    await desk.http.post("/api/v1/quotas", content=b"{" + desk.secret.encode(), headers=bearer)
    paused = f"/api/v1/quotas/{made.json()['quota_id']}/pause"
    await desk.http.post(paused, json={"pause_reason": REASON}, headers=bearer)
    await desk.introspect(token)
    await desk.ask("/oauth2/revoke", token=token)
    await api.post("/backfills", {"reason": REASON})
    return [desk.secret, "wr0ng-s3cret", token, *token.split(".")[1:], api.token, REASON]


async def test_no_line_holds_a_secret_a_token_or_a_reason(
    desk: Desk, api: Api, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whoever reads the log learns that something was asked, and nothing that lets them ask."""
    configure_logs("debug")
    try:
        capfd.readouterr()
        sent = await secrets_of(desk, api)
        text = "".join(capfd.readouterr())
    finally:
        configure_logs()

    assert text.count("request.done") >= 15
    assert [secret for secret in sent if secret in text] == []


async def test_a_fault_of_ours_is_told_without_what_was_sent(scratch: Desk, capfd: pytest.CaptureFixture[str]) -> None:
    """The log gets the story of an unforeseen error: frames, not values."""
    token = await scratch.granted("orch:quota", quota_reason=REASON)
    await scratch.plane.database.close()
    capfd.readouterr()

    answer = await scratch.token("orch:quota", quota_reason=REASON)
    again = await scratch.http.get("/api/v1/quotas", headers={"Authorization": f"Bearer {token}"})

    text = "".join(capfd.readouterr())
    assert {answer.status_code, again.status_code} <= {500, 503}
    assert "request.done" in text
    assert [secret for secret in (scratch.secret, token, REASON) if secret in text] == []
