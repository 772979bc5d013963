"""What becomes of tokens: who may look into them, who may end them, and which keys they outlive."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from joserfc.jwk import ECKey
from tests.factories import BASE_URL, INTENTS, Connection, forge_token, new_tenant
from tests.unit.authority.forge import b64url, unb64url
from tests.web.authority_desk import Desk, refused

from jobengine.authority.keys import signing_key
from jobengine.authority.master_key import Label
from jobengine.authority.scopes import Scope
from jobengine.bootstrap import REFRESH_EVERY, open_plane
from jobengine.clock import utc_now
from jobengine.settings import Settings
from jobengine.storage.authority import disable_client, rotate_signing_keys

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
INACTIVE = {"active": False}


async def revoked(desk: Desk, token: str, **more: str) -> None:
    answer = await desk.ask("/oauth2/revoke", token=token, **more)
    assert (answer.status_code, answer.content) == (200, b""), answer.text
    assert answer.headers["cache-control"] == "no-store"


async def revocations(desk: Desk, log: str | None = None) -> list[dict[str, Any]]:
    return [entry for entry in await desk.entries(log) if entry["action"] == "authority.token_revoked"]


async def test_a_live_token_tells_what_it_carries(desk: Desk) -> None:
    """Everything it was granted with, the reasons among it, to a client of the same tenant."""
    answer = await desk.token("orch:quota orch:read", **INTENTS)
    other = await desk.another(roles=["Orch.Viewer"])
    told = await other.introspect(answer.json()["access_token"])
    (grant,) = await desk.entries()

    assert told.pop("exp") - told.pop("iat") == 300
    assert told == {
        "active": True,
        "scope": "orch:quota orch:read",
        "client_id": desk.client.client_id,
        "sub": desk.client.client_id,
        "aud": desk.plane.realm.audience,
        "iss": desk.plane.realm.issuer,
        "jti": grant["token_id"],
        "token_type": "Bearer",
        "tenant": desk.client.tenants[0],
        "roles": [role.value for role in desk.client.roles],
        "quota_reason": INTENTS["quota_reason"],
        "quota_ticket": INTENTS["quota_ticket"],
        "audit_leaf": grant["leaf_hash"],
    }


async def test_a_plain_token_tells_of_no_reason(desk: Desk) -> None:
    """Members that it does not have are absent, and the answer is kept by nobody."""
    answer = await desk.ask("/oauth2/introspect", token=await desk.granted(), token_type_hint="refresh_token")

    assert answer.json()["active"]
    assert not [name for name in answer.json() if name.endswith(("_reason", "_ticket", "_leaf"))]
    assert answer.headers["cache-control"] == "no-store"


async def test_a_token_of_another_tenant_is_not_active(desk: Desk) -> None:
    """Its holder's other tenants do not matter: the token's own one does."""
    theirs = await new_tenant(desk.plane)
    stranger = await desk.another(tenants=[theirs])
    both = await desk.another(tenants=[theirs, *desk.client.tenants])

    assert await desk.introspect(await stranger.granted()) == INACTIVE
    assert await desk.introspect(await both.granted(tenant=theirs)) == INACTIVE
    assert (await desk.introspect(await both.granted(tenant=desk.client.tenants[0])))["active"]
    assert (await both.introspect(await desk.granted()))["active"]


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": 1},
        {"iat": 4_000_000_000, "exp": 4_000_000_300},
        {"aud": "another"},
        {"iss": "https://another.example"},
        {"tenant": None},
        {"tenant": "_platform"},
        {"sub": None},
    ],
)
async def test_a_token_that_opens_nothing_is_not_active(desk: Desk, claims: dict[str, object]) -> None:
    """Expired, not yet valid, for another audience, without a tenant: one answer for all."""
    token = forge_token(desk.plane, desk.client.tenants[0], "orch:read", **claims)

    assert await desk.introspect(token) == INACTIVE


@pytest.mark.parametrize("text", ["x", "a.b.c", "a" * 10_000, "\u00e4", "{}", " ", "eyJhbGciOiJub25lIn0.e30."])
async def test_a_text_that_is_no_token_is_not_active(desk: Desk, text: str) -> None:
    """And not a bad request either; to revoke it is as good as done."""
    assert await desk.introspect(text) == INACTIVE
    await revoked(desk, text)


async def test_a_token_with_a_changed_letter_is_not_active(desk: Desk) -> None:
    """The signature decides."""
    token = await desk.granted()
    head, payload, signature = token.split(".")
    changed = f"{head}.{payload}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"

    assert await desk.introspect(changed) == INACTIVE
    await revoked(desk, changed)
    assert await desk.opens(token)


@pytest.mark.parametrize("path", ["/oauth2/introspect", "/oauth2/revoke"])
@pytest.mark.parametrize("form", [{"token_type_hint": "access_token"}, {"token": ""}, {"access_token": "x"}])
async def test_a_request_without_a_token_is_refused(desk: Desk, path: str, form: dict[str, str]) -> None:
    """RFC 7662 section 2.1 and RFC 7009 section 2.1 require it."""
    refused(await desk.ask(path, **form), 400, "invalid_request")
    assert (await desk.entries())[-1]["properties"]["cause"] == "token_missing"


@pytest.mark.parametrize("path", ["/oauth2/introspect", "/oauth2/revoke"])
async def test_whoever_asks_about_tokens_must_say_who_it_is(desk: Desk, path: str) -> None:
    """By the client's secret in the header or in the body; a token is no such proof."""
    token = await desk.granted()

    assert (await desk.http.post(path, data={"token": token, **desk.in_body})).status_code == 200
    refused(await desk.http.post(path, data={"token": token}), 401, "invalid_client")
    bearer = {"Authorization": f"Bearer {token}"}
    refused(await desk.http.post(path, data={"token": token}, headers=bearer), 401, "invalid_client")


