"""Contract section 1: what belongs to another tenant looks, to the byte, like what does not exist."""

import json
import re
from typing import Any

import httpx2
import pytest
from tests.conftest import PassTime
from tests.factories import API, Api, expect_problem

from jobengine.ids import new_id

WINDOW = {"start": "2026-01-01T00:00:00Z", "end": "2026-01-03T00:00:00Z"}
BODIES: dict[str, object] = {
    "PATCH /quotas/{quota_id}": {"limits": {"max_active": 4}},
    "POST /quotas/{quota_id}/simulate": {"limits": {"max_active": 4}},
    "POST /quotas/{quota_id}/overrides": {"limits": {"max_active": 9}, "until": "2999-01-01T00:00:00Z"},
    "POST /admissions/{lease_id}/renew": {"fencing_token": 1},
    "POST /admissions/{lease_id}/release": {"fencing_token": 1},
    "POST /batches/{batch_id}/heartbeat": {"fencing_token": 1},
    "POST /batches/{batch_id}/token": {"fencing_token": 1},
    "POST /batches/{batch_id}/release": {"fencing_token": 1},
    "POST /batches/{batch_id}/events/claim": {"fencing_token": 1, "keys": ["k"]},
    "POST /batches/{batch_id}/complete": {"fencing_token": 1},
    "POST /batches/{batch_id}/fail": {"fencing_token": 1, "error": "no", "retryable": True},
}
GOVERNED = {"POST /audit/entries/{entry_id}/erase"}
LISTS = [
    "/quotas",
    "/quota-changes",
    "/quota-requests",
    "/quotas/summary",
    "/quotas/drift",
    "/admissions",
    "/backfills",
    "/audit/entries",
]


@pytest.fixture
async def ids(api: Api) -> dict[str, str]:
    """One of everything that has an id, in the first tenant."""
    quota = await api.quota("external")
    raised = {"limits": {"max_active": 9}, "until": await api.in_future(days=1)}
    override = await api.post(f"/quotas/{quota['quota_id']}/overrides", raised)
    asked = {"job_type": "external", "limits": {"max_active": 6}, "request_reason": "more orders"}
    change = (await api.post("/quota-requests", asked)).json()
    backfill = (await api.post("/backfills", {"job_type": "external", "source": "orders", "window": WINDOW})).json()
    [batch] = (await api.post("/batches/claim", {"job_types": ["external"]})).json()["batches"]
    return {
        "quota_id": quota["quota_id"],
        "override_id": override.json()["override_id"],
        "change_id": change["change_id"],
        "lease_id": (await api.admit("external")).json()["lease_id"],
        "backfill_id": backfill["backfill_id"],
        "token_id": backfill["token_id"],
        "batch_id": batch["batch_id"],
        "entry_id": quota["last_change"]["audit_entry_id"],
    }


async def everything(api: Api) -> str:
    """What the tenant itself sees, without what moves by itself."""
    shown = [(await api.get(path)).json() for path in LISTS if not path.startswith("/audit")]
    return re.sub(r'"(tokens|lease_expires_at|rate|eta)": [^,}]*', "", json.dumps(shown))


async def test_no_route_knows_an_id_of_another_tenant(
    client: httpx2.AsyncClient, api: Api, stranger: Api, ids: dict[str, str]
) -> None:
    """Every documented route with an id answers a stranger as it answers for an id that was never given."""
    await stranger.quota("external")
    before = await everything(api)
    tried = 0
    for path, methods in (await client.get("/openapi.json")).json()["paths"].items():
        names = set(re.findall(r"{(\w+_id)}", path))
        for method in methods if names else ():
            told = [
                await ask(stranger, method.upper(), path.removeprefix(API), {name: pick[name] for name in names})
                for pick in (ids, dict.fromkeys(names, new_id()))
            ]
            assert told[0] == told[1], f"{method} {path}"
            tried += 1

    assert tried >= 20
    assert await everything(api) == before


async def ask(caller: Api, method: str, path: str, ids: dict[str, str]) -> dict[str, Any]:
    body = BODIES.get(f"{method} {path}")
    answer = await caller.send(method, path.format(**ids), **({} if body is None else {"json": body}))
    refused = (403, "insufficient_scope") if f"{method} {path}" in GOVERNED else (404, "not_found")
    problem = expect_problem(answer, *refused)
    return {name: value for name, value in problem.items() if name != "trace_id"}


@pytest.mark.parametrize("path", LISTS)
async def test_no_list_shows_anything_of_another_tenant(
    api: Api, stranger: Api, ids: dict[str, str], path: str
) -> None:
    """Not in lists, sums or drifts, nor by a filter that names it."""
    shown = (await stranger.get(path)).text + (await stranger.get("/admissions?job_type=external")).text

    assert not [value for value in (*ids.values(), api.tenant_id, "external", "orders") if value in shown]


async def test_neither_use_nor_quota_nor_pause_reaches_another_tenant(api: Api, stranger: Api) -> None:
    """Two tenants may fill, pause and fence the same job type."""
    quota = await api.quota(max_active=1)
    whole = await api.quota(None, max_active=1)
    first = (await api.admit(job_id="job-1")).json()
    for name in (quota, whole):
        await api.post(f"/quotas/{name['quota_id']}/pause")

    answer = await stranger.admit(job_id="job-1", slots=2)

    assert (answer.status_code, answer.json()["quota_id"], answer.json()["fencing_token"]) == (201, None, 1)
    assert answer.json()["lease_id"] != first["lease_id"]
    assert (await stranger.post("/quotas", {"job_type": "scan", "limits": quota["limits"]})).status_code == 201


async def test_a_deleted_quota_of_another_tenant_bounds_nobody(api: Api, stranger: Api, later: PassTime) -> None:
    """The factor counts from a tenant's own last limits."""
    quota = await api.quota(max_active=1)
    await api.delete(f"/quotas/{quota['quota_id']}")
    await later(api.tenant_id, 1)

    assert (await stranger.quota(max_active=1_000))["limits"]["max_active"] == 1_000
