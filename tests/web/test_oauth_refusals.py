"""What the authority refuses: each refusal is written down or counted, guessers wait, and a deaf log stops all."""

from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest
from litestar import Litestar
from tests.factories import INTENTS, Connection, new_tenant
from tests.web.authority_desk import GRANT_TYPE, Desk, entries, open_desk, refused

from jobengine.authority.entries import Denial, Visit, denial_entry
from jobengine.authority.oauth_errors import invalid_client
from jobengine.bootstrap import background
from jobengine.clock import utc_now
from jobengine.errors import Unavailable
from jobengine.storage.authority import record_summaries, recording
from jobengine.tenancy.model import PLATFORM
from jobengine.web.grants import refuse

DENY = "authority.client_credentials.deny"
SUMMARY = "authority.client_credentials.deny_summary"
WRONG = "jes_" + "w" * 43


async def guess(desk: Desk, client_id: str | None = None, secret: str = WRONG) -> Any:
    form = {**GRANT_TYPE, "scope": "orch:read"}
    return await desk.http.post("/oauth2/token", data=form, auth=(client_id or desk.client.client_id, secret))


@pytest.mark.parametrize(
    ("form", "error", "cause"),
    [
        ({"scope": "orch:quota"}, "invalid_request", "quota_reason:reason_missing"),
        ({"scope": "orch:quota", "quota_reason": "test"}, "invalid_request", "quota_reason:reason_placeholder"),
        ({"scope": "orch:read\u00a0orch:quota"}, "invalid_scope", "scope_malformed"),
        ({"scope": "orch:root"}, "invalid_scope", "scope_unknown"),
        ({"scope": "orch:read", "tenant": "other"}, "invalid_request", "tenant_not_allowed"),
        ({"scope": "orch:read", "grant_type": "password"}, "unsupported_grant_type", "grant_type_unsupported"),
    ],
)
async def test_the_refusal_of_a_client_is_an_entry_of_its_tenant(
    desk: Desk, form: dict[str, str], error: str, cause: str
) -> None:
    """With what the caller was told, why, and from where; what it sent is not repeated."""
    refused(await desk.ask(**{**GRANT_TYPE, **form}), 400, error)
    (entry,) = await desk.entries()

    assert (entry["action"], entry["outcome"]) == (DENY, "refused")
    assert entry["actor"] == {"type": "client", "id": "ops-team", "client_id": desk.client.client_id}
    assert entry["resource"] == {"type": "client", "id": desk.client.client_id}
    assert entry["properties"] == {"error": error, "cause": cause, "endpoint": "token", "address": desk.address}
    assert (entry["token_id"], entry["reason"]) == (None, None)


async def test_a_client_that_does_not_say_which_tenant_is_told_of_in_the_platforms_log(desk: Desk) -> None:
    """None of its tenants is concerned more than another."""
    wide = await desk.another(tenants=[*desk.client.tenants, await new_tenant(desk.plane)])
    refused(await wide.token(), 400, "invalid_request")
    (entry,) = await wide.told_of_the_address()

    assert entry["actor"]["client_id"] == wide.client.client_id
    assert entry["properties"]["cause"] == "tenant_required"
    assert await wide.entries() == []


async def test_a_wrong_secret_is_an_entry_of_the_platform_alone(desk: Desk) -> None:
    """Nobody was authenticated, so that no tenant's log is written by whoever knows an id."""
    refused(await guess(desk), 401, "invalid_client")
    (entry,) = await desk.told_of_the_address()

    assert (entry["action"], entry["tenant_id"]) == (DENY, None)
    assert entry["actor"] == {"type": "client", "id": "unauthenticated", "client_id": None}
    assert entry["properties"] == {
        "error": "invalid_client",
        "cause": "secret_wrong",
        "endpoint": "token",
        "address": desk.address,
        "claimed_client_id": desk.client.client_id,
    }
    assert await desk.entries() == []


UNKNOWN = "jec_" + "u" * 20


@pytest.mark.parametrize(
    ("client_id", "cause", "claimed"),
    [
        (UNKNOWN, "client_unknown", UNKNOWN),
        (WRONG, "client_unknown", None),
        ("root", "client_unknown", None),
        ("a b", "credentials_malformed", None),
    ],
)
async def test_a_stranger_is_told_of_without_its_words(
    desk: Desk, client_id: str, cause: str, claimed: str | None
) -> None:
    """Only what can be a client's id is repeated: a secret in the wrong field must not stay in the log for ever."""
    refused(await guess(desk, client_id), 401, "invalid_client")
    (entry,) = await desk.told_of_the_address()

    assert entry["properties"]["cause"] == cause
    assert entry["properties"].get("claimed_client_id") == claimed
    assert "w" * 43 not in str(entry)