async def test_a_revoked_token_opens_nothing_from_then_on(desk: Desk) -> None:
    """At once in this process; it is recorded once however often it is revoked, and other tokens live on."""
    token, other = await desk.granted("orch:read orch:quota", **INTENTS), await desk.granted()
    assert await desk.opens(token)

    await revoked(desk, token)
    assert not await desk.opens(token)
    assert await desk.introspect(token) == INACTIVE
    await revoked(desk, token, token_type_hint="access_token")
    assert await desk.opens(other)

    (entry,) = await revocations(desk)
    assert entry["token_id"] == (await desk.entries())[0]["token_id"]
    assert entry["resource"] == {"type": "token", "id": entry["token_id"]}
    assert entry["actor"] == {"type": "client", "id": "ops-team", "client_id": desk.client.client_id}


async def test_the_other_spelling_of_a_revoked_signature_opens_nothing(desk: Desk) -> None:
    """An ES256 signature has two: a token is revoked by its id, never by its letters."""
    token = await desk.granted()
    head, payload, signature = token.split(".")
    raw = unb64url(signature)
    twin = f"{head}.{payload}.{b64url(raw[:32] + (P256_ORDER - int.from_bytes(raw[32:])).to_bytes(32))}"
    assert await desk.opens(twin)

    await revoked(desk, token)
    assert not await desk.opens(twin)


async def test_a_client_ends_its_own_tokens_only(desk: Desk) -> None:
    """To revoke another's is answered alike and changes nothing, in the same tenant too."""
    token = await desk.granted()
    neighbour = await desk.another()
    stranger = await desk.another(tenants=[await new_tenant(desk.plane)])
    for nobody in (neighbour, stranger):
        await revoked(nobody, token)

    assert await desk.opens(token)
    assert await revocations(desk) == []
    assert await revocations(stranger) == []


