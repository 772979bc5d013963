"""Two tenants on one server: nothing of B is shown to A or changed by A, on any route that the server documents."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

import httpx2
import pytest
from tests.acceptance.callers import Caller, done
from tests.acceptance.conftest import Clients
from tests.acceptance.furniture import KEY, STILL, Furnished, Snapshot, furnish, lease_body, plan_token, quota_body
from tests.acceptance.routes import Route, read_routes
from tests.acceptance.serving import Server
from tests.factories import expect_problem

from jobengine.ids import new_id

NOBODYS_TENANT = "t-of-nobody"


@dataclass(frozen=True, slots=True)
class Apart:
    """The attacker A, the victim B, and the routes between them."""

    a: Furnished
    b: Furnished
    routes: list[Route]
    before: Snapshot
    secrets: frozenset[str]

    def attack(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """Send a request as A; the answer may tell nothing of B that was not in the request."""
        answer = self.a.caller.http.send(self.a.caller.request(method, path, **options), stream=True)
        endless = answer.is_success and answer.headers.get("content-type", "").startswith("text/event-stream")
        assert not endless, f"{method} {path} begins to tell"
        answer.read()
        said = f"{path} {options}"
        told = answer.text + str(answer.headers)
        leaked = [secret for secret in self.secrets if secret in told and secret not in said]
        assert not leaked, f"{method} {said} tells {leaked}: {told[:1000]}"
        assert answer.status_code < 500, f"{method} {said}: {answer.text[:1000]}"
        return answer


@pytest.fixture(scope="module")
def furnished(http: httpx2.Client, served: Server, clients: Clients) -> Apart:
    """Fill both tenants alike."""
    routes = read_routes(http, served.url)
    a = furnish(Caller(http, served.url, clients.ours, next(clients.fresh)), f"a{token_hex(4)}")
    b = furnish(Caller(http, served.url, clients.theirs, next(clients.fresh_theirs)), f"b{token_hex(4)}")
    before = b.settled(routes)
    return Apart(a, b, routes, before, frozenset(b.secrets(before)))


@pytest.fixture
def apart(furnished: Apart) -> Iterator[Apart]:
    """See after every test that B is what it was, its audit log included."""
    yield furnished
    after = furnished.b.settled(furnished.routes)
    changed = {path: (body, after.get(path)) for path, body in furnished.before.items() if after.get(path) != body}
    assert not changed
    assert after.keys() == furnished.before.keys()


def without_trace(answer: httpx2.Response) -> dict[str, Any]:
    return {name: value for name, value in answer.json().items() if name != "trace_id"}


def test_snapshot_of_tenant_b_holds_its_objects_its_lists_and_its_log(apart: Apart) -> None:
    """What the other tests compare is not empty, and no route that reads is left out of it."""
    seen = b"".join(apart.before.values()).decode(errors="replace")
    for name in ("quota_id", "override_id", "change_id", "lease_id", "backfill_id", "batch_id", "entry_id", "token_id"):
        assert all(found in seen for found in apart.b.ids[name]), name
    assert f"{apart.b.word}-job-0" in seen
    assert apart.before["/audit/checkpoint"]
    refused = {
        path: apart.b.caller.send("GET", path, params=route.needed()).json().get("code")
        for route, path in apart.b.reads(apart.routes)
        if path not in apart.before
    }
    assert set(refused.values()) <= {"not_found", "insufficient_scope"}, refused


def test_every_route_answers_tenant_a_about_an_object_of_tenant_b_as_about_one_that_does_not_exist(
    apart: Apart,
) -> None:
    """With the right id, the right body and the right fencing token, status and words are those of an unknown id."""
    unknown = {hole: (new_id(),) for hole in apart.b.ids} | {"path": ("9/999",), "job_type": ("no-such-type",)}
    for route in apart.routes:
        if not route.holes or route.holes == ["path"]:
            continue
        body = route.body(fencing_token=apart.b.fencing_token(route.path))
        options = {"params": route.needed(), **({} if body is None else {"json": body})}
        [nothing] = [apart.attack(route.method, path, **options) for path in route.filled(unknown)]
        assert nothing.status_code in {404, 403}, f"{route} with {body}: {nothing.text}"
        for path in route.filled(apart.b.ids):
            answer = apart.attack(route.method, path, **options)
            assert (answer.status_code, without_trace(answer)) == (nothing.status_code, without_trace(nothing)), path


def test_parts_of_an_object_of_tenant_a_are_never_those_of_tenant_b(apart: Apart) -> None:
    """A path that begins with A's own object and ends with B's leads nowhere."""
    for route in (route for route in apart.routes if len(route.holes) > 1):
        ids = {**apart.b.ids, route.holes[0]: apart.a.ids[route.holes[0]]}
        for path in route.filled(ids):
            assert apart.attack(route.method, path).status_code == 404, path


def test_routes_without_an_id_show_tenant_a_nothing_of_tenant_b_whatever_the_query_names(apart: Apart) -> None:
    """Filters that name B's job types, sources, ids and people select from what is A's own."""
    names = {
        "job_type": f"{apart.b.word}-type",
        "source": f"{apart.b.word}-0",
        "resource_id": apart.b.ids["quota_id"][0],
        "actor": apart.b.caller.credentials.client_id,
        "log": apart.b.caller.tenant,
    }
    for route in (route for route in apart.routes if route.method == "GET" and not route.holes):
        apart.attack("GET", route.path, params=route.needed())
        for name in set(route.query) & names.keys():
            answer = apart.attack("GET", route.path, params={**route.needed(), name: names[name]})
            if answer.is_success:
                assert answer.json()["items"] == [], f"{route}?{name}="


def test_workers_of_tenant_a_get_no_batch_and_no_lease_of_tenant_b(apart: Apart) -> None:
    """B's job types and B's jobs are only names in A: a batch waits in B, and A's workers get none."""
    names = [f"{apart.b.word}-type", "external"]
    assert done(apart.attack("POST", "/batches/claim", json={"job_types": names, "max": 64}))["batches"] == []
    claimed = done(apart.attack("POST", "/batches/claim", json={"job_types": ["patient"], "max": 64}))["batches"]
    assert {batch["backfill_id"] for batch in claimed} <= set(apart.a.ids["backfill_id"])

    lease = done(apart.attack("POST", "/admissions", json=lease_body(apart.b.word, 0)), 201)

    assert lease["quota_id"] is None
    assert lease["lease_id"] not in apart.b.ids["lease_id"]