@pytest.mark.parametrize("path", ["/oauth2/token", "/oauth2/introspect", "/oauth2/revoke"])
async def test_a_failed_authentication_is_told_of_at_every_endpoint(desk: Desk, path: str) -> None:
    """Who guesses secrets need not do it at the token endpoint."""
    answer = await desk.http.post(path, data={"token": "x"}, auth=(desk.client.client_id, WRONG))
    refused(answer, 401, "invalid_client")
    (entry,) = await desk.told_of_the_address()

    assert entry["properties"]["endpoint"] == path.rpartition("/")[2]


async def test_an_unreadable_request_is_told_of_too(desk: Desk) -> None:
    """By its cause alone."""
    await desk.http.post("/oauth2/token", content=b"x" * 20_000, auth=desk.basic)
    await desk.http.post("/oauth2/token", json={}, auth=desk.basic)
    await desk.http.post(f"/oauth2/token?client_secret={desk.secret}", data=GRANT_TYPE, auth=desk.basic)
    told = await desk.told_of_the_address()

    causes = [entry["properties"]["cause"] for entry in told]
    assert causes == ["form_too_large", "content_type_unsupported", "credentials_in_query"]
    assert desk.secret not in str(told)


async def test_the_twenty_first_refusal_of_a_client_is_counted(desk: Desk) -> None:
    """Twenty entries, then one summary with the number, when the minute is over; grants stay entries all along."""
    for _ in range(23):
        refused(await desk.token("orch:quota"), 400, "invalid_request")
    await desk.granted()
    assert [entry["action"] for entry in await desk.entries()].count(DENY) == 20

    await tell(desk, utc_now() + timedelta(seconds=61))
    told = await desk.entries()
    (summary,) = [entry for entry in told if entry["action"] == SUMMARY]

    assert len(told) == 20 + 1 + 1
    assert summary["properties"]["count"] == 3
    assert summary["properties"]["since"] <= summary["properties"]["until"]
    assert (summary["outcome"], summary["actor"]["client_id"]) == ("refused", desk.client.client_id)


async def test_ten_thousand_refusals_are_twenty_entries_and_a_number(desk: Desk) -> None:
    """Of each minute that they take; none is lost, and tokens are given in between."""
    began, tenant_id = utc_now(), desk.client.tenants[0]
    denial = Denial(invalid_client("secret_wrong"), desk.client, tenant_id)
    for _ in range(10):
        refused(await desk.token("orch:quota"), 400, "invalid_request")
        for _ in range(999):
            await refuse(desk.plane, denial, Visit("token", desk.address, "0" * 32))
        await desk.granted()
    minutes = 1 + (utc_now() - began) // timedelta(minutes=1)
    await tell(desk, utc_now() + timedelta(seconds=61))
    told = await desk.entries()
    singly = [entry for entry in told if entry["action"] == DENY]
    (summary,) = [entry for entry in told if entry["action"] == SUMMARY]

    assert len(singly) <= 20 * minutes
    assert len(singly) + summary["properties"]["count"] == 10_000
    assert len(told) == len(singly) + 1 + 10


async def test_a_counted_refusal_waits_for_nothing(scratch: Desk, scratch_owner: Connection) -> None:
    """It asks nothing of the log, so that a flood holds up no token: not even a log that takes nothing holds it up."""
    for _ in range(20):
        refused(await scratch.token("orch:quota"), 400, "invalid_request")

    async with scratch_owner.transaction():
        await scratch_owner.execute("lock table audit_entries, audit_intake in access exclusive mode")
        for _ in range(50):
            refused(await scratch.token("orch:quota"), 400, "invalid_request")

    assert [left.count for left in scratch.plane.refusals.drain()] == [50]


async def test_a_flood_from_an_address_is_counted_in_the_platforms_log(desk: Desk) -> None:
    """And does not use up what a client of the same address may be told of."""
    for _ in range(25):
        await guess(desk)
    refused(await desk.token("orch:quota"), 400, "invalid_request")
    await tell(desk, utc_now() + timedelta(seconds=61))
    told = await desk.told_of_the_address()

    assert [entry["action"] for entry in told] == [DENY] * 20 + [SUMMARY]
    assert told[-1]["properties"]["count"] == 5
    assert told[-1]["actor"]["id"] == "unauthenticated"
    assert [entry["action"] for entry in await desk.entries()] == [DENY]


async def tell(desk: Desk, now: Any) -> None:
    await record_summaries(desk.plane.database, desk.plane.refusals, desk.plane.refusals.due(now))


async def test_above_a_hundred_wrong_secrets_a_minute_an_address_waits(app: Litestar, desk: Desk) -> None:
    """Exactly a hundred slow nobody down; then even the right secret waits, and other addresses do not."""
    for number in range(100):
        answer = await guess(desk, secret=f"jes_{number}")
        assert answer.status_code == 401, number
    assert (await desk.token()).status_code == 200

    for answer in (await guess(desk), await desk.token(), await desk.ask("/oauth2/introspect", token="x")):
        refused(answer, 429, "temporarily_unavailable")
        assert 1 <= int(answer.headers["retry-after"]) <= 60

    elsewhere = await open_desk(app, desk.plane, desk.client.tenants)
    assert (await guess(elsewhere, *desk.basic)).status_code == 200


