"""Contract section 8: from a token to what was done with it, and what has no other half."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from litestar import Litestar
from tests.factories import INTENTS, LIMITS, Api, expect_problem, make_api, new_tenant
from tests.web.audit_reading import read_all
from tests.web.authority_desk import Desk, open_desk

from jobengine.authority.entries import Visit, grant_entry
from jobengine.authority.grants import Grant
from jobengine.authority.intent import Intent
from jobengine.authority.scopes import Scope
from jobengine.bootstrap import Plane
from jobengine.ids import new_id
from jobengine.storage import audit_tokens as module
from jobengine.storage.audit import PostgresAudit

REASON = {"quota_reason": "launch day", "quota_ticket": "OPS-1"}


@pytest.fixture
async def desk(app: Litestar, plane: Plane, tenant: str) -> AsyncIterator[Desk]:
    """A client of the tenant, with every role."""
    opened = await open_desk(app, plane, [tenant])
    async with opened.http:
        yield opened


async def granted(
    plane: Plane, tenant_id: str, scope: Scope = Scope.QUOTA, *, minutes_ago: int = 60, **claims: str
) -> str:
    """Record the grant of a token as it was some time ago, and return the token's id."""
    token_id = new_id()
    grant = Grant("jec_test", "ops", tenant_id, (scope,), (), Intent(claims), timedelta(seconds=300))
    async with plane.database.transaction(tenant_id) as tx:
        at = tx.now - timedelta(minutes=minutes_ago)
        await PostgresAudit(tx).record(grant_entry(grant, Visit("token", "192.0.2.1", "0" * 32), token_id, at))
    return token_id


def holding(api: Api, token_id: str, *scopes: str) -> Api:
    """Return somebody whose token has this id."""
    return make_api(api.client, api.plane, api.tenant_id, *scopes, jti=token_id)


async def orphans(api: Api, **query: Any) -> list[tuple[str, str]]:
    found = await read_all(api, "/audit/orphans", **query)
    return [(orphan["kind"], orphan["token_id"]) for orphan in found]


async def test_the_story_of_a_token_tells_who_why_what_and_what_not(desk: Desk, api: Api) -> None:
    """From the request for it to the last thing that was refused to it."""
    token = await desk.granted("orch:quota orch:audit", **REASON)
    token_id = (await desk.introspect(token))["jti"]
    headers = {"Authorization": f"Bearer {token}"}
    for body in ({"limits": LIMITS}, {"limits": LIMITS | {"burst": 10**9}}):
        await desk.http.post(
            "/api/v1/quotas", json={"job_type": "scan" if body["limits"] == LIMITS else "x", **body}, headers=headers
        )

    story = (await api.get(f"/audit/trace/{token_id}")).json()
    assert (story["grant"]["actor"]["client_id"], story["grant"]["reason"]) == (desk.client.client_id, "launch day")
    assert story["grant"]["ticket"] == "OPS-1"
    assert (story["done"], story["refused"], story["failed"]) == (1, 1, 0)
    assert [entry["action"] for entry in story["items"]] == [
        "authority.client_credentials.grant", "quota.created", "quota.refused",
    ]  # fmt: skip
    assert {entry["token_id"] for entry in story["items"]} == {token_id}
    assert (story["granted_elsewhere"], story["next_page_token"]) == (False, None)


async def test_a_story_comes_in_pages(api: Api, plane: Plane, tenant: str) -> None:
    """Its entries join without a seam; what is told of the token stands on every page."""
    token_id = await granted(plane, tenant, **INTENTS)
    actor = holding(api, token_id)
    for number in range(4):
        await actor.quota(f"type-{number}")

    whole = (await api.get(f"/audit/trace/{token_id}")).json()["items"]
    pages = await read_all(api, f"/audit/trace/{token_id}", page_size=2)
    # Not all of an entry: between two readings it may get its place.
    assert [entry["entry_id"] for entry in pages] == [entry["entry_id"] for entry in whole]
    assert len(whole) == 5