async def test_an_expired_token_needs_no_revocation(desk: Desk) -> None:
    """Nothing is stored or recorded for it."""
    token = forge_token(desk.plane, desk.client.tenants[0], client_id=desk.client.client_id, exp=1)
    await revoked(desk, token)

    assert await desk.entries() == []


async def test_a_token_is_revoked_in_its_own_tenant(desk: Desk) -> None:
    """Also by a client of several."""
    theirs = await new_tenant(desk.plane)
    both = await desk.another(tenants=[*desk.client.tenants, theirs])
    await revoked(both, await both.granted(tenant=theirs))

    assert len(await revocations(both, theirs)) == 1
    assert await revocations(both) == []


async def test_a_revocation_that_cannot_be_recorded_does_not_happen(scratch: Desk, scratch_owner: Connection) -> None:
    """The answer tells the client to try again (RFC 7009 section 2.2.1)."""
    token = await scratch.granted()
    await scratch_owner.execute("revoke insert on audit_intake from jobengine_app")
    refused(await scratch.ask("/oauth2/revoke", token=token), 503, "temporarily_unavailable")
    await scratch.plane.refresh()
    assert await scratch.opens(token)

    await scratch_owner.execute("grant insert on audit_intake to jobengine_app")
    await revoked(scratch, token)
    assert not await scratch.opens(token)


async def test_another_process_refuses_what_one_revoked_or_disabled(
    scratch: Desk, tmp_path: Path, scratch_url: str
) -> None:
    """At its next reading, which comes more than twice a second; no reading brings a revoked token back."""
    assert timedelta(seconds=0.5) >= REFRESH_EVERY
    ended, other = await scratch.granted(), await scratch.another()
    disabled = await other.granted()
    same = Settings(data_dir=tmp_path, database_url=scratch_url, issuer=BASE_URL)
    async with open_plane(same, serving=True) as second:
        assert second.verify(ended).client_id == scratch.client.client_id
        await revoked(scratch, ended)
        async with scratch.plane.database.system() as tx:
            assert await disable_client(tx, other.client.client_id)
        for plane in (second, scratch.plane):
            await plane.refresh()
            assert plane.revocations.refuse(second.guard.verify(ended, utc_now()).token_id, "")
            assert plane.revocations.refuse("", other.client.client_id)

    assert not await scratch.opens(ended)
    assert not await other.opens(disabled)
    assert await scratch.introspect(disabled) == INACTIVE
    refused(await other.token(), 401, "invalid_client")


async def test_a_reading_under_way_does_not_bring_a_revoked_token_back(
    scratch: Desk, scratch_owner: Connection
) -> None:
    """What this process was told while it read stays refused until a later reading, which knows."""
    known = scratch.plane.revocations
    async with scratch_owner.transaction():
        await scratch_owner.execute("lock table revoked_tokens in access exclusive mode")
        reading = asyncio.create_task(known.refresh(scratch.plane.database))
        await until_somebody_waits(scratch_owner)
        known.add("revoked-meanwhile")
    await reading
    assert known.refuse("revoked-meanwhile", "")

    await known.refresh(scratch.plane.database)
    assert not known.refuse("revoked-meanwhile", "")


async def until_somebody_waits(owner: Connection) -> None:
    for _ in range(1_000):
        waiting = await owner.execute("select pg_sleep(0.01) from pg_locks where not granted")
        if await waiting.fetchone():
            return
        await asyncio.sleep(0.01)
    pytest.fail("nobody waits for the lock")


