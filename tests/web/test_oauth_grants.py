"""What the authority grants: scopes for roles, reasons for privilege, one tenant, a short life, and a record of it."""

import base64
import json
from typing import Any

import pytest
from tests.factories import INTENTS, new_tenant
from tests.web.authority_desk import Desk, refused

from jobengine.authority.scopes import ROLE_SCOPES, Role, Scope

QUOTA = {"quota_reason": "launch day"}


def claims_of(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))


def header_of(token: str) -> dict[str, Any]:
    header = token.split(".", maxsplit=1)[0]
    return json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))


async def test_a_plain_token_says_who_holds_it_where_and_for_what(desk: Desk) -> None:
    """The claims of RFC 9068 and the tenant; a quarter of an hour, and no reason."""
    answer = await desk.token("orch:read orch:audit")
    token = answer.json()["access_token"]
    claims = claims_of(token)

    assert answer.json()["expires_in"] == 900
    assert header_of(token) == {"alg": "ES256", "typ": "at+jwt", "kid": desk.plane.keys[-1].kid}
    assert claims["exp"] - claims["iat"] == 900
    assert (claims["iss"], claims["aud"]) == (desk.plane.realm.issuer, desk.plane.realm.audience)
    assert claims["sub"] == claims["client_id"] == desk.client.client_id
    assert (claims["scope"], claims["tenant"]) == ("orch:read orch:audit", desk.client.tenants[0])
    assert claims["roles"] == [role.value for role in desk.client.roles]
    assert claims["jti"]
    assert not [name for name in claims if name.endswith(("_reason", "_ticket", "_leaf"))]
    assert await desk.opens(token)


async def test_a_privileged_token_carries_its_reasons_and_the_leaf_of_its_grant(desk: Desk) -> None:
    """For five minutes at most; what was not asked for stays out."""
    answer = await desk.token("orch:quota orch:operate", **INTENTS)
    claims = claims_of(answer.json()["access_token"])

    assert answer.json()["expires_in"] == claims["exp"] - claims["iat"] == 300
    told = {name: text for name, text in INTENTS.items() if not name.startswith("backfill")}
    assert {name: text for name, text in claims.items() if name in INTENTS} == told
    assert len(claims["audit_leaf"]) == 64


async def test_each_grant_is_recorded_before_it_is_answered(desk: Desk) -> None:
    """The token's signature commits to the entry: its leaf hash is a claim, its jti the entry's token."""
    claims = claims_of(await desk.granted("orch:backfill orch:quota orch:read", **INTENTS))
    (entry,) = await desk.entries()

    assert entry["action"] == "authority.client_credentials.grant"
    assert entry["outcome"] == "success"
    assert entry["leaf_hash"] == claims["audit_leaf"]
    assert entry["token_id"] == claims["jti"]
    assert entry["resource"] == {"type": "token", "id": claims["jti"]}
    assert entry["actor"] == {"type": "client", "id": "ops-team", "client_id": desk.client.client_id}
    assert (entry["reason"], entry["ticket"]) == (INTENTS["quota_reason"], INTENTS["quota_ticket"])
    assert entry["properties"] == {
        "scope": "orch:backfill orch:quota orch:read",
        "address": desk.address,
        "quota.reason": INTENTS["quota_reason"],
        "quota.ticket": INTENTS["quota_ticket"],
        "backfill.reason": INTENTS["backfill_reason"],
        "backfill.ticket": INTENTS["backfill_ticket"],
    }


async def test_a_grant_without_a_reason_is_recorded_too(desk: Desk) -> None:
    """Each grant is an entry, under the trace of its request."""
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    form = {"grant_type": "client_credentials", "scope": "orch:read"}
    answer = await desk.http.post("/oauth2/token", data=form, auth=desk.basic, headers=headers)
    (entry,) = await desk.entries()

    assert entry["token_id"] == claims_of(answer.json()["access_token"])["jti"]
    assert (entry["reason"], entry["ticket"], entry["trace_id"]) == (None, None, trace_id)
    assert entry["properties"] == {"scope": "orch:read", "address": desk.address}


ALLOWED = [(role, scope, scope in ROLE_SCOPES[role]) for role in Role for scope in Scope]


