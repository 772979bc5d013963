"""Contract sections 1 and 3: tokens, scopes, tenants, queries, pages, and the documents that tell of faults."""

import httpx2
import pytest
from tests.factories import API, BASE_URL, Api, expect_problem, forge_token, new_tenant

from jobengine.bootstrap import Plane
from jobengine.storage.authority import revoke

NOBODY = "0198c0de-0000-7000-8000-000000000000"
TENANT = "X-StellaOps-Tenant"
OLDER_TENANT = "X-Stella-Tenant"


async def test_a_request_without_a_token_is_challenged(client: httpx2.AsyncClient) -> None:
    """Without a token the challenge names no error (RFC 6750 section 3.1)."""
    answer = await client.get(f"{API}/quotas")

    expect_problem(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("header", ["Bearer", "Bearer x", "Bearer a.b.c", "bearer a.b.c d", "Bearer ä"])
async def test_a_bad_token_is_named_in_the_challenge_and_never_repeated(
    client: httpx2.AsyncClient, header: str
) -> None:
    """``error="invalid_token"`` says that one was sent."""
    answer = await client.get(f"{API}/quotas", headers={"Authorization": header.encode()})

    expect_problem(answer, 401, "invalid_token")
    assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert "a.b.c" not in answer.text


async def test_an_expired_token_is_a_bad_token(api: Api) -> None:
    """Nothing is accepted after ``exp``."""
    expect_problem(await api.speaking("orch:read", exp=1).get("/quotas"), 401, "invalid_token")


async def test_a_revoked_token_is_a_bad_token(api: Api, plane: Plane) -> None:
    """Revoked by its ``jti``, the token is refused by every process as soon as that has read it."""
    reader = api.speaking("orch:read", jti="revoked-1")
    assert (await reader.get("/quotas")).status_code == 200

    async with plane.database.transaction(api.tenant_id) as tx:
        await revoke(tx, "revoked-1", "jec_test", tx.now.replace(year=tx.now.year + 1))
    await plane.refresh()

    expect_problem(await reader.get("/quotas"), 401, "invalid_token")
    assert (await api.speaking("orch:read", jti="revoked-2").get("/quotas")).status_code == 200


async def test_a_token_sent_twice_is_a_bad_token(api: Api) -> None:
    """Two headers could be read as either."""
    headers = [("Authorization", f"Bearer {api.token}"), ("Authorization", f"Bearer {api.token}")]

    expect_problem(await api.client.get(f"{API}/quotas", headers=headers), 401, "invalid_token")


@pytest.mark.parametrize("name", ["access_token", "token", "bearer_token"])
async def test_a_token_in_the_query_is_refused_even_beside_a_good_one(api: Api, name: str) -> None:
    """A query ends up in logs and histories."""
    answer = await api.get("/quotas", params={name: api.token})

    expect_problem(answer, 400, "malformed_request")
    assert api.token not in answer.text


SCOPES = [
    ("GET", "/quotas", "orch:admit", "orch:read"),
    ("POST", "/quotas", "orch:read", "orch:quota"),
    ("PATCH", f"/quotas/{NOBODY}", "orch:read", "orch:quota"),
    ("DELETE", f"/quotas/{NOBODY}", "orch:operate", "orch:quota"),
    ("POST", f"/quotas/{NOBODY}/pause", "orch:backfill", "orch:quota"),
    ("POST", f"/quotas/{NOBODY}/overrides", "orch:read", "orch:quota"),
    ("GET", "/policy", "orch:quota", "orch:read"),
    ("PUT", "/policy", "orch:quota", "orch:govern"),
    ("POST", "/admissions", "orch:govern", "orch:admit"),
    ("POST", "/admissions/batch", "orch:quota", "orch:admit"),
    ("POST", f"/admissions/{NOBODY}/renew", "orch:execute", "orch:admit"),
    ("POST", f"/admissions/{NOBODY}/release", "orch:read", "orch:admit"),
    ("GET", "/admissions", "orch:admit", "orch:read"),
    ("DELETE", f"/admissions/{NOBODY}", "orch:quota", "orch:operate"),
]


@pytest.mark.parametrize(("method", "path", "scope", "required"), SCOPES)
async def test_a_missing_scope_is_named_in_the_answer_and_in_the_challenge(
    api: Api, method: str, path: str, scope: str, required: str
) -> None:
    """The caller learns which scope to ask for before anything else is looked at."""
    answer = await api.speaking(scope, quota_reason="launch day").send(method, path, content=b"{")

    assert expect_problem(answer, 403, "insufficient_scope")["required_scope"] == required
    assert answer.headers["www-authenticate"] == f'Bearer error="insufficient_scope", scope="{required}"'


@pytest.mark.parametrize("path", ["/quotas", "/quotas/summary", "/quotas/drift", "/policy", "/admissions"])
async def test_a_governor_may_read_wherever_a_reader_may(governor: Api, path: str) -> None:
    """``orch:govern`` is accepted wherever ``orch:read`` is."""
    assert (await governor.get(path)).status_code == 200


async def test_a_governor_changes_quotas_of_every_tenant(governor: Api, stranger: Api) -> None:
    """``orch:govern`` is accepted wherever ``orch:quota`` is, in any existing tenant."""
    quota = await stranger.quota()

    answer = await governor.patch(
        f"/quotas/{quota['quota_id']}", {"limits": {"max_active": 6}}, headers={TENANT: stranger.tenant_id}
    )
    assert (answer.status_code, answer.json()["tenant_id"]) == (200, stranger.tenant_id)
    assert (answer.json()["updated_by"], answer.json()["limits"]["max_active"]) == ("governor", 6)


async def test_a_governor_finds_no_tenant_that_does_not_exist(governor: Api) -> None:
    """An unknown tenant is 404."""
    expect_problem(await governor.get("/quotas", headers={TENANT: "nobody"}), 404, "not_found")


@pytest.mark.parametrize("header", [TENANT, OLDER_TENANT])
async def test_a_tenant_header_may_repeat_the_tenant_of_the_token(api: Api, header: str) -> None:
    """Saying it again narrows nothing and breaks nothing."""
    assert (await api.get("/quotas", headers={header: api.tenant_id})).status_code == 200


@pytest.mark.parametrize("header", [TENANT, OLDER_TENANT])
async def test_a_tenant_header_can_never_widen_a_token(api: Api, stranger: Api, header: str) -> None:
    """Another tenant, there or not, is the same 403."""
    for tenant_id in (stranger.tenant_id, "nobody"):
        expect_problem(await api.get("/quotas", headers={header: tenant_id}), 403, "tenant_mismatch")


@pytest.mark.parametrize("value", ["", "Acme", "_platform", "a" * 64, "a b", "ä", "a,b"])
async def test_a_malformed_tenant_header_is_refused(api: Api, governor: Api, value: str) -> None:
    """The platform's own log is no tenant, for a governor neither."""
    for caller in (api, governor):
        answer = await caller.get("/quotas", headers={TENANT: value.encode()})
        expect_problem(answer, 400, "tenant_invalid")


async def test_a_tenant_header_sent_twice_is_refused(api: Api) -> None:
    """Twice under one name or once under each: nobody can say which one counts."""
    for second in (TENANT, OLDER_TENANT):
        headers = [("Authorization", f"Bearer {api.token}"), (TENANT, api.tenant_id), (second, api.tenant_id)]
        expect_problem(await api.client.get(f"{API}/quotas", headers=headers), 400, "tenant_invalid")


async def test_a_token_without_a_tenant_is_refused(client: httpx2.AsyncClient, plane: Plane) -> None:
    """No header can lend it one."""
    token = forge_token(plane, None, "orch:read")
    headers = {"Authorization": f"Bearer {token}", TENANT: await new_tenant(plane)}

    expect_problem(await client.get(f"{API}/quotas", headers=headers), 400, "tenant_required")


async def test_a_tenant_in_the_query_is_no_parameter(api: Api, stranger: Api) -> None:
    """A tenant in a body or query is never honoured."""
    answer = await api.get("/quotas", params={"tenant_id": stranger.tenant_id})

    expect_problem(answer, 422, "validation_failed")


@pytest.mark.parametrize(
    ("path", "query", "name"),
    [
        ("/quotas", "colour=red", "colour"),
        ("/quotas", "paused=maybe", "paused"),
        ("/quotas", "job_type=a%20b", "job_type"),
        ("/quotas", "job_type=%00", "job_type"),
        ("/quotas", "job_type=scan&job_type=load", "job_type"),
        ("/quotas", "page_size=0", "page_size"),
        ("/quotas", "page_size=501", "page_size"),
        ("/quotas", "page_size=ten", "page_size"),
        ("/quotas", "page_size=1.5", "page_size"),
        ("/quotas", "page_size=5.0", "page_size"),
        ("/quotas", "page_size=1e2", "page_size"),
        ("/quotas", "page_size=%2B5", "page_size"),
        ("/quotas", "page_size=%D9%A5", "page_size"),
        ("/quotas", "page_size=" + "9" * 401, "page_size"),
        ("/quotas", "page_size=" + "9" * 5_000, "page_size"),
        ("/quotas/summary", "page_size=5", "page_size"),
        ("/policy", "version=1", "version"),
        ("/admissions", "job_type=%ff", "job_type"),
        ("/admissions", "status=live", "status"),
    ],
)
async def test_a_query_parameter_that_is_unknown_or_wrong_is_named(api: Api, path: str, query: str, name: str) -> None:
    """422, with the parameter as path."""
    answer = await api.get(f"{path}?{query}")

    assert expect_problem(answer, 422, "validation_failed")["errors"][0]["path"] == name


@pytest.mark.parametrize("path", ["/quotas/", "//quotas", "/quotas//", "/quotas/summary/"])
async def test_a_path_has_one_spelling(api: Api, path: str) -> None:
    """A slash too many is another path, and there is nothing."""
    expect_problem(await api.get(path), 404, "not_found")


@pytest.mark.parametrize("path", ["/healthz/", "//healthz", "/oauth2/token/", "/.well-known/jwks.json/"])
async def test_a_path_at_the_root_has_one_spelling(client: httpx2.AsyncClient, path: str) -> None:
    """There too."""
    expect_problem(await client.get(f"{BASE_URL}{path}"), 404, "not_found")


@pytest.mark.parametrize("token", ["", "x", "====", "ä", "A" * 600, "AAAAAAAAAAAAAAAAAAAAAAAAAAAA"])
async def test_a_page_token_that_was_not_given_is_refused(api: Api, token: str) -> None:
    """It is not guessed what it may have meant."""
    expect_problem(await api.get("/quotas", params={"page_token": token}), 422, "page_token_invalid")


async def test_a_page_token_serves_only_the_list_that_gave_it(api: Api, stranger: Api) -> None:
    """Another tenant, another filter or another list has no use for it."""
    for name in ("a", "b"):
        await api.quota(name)
    token = (await api.get("/quotas", params={"page_size": 1})).json()["next_page_token"]

    good = await api.get("/quotas", params={"page_token": token})
    assert [quota["job_type"] for quota in good.json()["items"]] == ["b"]
    for caller, path, more in (
        (stranger, "/quotas", {}),
        (api, "/quotas", {"paused": "true"}),
        (api, "/admissions", {}),
    ):
        answer = await caller.get(path, params={"page_token": token} | more)
        expect_problem(answer, 422, "page_token_invalid")


async def test_pages_hold_every_item_once_and_in_order(api: Api) -> None:
    """A list walked page by page is the list; the last page says so."""
    names = [f"job-{number}" for number in range(5)]
    for name in names:
        await api.quota(name)

    seen: list[str] = []
    token: str | None = None
    for _ in range(3):
        query = {"page_size": "2"} | ({"page_token": token} if token else {})
        page = (await api.get("/quotas", params=query)).json()
        seen += [quota["job_type"] for quota in page["items"]]
        token = page["next_page_token"]

    assert (seen, token) == (names, None)


@pytest.mark.parametrize("path", ["/nope", "/api/v1/nope", "/api/v1/quotas/x/y/z", "/api/v1"])
async def test_a_path_that_does_not_exist_is_a_problem_document(client: httpx2.AsyncClient, path: str) -> None:
    """404 too."""
    expect_problem(await client.get(path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("PUT", f"{API}/quotas", "POST"), ("DELETE", f"{API}/policy", "PUT"), ("POST", "/healthz", "GET")],
)
async def test_a_method_that_a_path_does_not_take_is_a_problem_document(
    client: httpx2.AsyncClient, method: str, path: str, allowed: str
) -> None:
    """405 says which methods there are."""
    answer = await client.request(method, path)

    expect_problem(answer, 405, "method_not_allowed")
    assert allowed in answer.headers["allow"].split(", ")


IDS = [NOBODY, "x", "%00", "%2e%2e", NOBODY.upper(), "0" * 5_000, "null", "%ff"]


@pytest.mark.parametrize("name", IDS)
async def test_an_id_that_names_nothing_is_not_found(api: Api, name: str) -> None:
    """Well-formed or not, the answer is one and the same, with an Idempotency-Key too."""
    key = {"Idempotency-Key": "k"}
    details = {
        expect_problem(answer, 404, "not_found")["detail"]
        for answer in (
            await api.get(f"/quotas/{name}"),
            await api.patch(f"/quotas/{name}", {"limits": {"burst": 1}}, headers=key),
            await api.post(f"/quotas/{name}/pause", headers=key),
        )
    }
    assert len(details) <= 2
    for answer in (
        await api.get(f"/quotas/{name}/history"),
        await api.get(f"/quotas/{name}/overrides"),
        await api.delete(f"/quotas/{name}"),
        await api.delete(f"/quotas/{NOBODY}/overrides/{name}"),
        await api.delete(f"/admissions/{name}"),
        await api.post(f"/admissions/{name}/renew", {"fencing_token": 1}, headers=key),
        await api.post(f"/admissions/{name}/release", {"fencing_token": 1}),
    ):
        expect_problem(answer, 404, "not_found")


async def test_a_trace_id_is_the_callers_where_it_sends_a_good_one(api: Api) -> None:
    """The W3C header ties our logs to the caller's."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    good = await api.get("/quotas/x", headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
    bad = await api.get("/quotas/x", headers={"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01"})

    assert expect_problem(good, 404, "not_found")["trace_id"] == trace
    assert expect_problem(bad, 404, "not_found")["trace_id"] != "0" * 32


async def test_options_are_answered_without_a_token_and_without_a_fault(client: httpx2.AsyncClient) -> None:
    """Whoever asks which methods there are learns it, or is challenged."""
    answer = await client.request("OPTIONS", f"{API}/quotas")

    assert answer.status_code in {204, 401, 405}