async def test_old_tokens_outlive_the_change_of_keys(scratch: Desk, scratch_owner: Connection) -> None:
    """The next key is published before it signs; the last one verifies until its tokens are over, then it leaves."""
    plane = scratch.plane
    old, old_kid = await scratch.granted(), plane.keys[0].kid
    new = await rotate_signing_keys(plane.database, plane.master.derive(Label.KEK))
    await plane.refresh()
    assert await published(scratch) == [old_kid, new.kid]
    assert signing_key(plane.keys, utc_now()).kid == old_kid

    await scratch_owner.execute("update signing_keys set active_from = clock_timestamp() where kid = %s", [new.kid])
    await plane.refresh()
    fresh = await scratch.granted()
    assert plane.guard.keys.keys() == {old_kid, new.kid}
    assert await scratch.opens(old)
    assert await scratch.opens(fresh)

    await scratch_owner.execute("update signing_keys set retire_at = clock_timestamp() where kid = %s", [old_kid])
    await plane.refresh()
    assert await published(scratch) == [new.kid]
    assert not await scratch.opens(old)
    assert await scratch.opens(fresh)


async def test_a_key_leaves_by_time_alone(scratch: Desk, scratch_owner: Connection) -> None:
    """Nobody need touch it: the reading after its end leaves it out."""
    plane = scratch.plane
    await rotate_signing_keys(plane.database, plane.master.derive(Label.KEK))
    ending = plane.keys[0].kid
    await scratch_owner.execute(
        "update signing_keys set retire_at = clock_timestamp() + interval '0.4 seconds' where kid = %s", [ending]
    )
    await plane.refresh()
    assert ending in plane.guard.keys

    await scratch_owner.execute("select pg_sleep(0.5)")
    await plane.refresh()
    assert ending not in plane.guard.keys


async def published(desk: Desk) -> list[str]:
    answer = await desk.http.get("/.well-known/jwks.json")
    return [key["kid"] for key in answer.json()["keys"]]


async def test_the_published_keys_verify_and_hold_no_private_part(desk: Desk) -> None:
    """RFC 7517: public members only, each under the thumbprint that is its name; may be kept for some minutes."""
    answer = await desk.http.get("/.well-known/jwks.json")

    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "public, max-age=300"
    assert answer.json()["keys"]
    for key in answer.json()["keys"]:
        assert key.keys() == {"kty", "crv", "x", "y", "kid", "use", "alg"}
        assert (key["kty"], key["crv"], key["use"], key["alg"]) == ("EC", "P-256", "sig", "ES256")
        assert ECKey.import_key(key).thumbprint() == key["kid"]


async def test_the_metadata_tell_everything_a_client_needs(desk: Desk) -> None:
    """RFC 8414: the issuer exactly as it stands in tokens, and endpoints that are there."""
    answer = await desk.http.get("/.well-known/oauth-authorization-server")
    told = answer.json()
    methods = ["client_secret_basic", "client_secret_post"]

    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "public, max-age=300"
    assert told == {
        "issuer": BASE_URL,
        "token_endpoint": f"{BASE_URL}/oauth2/token",
        "jwks_uri": f"{BASE_URL}/.well-known/jwks.json",
        "introspection_endpoint": f"{BASE_URL}/oauth2/introspect",
        "revocation_endpoint": f"{BASE_URL}/oauth2/revoke",
        "scopes_supported": [scope.value for scope in Scope],
        "response_types_supported": [],
        "grant_types_supported": ["client_credentials"],
        "token_endpoint_auth_methods_supported": methods,
        "introspection_endpoint_auth_methods_supported": methods,
        "revocation_endpoint_auth_methods_supported": methods,
    }
    assert (await desk.http.get(told["jwks_uri"])).status_code == 200


async def test_the_openapi_document_shows_the_forms(desk: Desk) -> None:
    """Although we read them ourselves."""
    paths = (await desk.http.get("/openapi.json")).json()["paths"]
    form = paths["/oauth2/token"]["post"]["requestBody"]["content"]["application/x-www-form-urlencoded"]["schema"]

    assert {"grant_type", "scope", "tenant", *INTENTS} <= form["properties"].keys()
    assert form["required"] == ["grant_type", "scope"]
    for path in ("/oauth2/introspect", "/oauth2/revoke"):
        assert "requestBody" in paths[path]["post"]
        assert {"200", "400", "401", "413", "415", "429", "503"} <= paths[path]["post"]["responses"].keys()