@pytest.mark.parametrize(("role", "scope", "allowed"), ALLOWED)
async def test_a_role_allows_its_scopes_and_no_other(desk: Desk, role: Role, scope: Scope, allowed: bool) -> None:
    """The table of the contract, every cell of it over HTTP."""
    other = await desk.another(roles=[role.value])
    answer = await other.token(scope.value, **INTENTS)

    if allowed:
        assert (answer.status_code, answer.json()["scope"]) == (200, scope.value)
    else:
        refused(answer, 400, "invalid_scope")


@pytest.mark.parametrize(
    "scope",
    [
        "",
        " ",
        "orch:read ",
        " orch:read",
        "orch:read  orch:audit",
        "orch:read\torch:quota",
        "orch:read\norch:quota",
        "orch:read\r\norch:quota",
        "orch:read\u00a0orch:quota",
        "orch:read\u2003orch:quota",
        "orch:read\u3000orch:quota",
        "orch:read\u200borch:quota",
        "orch:read\u2028orch:quota",
        "orch:read\x0borch:quota",
        "orch:read\x0corch:quota",
        "orch:read\x1forch:quota",
        "orch:read\x85orch:quota",
        "orch:quota\u00a0",
        "\ufefforch:quota",
        "orch:read,orch:quota",
        "orch:read+orch:quota",
        "orch:read%20orch:quota",
        'orch:read"orch:quota',
        "orch:read\\orch:quota",
        "ORCH:READ",
        "orch:Quota",
        "orch:quota:x",
        "orch",
        "orch:",
        "orch:*",
        "*",
        "openid",
        "orch:read admin",
        "\u043erch:read",
    ],
)
async def test_no_spelling_carries_a_scope_past_its_reason(desk: Desk, scope: str) -> None:
    """Scopes split at one ASCII space by the grammar of RFC 6749, and unknown ones are refused: no token comes out."""
    refused(await desk.token(scope), 400, "invalid_scope")


async def test_a_request_without_a_scope_is_refused(desk: Desk) -> None:
    """There is no default that could be more than was meant."""
    refused(await desk.ask(grant_type="client_credentials"), 400, "invalid_scope")


async def test_a_repeated_scope_is_granted_once(desk: Desk) -> None:
    """A set is meant, and the answer says it as it was understood."""
    answer = await desk.token("orch:read orch:audit orch:read")

    assert answer.json()["scope"] == "orch:read orch:audit"


NEEDS = [
    ("orch:quota", "quota_reason"),
    ("orch:govern", "quota_reason"),
    ("orch:backfill", "backfill_reason"),
    ("orch:operate", "operator_reason"),
    ("orch:operate", "operator_ticket"),
    ("orch:read orch:quota", "quota_reason"),
    ("orch:quota orch:backfill", "backfill_reason"),
]


@pytest.mark.parametrize(("scope", "missing"), NEEDS)
@pytest.mark.parametrize("empty", [True, False])
async def test_privilege_needs_its_reason(desk: Desk, scope: str, missing: str, empty: bool) -> None:
    """The error names the parameter to mend, and nothing is granted."""
    form = {name: text for name, text in INTENTS.items() if name != missing} | ({missing: ""} if empty else {})
    problem = refused(await desk.token(scope, **form), 400, "invalid_request")

    family = missing.removesuffix("_reason").removesuffix("_ticket")
    assert f"{family}_" in problem["error_description"]
    assert [entry["outcome"] for entry in await desk.entries()] == ["refused"]


REASONS: list[tuple[str, str | None]] = [
    ("launch day", "launch day"),
    ("  launch day  ", "launch day"),
    ("x" * 256, "x" * 256),
    (" " + "x" * 256 + " ", "x" * 256),
    ("\U0001f680" * 255 + "a", "\U0001f680" * 255 + "a"),
    ("Cafe\u0301 move", "Caf\u00e9 move"),
    ("\u65e5\u672c", "\u65e5\u672c"),
    ("7", "7"),
    ("a.", "a."),
    ("testing", "testing"),
    ('say "why" \\ <b>&amp;', 'say "why" \\ <b>&amp;'),
    ("x" * 257, None),
    ("   ", None),
    (".", None),
    ("-", None),
    ("N/A", None),
    (" Test ", None),
    ("NONE", None),
    ("xxx", None),
    ("ToDo", None),
    ("Reason", None),
    ("!?", None),
    ("\u3164", None),
    ("\u2800\u115f", None),
    ("\u00a0", None),
    ("launch\nday", None),
    ("launch\tday", None),
    ("launch\x7fday", None),
    ("launch\u2028day", None),
    ("launch \u202eyad", None),
    ("launch\u200fday", None),
    ("launch\u2066day", None),
]