@pytest.mark.parametrize("token_id", ["nobody", "0198c0de-0000-7000-8000-000000000000", "x" * 300])
async def test_a_token_without_a_trace_is_not_found(api: Api, token_id: str) -> None:
    """Whether it could be the id of one or not."""
    expect_problem(await api.get(f"/audit/trace/{token_id}"), 404, "not_found")


async def test_a_token_of_another_tenant_is_not_found(api: Api, stranger: Api, plane: Plane) -> None:
    """The same answer as for one that never was."""
    token_id = await granted(plane, stranger.tenant_id, **INTENTS)

    assert (await stranger.get(f"/audit/trace/{token_id}")).status_code == 200
    expect_problem(await api.get(f"/audit/trace/{token_id}"), 404, "not_found")


async def test_a_privileged_token_that_ran_out_unused_is_an_orphan(api: Api, plane: Plane, tenant: str) -> None:
    """One that was used, one that may still be used, and one that needed no reason are none."""
    unused, used = await granted(plane, tenant, **REASON), await granted(plane, tenant, **REASON)
    await granted(plane, tenant, minutes_ago=1, **REASON)
    await granted(plane, tenant, Scope.READ)
    await holding(api, used, "orch:quota").quota("scan")

    assert await orphans(api) == [("token_unused", unused)]


async def test_a_change_whose_token_nobody_granted_is_an_orphan(api: Api, plane: Plane, tenant: str) -> None:
    """Whoever forges a token leaves no grant; the entry names what was done."""
    known = await granted(plane, tenant, **REASON)
    await holding(api, known, "orch:quota").quota("scan")
    forged = new_id()
    await holding(api, forged, "orch:quota").quota("other")

    [found] = await read_all(api, "/audit/orphans")
    assert (found["kind"], found["token_id"]) == ("change_ungranted", forged)
    assert found["entry"]["action"] == "quota.created"
    assert found["entry"]["reason"] == INTENTS["quota_reason"]


async def test_orphans_come_in_pages_and_by_kind(
    api: Api, plane: Plane, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the unused tokens, then the changes, however few entries a page looks at."""
    unused = [await granted(plane, tenant, **REASON) for _ in range(3)]
    for _ in range(3):
        await granted(plane, tenant, Scope.READ)
    forged = [new_id() for _ in range(3)]
    for number, token_id in enumerate(forged):
        await holding(api, token_id, "orch:quota").quota(f"type-{number}")
    expected = [("token_unused", one) for one in unused] + [("change_ungranted", one) for one in forged]

    assert await orphans(api) == expected
    for looked_at in (1, 2, 5):
        monkeypatch.setattr(module, "_LOOKED_AT", looked_at)
        for size in (1, 2, 4):
            assert await orphans(api, page_size=size) == expected
    assert await orphans(api, kind="token_unused") == expected[:3]
    assert await orphans(api, kind="change_ungranted", page_size=1) == expected[3:]


async def test_a_governor_who_acts_in_another_tenant_leaves_no_orphan(
    api: Api, plane: Plane, tenant: str, client: httpx2.AsyncClient
) -> None:
    """The grant lies in one log and the change in another; both lists know, and the story says so."""
    home = await new_tenant(plane)
    token_id = await granted(plane, home, Scope.GOVERN, **REASON)
    governor = make_api(client, plane, home, Scope.GOVERN.value, jti=token_id)
    headers = {"X-StellaOps-Tenant": tenant}
    answer = await governor.post("/quotas", {"job_type": "scan", "limits": LIMITS}, headers=headers)
    assert answer.status_code == 201

    assert await orphans(api) == []
    assert await orphans(make_api(client, plane, home)) == []
    story = (await api.get(f"/audit/trace/{token_id}")).json()
    assert (story["grant"], story["granted_elsewhere"], story["done"]) == (None, True, 1)


@pytest.mark.parametrize("path", ["/audit/orphans", "/audit/trace/x"])
async def test_tokens_are_traced_by_auditors_alone(api: Api, path: str) -> None:
    """Whoever may change quotas may not look over everybody's shoulder; the platform's log is for governors."""
    expect_problem(await api.speaking("orch:quota", **REASON).get(path), 403, "insufficient_scope")
    expect_problem(await api.get(path, params={"log": "platform"}), 403, "insufficient_scope")