@pytest.mark.parametrize("header", ["X-StellaOps-Tenant", "X-Stella-Tenant"])
def test_every_route_refuses_tenant_a_under_a_header_that_names_tenant_b(apart: Apart, header: str) -> None:
    """The answer is the same as for a tenant that nobody has; a second header does not help either."""
    mine, theirs = apart.a.caller.tenant, apart.b.caller.tenant
    for route in apart.routes:
        path = next(route.filled(apart.b.ids))
        options = {"json": route.body(), "params": route.needed()}
        answers = [
            apart.attack(route.method, path, headers={header: who}, **options) for who in (theirs, NOBODYS_TENANT)
        ]
        for answer in answers:
            expect_problem(answer, 403, "tenant_mismatch")
        assert without_trace(answers[0]) == without_trace(answers[1])
        both = [(header, mine), ("x-stella-tenant", theirs)]
        expect_problem(apart.attack(route.method, path, headers=both, **options), 400, "tenant_invalid")


def test_every_route_refuses_a_tenant_in_the_query(apart: Apart) -> None:
    """A tenant is never taken from there; the parameter is unknown."""
    for route in apart.routes:
        path = next(route.filled(apart.a.ids))
        for name in ("tenant", "tenant_id"):
            query = {**route.needed(), name: apart.b.caller.tenant}
            answer = apart.attack(route.method, path, params=query, json=route.body())
            assert answer.json()["code"] in {"validation_failed", "insufficient_scope"}, f"{route}: {answer.text}"


def test_every_route_refuses_a_tenant_in_the_body(apart: Apart) -> None:
    """A body that names a tenant has a field too many."""
    for route in apart.routes:
        body = route.body(fencing_token=apart.a.fencing_token(route.path))
        if not isinstance(body, dict):
            continue
        path = next(route.filled(apart.a.ids))
        for name in ("tenant", "tenant_id"):
            answer = apart.attack(route.method, path, json={**body, name: apart.b.caller.tenant})
            assert answer.json()["code"] in {"unknown_field", "insufficient_scope"}, f"{route}: {answer.text}"