@pytest.mark.parametrize(("reason", "kept"), REASONS)
async def test_a_reason_is_granted_as_meant_or_refused(desk: Desk, reason: str, kept: str | None) -> None:
    """Normalised and trimmed, never cut: what is granted stands in the token and in the log, letter for letter."""
    answer = await desk.token("orch:quota", quota_reason=reason)

    if kept is None:
        assert "quota_reason" in refused(answer, 400, "invalid_request")["error_description"]
    else:
        assert answer.status_code == 200, answer.text
        assert claims_of(answer.json()["access_token"])["quota_reason"] == kept
        assert (await desk.entries())[-1]["reason"] == kept


@pytest.mark.parametrize(
    ("ticket", "good"),
    [
        ("OPS-1", True),
        ("a", True),
        ("A.b_c:d/e#f-g", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("-1", False),
        ("see chat", False),
        (" OPS-1", False),
        ("OPS-1\n", False),
        ("\u00d6PS-1", False),
    ],
)
async def test_a_ticket_is_a_key_or_refused(desk: Desk, ticket: str, good: bool) -> None:
    """It is neither trimmed nor cut."""
    answer = await desk.token("orch:quota", **QUOTA, quota_ticket=ticket)

    if good:
        assert claims_of(answer.json()["access_token"])["quota_ticket"] == ticket
        assert (await desk.entries())[-1]["ticket"] == ticket
    else:
        assert "quota_ticket" in refused(answer, 400, "invalid_request")["error_description"]


@pytest.mark.parametrize("scope", ["orch:quota", "orch:read", "orch:backfill"])
async def test_a_ticket_without_its_reason_is_refused(desk: Desk, scope: str) -> None:
    """Even where its scope is not asked for: somebody forgot something."""
    form = {"backfill_reason": "lost a day", "quota_ticket": "OPS-1"}

    refused(await desk.token(scope, **form), 400, "invalid_request")


async def test_a_reason_without_its_scope_stays_out_of_the_token(desk: Desk) -> None:
    """And out of the log; the life is that of a token without a reason."""
    answer = await desk.token("orch:read", **INTENTS)

    assert answer.json()["expires_in"] == 900
    assert not INTENTS.keys() & claims_of(answer.json()["access_token"]).keys()
    assert (await desk.entries())[-1]["properties"].keys() == {"scope", "address"}


async def test_the_longest_reasons_still_make_a_token_that_opens(desk: Desk) -> None:
    """Three reasons of four bytes a character, and three tickets."""
    reason, ticket = "\U00020000" * 256, "x" * 128
    form = {name: reason if name.endswith("_reason") else ticket for name in INTENTS}
    token = await desk.granted("orch:read orch:quota orch:backfill orch:operate", **form)

    assert await desk.opens(token)
    assert (await desk.introspect(token))["backfill_reason"] == reason


async def test_a_client_of_several_tenants_names_one(desk: Desk) -> None:
    """Any of its own, and no other; the token is for that one."""
    first, second = desk.client.tenants[0], await new_tenant(desk.plane)
    wide = await desk.another(tenants=[first, second])

    for tenant_id in (first, second):
        assert claims_of(await wide.granted(tenant=tenant_id))["tenant"] == tenant_id
        assert (await wide.entries(tenant_id))[-1]["outcome"] == "success"
    for form in ({}, {"tenant": ""}, {"tenant": "other"}, {"tenant": first.upper()}, {"tenant": f"{first} {second}"}):
        refused(await wide.token(**form), 400, "invalid_request")


async def test_a_client_of_one_tenant_may_name_it(desk: Desk) -> None:
    """It need not; an existing tenant of somebody else and one that nobody has look alike."""
    assert claims_of(await desk.granted(tenant=desk.client.tenants[0]))["tenant"] == desk.client.tenants[0]
    theirs = refused(await desk.token(tenant=await new_tenant(desk.plane)), 400, "invalid_request")
    nobodys = refused(await desk.token(tenant="nobody"), 400, "invalid_request")
    platforms = refused(await desk.token(tenant="_platform"), 400, "invalid_request")
    assert theirs == nobodys == platforms


async def test_two_tokens_are_never_the_same(desk: Desk) -> None:
    """Each has its own id and its own entry."""
    tokens = [claims_of(await desk.granted())["jti"] for _ in range(3)]

    assert len({*tokens}) == 3
    assert [entry["token_id"] for entry in await desk.entries()] == tokens