async def test_unknown_clients_and_malformed_secrets_count_as_wrong(desk: Desk) -> None:
    """Else the throttle would tell which ids exist; a request without any secret guesses nothing."""
    for _ in range(40):
        await guess(desk, UNKNOWN)
        await guess(desk, secret="a b")
    for _ in range(40):
        await desk.http.post("/oauth2/token", data=GRANT_TYPE)
    assert (await desk.token()).status_code == 200
    for _ in range(20):
        await guess(desk)
    refused(await guess(desk), 429, "temporarily_unavailable")


FAULTS = [
    ("revoke insert on audit_intake from jobengine_app", "grant insert on audit_intake to jobengine_app"),
    ("revoke insert on audit_entries from jobengine_app", "grant insert on audit_entries to jobengine_app"),
    ("alter table audit_texts rename to gone", "alter table gone rename to audit_texts"),
    (
        "alter table audit_intake add constraint full_disk check (false) not valid",
        "alter table audit_intake drop constraint full_disk",
    ),
]


@pytest.mark.parametrize(("fault", "repair"), FAULTS)
async def test_without_its_entry_no_token_is_given(
    scratch: Desk, scratch_owner: Connection, fault: str, repair: str
) -> None:
    """Whatever keeps the log from being written, with a reason or without; afterwards all is as before."""
    await scratch_owner.execute(fault)
    for answer in (await scratch.token(), await scratch.token("orch:quota", **INTENTS)):
        refused(answer, 503, "temporarily_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        assert "access_token" not in answer.text

    await scratch_owner.execute(repair)
    assert await scratch.entries() == []
    assert await scratch.opens(await scratch.granted("orch:read orch:quota", **INTENTS))


async def test_a_refusal_that_cannot_be_written_is_no_success_and_is_not_lost(
    scratch: Desk, scratch_owner: Connection
) -> None:
    """It is answered 503 and counted: the summary tells of it when the log takes entries again."""
    await scratch_owner.execute(FAULTS[0][0])
    refused(await scratch.token("orch:quota"), 503, "temporarily_unavailable")
    refused(await guess(scratch), 503, "temporarily_unavailable")
    with pytest.raises(Unavailable):
        await scratch.plane.tell_all_refusals()

    await scratch_owner.execute(FAULTS[0][1])
    await scratch.plane.tell_all_refusals()
    (known,), (unknown,) = await scratch.entries(), await scratch.told_of_the_address()
    assert (known["action"], known["properties"]["count"]) == (SUMMARY, 1)
    assert (unknown["action"], unknown["properties"]["count"]) == (SUMMARY, 1)


async def test_one_deaf_log_does_not_silence_the_others(scratch: Desk, scratch_owner: Connection) -> None:
    """A tenant whose log is gone gets no token; the summaries of the others are still written."""
    other = await scratch.another(tenants=[await new_tenant(scratch.plane)])
    for desk in (scratch, other):
        for _ in range(21):
            await desk.token("orch:quota")
    lost = scratch.client.tenants[0]
    await scratch_owner.execute("delete from audit_intake where tenant_id = %s", [lost])
    await scratch_owner.execute("delete from audit_logs where tenant_id = %s", [lost])

    refused(await scratch.token(), 503, "temporarily_unavailable")
    with pytest.raises(Unavailable):
        await scratch.plane.tell_all_refusals()
    assert (await other.entries())[-1]["action"] == SUMMARY
    assert [(left.log, left.count) for left in scratch.plane.refusals.drain()] == [(lost, 1)]


async def test_a_log_that_does_not_answer_is_not_waited_for(scratch: Desk, scratch_owner: Connection) -> None:
    """A lock that is never given back ends in Unavailable, and the connection is good again afterwards."""

    async def record() -> None:
        denial = Denial(invalid_client("secret_wrong"))
        async with recording(scratch.plane.database, PLATFORM, timedelta(seconds=0.3)) as (tx, audit):
            await audit.record(denial_entry(denial, Visit("token", scratch.address, "0" * 32), tx.now))

    async with scratch_owner.transaction():
        await scratch_owner.execute("lock table audit_intake in access exclusive mode")
        with pytest.raises(Unavailable) as raised:
            await record()
    assert isinstance(raised.value.__cause__, TimeoutError)

    await record()
    assert (await scratch.token()).status_code == 200


async def test_an_orderly_stop_tells_of_what_was_counted(scratch: Desk) -> None:
    """The minute need not be over, and the summary still gets its place in the tree."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(background(scratch.plane))
        for _ in range(22):
            await scratch.token("orch:quota")
        assert SUMMARY not in [entry["action"] for entry in await scratch.entries()]

    told = await scratch.entries()
    (summary,) = [entry for entry in told if entry["action"] == SUMMARY]
    assert summary["properties"]["count"] == 2
    assert sorted(entry["sequence"] for entry in told) == [*range(21)]
    assert [entry for entry in await entries(scratch.plane, PLATFORM) if not entry["action"].startswith("log.")] == []