def page_tokens(apart: Apart) -> Mapping[str, str]:
    """Return a page token of B for each list that has two items."""
    found: dict[str, str] = {}
    for route in (route for route in apart.routes if "page_token" in route.query):
        for path in route.filled(apart.b.ids):
            page = apart.b.caller.send("GET", path, params={"page_size": 1}).json()
            if page.get("next_page_token"):
                found[route.path] = page["next_page_token"]
    return found


def test_page_token_of_tenant_b_continues_no_list_of_tenant_a(apart: Apart) -> None:
    """Not the same list, not another one, and not the same object's."""
    tokens = page_tokens(apart)

    assert len(tokens) >= 7
    for route in (route for route in apart.routes if "page_token" in route.query):
        for path in [next(route.filled(apart.a.ids)), *route.filled(apart.b.ids)]:
            for token in tokens.values():
                code = apart.attack("GET", path, params={"page_token": token}).json()["code"]
                assert code in {"page_token_invalid", "not_found", "insufficient_scope"}, path


def test_idempotency_key_of_tenant_b_gives_tenant_a_no_replay(apart: Apart) -> None:
    """The same request under the same key acts in A's own tenant."""
    answer = apart.attack("POST", "/quotas", json=quota_body(apart.b.word), headers={"Idempotency-Key": KEY + "-2"})
    assert done(answer, 201)["tenant_id"] == apart.a.caller.tenant

    mine = apart.attack("POST", "/quotas", json=quota_body(apart.a.word), headers={"Idempotency-Key": KEY})

    assert mine.headers["Idempotent-Replayed"] == "true"
    assert mine.json()["quota_id"] == apart.a.ids["quota_id"][0]
    other = apart.attack("POST", "/quotas", json=quota_body(apart.b.word), headers={"Idempotency-Key": KEY})
    expect_problem(other, 422, "idempotency_key_reused")


def test_one_client_in_two_tenants_has_idempotency_keys_in_each(apart: Apart, clients: Clients) -> None:
    """The same client, key and body make a second quota in the second tenant."""
    second = Caller(apart.a.caller.http, apart.a.caller.url, clients.ours, next(clients.fresh))

    answer = second.post("/quotas", quota_body(apart.a.word), headers={"Idempotency-Key": KEY})

    assert "Idempotent-Replayed" not in answer.headers
    assert done(answer, 201)["tenant_id"] == second.tenant


def test_plan_token_of_tenant_b_starts_nothing_in_tenant_a(apart: Apart) -> None:
    """A plan is good for the tenant that it was made for."""
    ask, token = plan_token(apart.b)

    expect_problem(apart.attack("POST", "/backfills", json=ask | {"plan_token": token}), 409, "plan_changed")


def test_access_token_of_tenant_b_is_nothing_to_a_client_of_tenant_a(apart: Apart, clients: Clients) -> None:
    """It cannot be introspected or revoked, and goes on working."""
    auth, form = (clients.ours.client_id, clients.ours.secret), {"token": apart.b.caller.token()}
    post = apart.a.caller.http.post

    told = post(f"{apart.a.caller.url}/oauth2/introspect", data=form, auth=auth)
    revoked = post(f"{apart.a.caller.url}/oauth2/revoke", data=form, auth=auth)

    assert (told.status_code, told.json(), revoked.status_code) == (200, {"active": False}, 200)
    assert apart.b.caller.get("/quotas")["items"]


def test_client_of_tenant_a_gets_no_token_for_tenant_b(apart: Apart) -> None:
    """The authority answers as for a tenant that nobody has, and B's log holds nothing of it."""
    answers = [apart.a.caller.ask_token("orch:read", tenant=who) for who in (apart.b.caller.tenant, NOBODYS_TENANT)]

    assert [answer.status_code for answer in answers] == [400, 400]
    assert answers[0].json() == answers[1].json()
    assert answers[0].json()["error"] == "invalid_request"


def test_limits_of_tenant_a_count_nothing_of_tenant_b(apart: Apart) -> None:
    """A fills its own quota of the same name while B's stays at two slots."""
    done(
        apart.attack("POST", "/quotas", json={"job_type": f"{apart.b.word}-full", "limits": STILL | {"max_active": 2}})
    )
    asked = [{"job_type": f"{apart.b.word}-full"}] * 3

    found = done(apart.attack("POST", "/admissions/batch", json={"requests": asked}), 200)["results"]

    assert [result["granted"] for result in found] == [True, True, False]
