"""Erasing a reason: it is gone wherever it was shown and stored, and every proof stays."""

import asyncio
import json
from io import BytesIO
from typing import Any

import pytest
from psycopg import sql
from tests.factories import INTENTS, Api, Connection, expect_problem, make_api
from tests.web.audit_reading import read_all, settle

from jobengine.audit.merkle import verify_inclusion
from jobengine.ids import new_id
from jobengine.tenancy.model import PLATFORM
from jobengine_verify.notes import open_checkpoint, parse_key
from jobengine_verify.verify import Intact, check_export

SECRET = "Called by Ms Ötzkan-Lindqvist, +49 30 1234567"
TICKET = "PRIVATE-4711"
SAYING = {"quota_reason": SECRET, "quota_ticket": TICKET, "backfill_reason": SECRET, "backfill_ticket": TICKET}
BACKFILL = {
    "job_type": "external",
    "source": "orders",
    "window": {"start": "2026-01-01T00:00:00Z", "end": "2026-01-03T00:00:00Z"},
}


@pytest.fixture
def person(api: Api) -> Api:
    """Somebody whose reasons name a person."""
    return make_api(api.client, api.plane, api.tenant_id, **SAYING)


@pytest.fixture
def speaking_governor(api: Api) -> Api:
    """Somebody who may erase, and says why."""
    return api.speaking("orch:govern", quota_reason="asked for by the person", quota_ticket="DPO-1")


async def copies(owner: Connection, text: str) -> list[str]:
    """Return the columns of the whole database in which *text* stands: as text, in JSON, or in bytes."""
    columns = await (
        await owner.execute(
            """select table_name, column_name from information_schema.columns join information_schema.tables
            using (table_schema, table_name) where table_schema = 'jobengine' and table_type = 'BASE TABLE'"""
        )
    ).fetchall()
    found: list[str] = []
    for row in columns:
        table, column = row["table_name"], row["column_name"]
        # A bytea as text is hexadecimal, and so is the text that it may hold.
        query = sql.SQL(
            "select 1 from {table} where strpos({column}::text, {text}) > 0"
            " or strpos({column}::text, {escaped}) > 0 or strpos({column}::text, {bytes}) > 0 limit 1"
        ).format(
            table=sql.Identifier("jobengine", table),
            column=sql.Identifier(column),
            text=sql.Literal(text),
            escaped=sql.Literal(json.dumps(text)[1:-1]),
            bytes=sql.Literal(text.encode().hex()),
        )
        if await (await owner.execute(query)).fetchone():
            found.append(f"{table}.{column}")
    return found


async def act_and_keep(person: Api, owner: Connection) -> dict[str, Any]:
    """Do what leaves a reason in as many places as there are, with answers kept for repeats."""
    quota = await person.post(
        "/quotas",
        {"job_type": "external", "limits": {"max_active": 5, "max_per_hour": 9, "burst": 9, "refill_per_second": 1}},
        headers={"Idempotency-Key": "quota"},
    )
    backfill = await person.post("/backfills", BACKFILL, headers={"Idempotency-Key": "backfill"})
    assert (quota.status_code, backfill.status_code) == (201, 202), backfill.text
    override = {"limits": {"max_active": 6}, "until": await person.in_future(hours=1)}
    path = f"/quotas/{quota.json()['quota_id']}"
    assert (await person.post(f"{path}/overrides", override, headers={"Idempotency-Key": "override"})).is_success
    wish = {"job_type": "external", "limits": {"max_active": 9}, "request_reason": SECRET}
    asked = await person.post("/quota-requests", wish, headers={"Idempotency-Key": "request"})
    second = make_api(person.client, person.plane, person.tenant_id, **SAYING, owner="second")
    reject = f"/quota-changes/{asked.json()['change_id']}/reject"
    assert (await second.post(reject, {"comment": SECRET}, headers={"Idempotency-Key": "reject"})).is_success
    assert (await person.post("/backfills", BACKFILL)).status_code == 409
    assert (await person.patch(path, {"limits": {"max_active": 10**9}})).status_code == 422
    await settle(person, owner)
    return {"quota": quota.json(), "backfill": backfill.json(), "entries": await read_all(person, "/audit/entries")}


async def erase_all(governor: Api, entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        answer = await governor.post(f"/audit/entries/{entry['entry_id']}/erase")
        assert answer.status_code == 200, answer.text


async def test_no_copy_of_an_erased_reason_is_left_in_the_database(
    person: Api, speaking_governor: Api, owner: Connection
) -> None:
    """Every column of every table is searched: changes, refusals, backfills, and answers kept for repeats."""
    done = await act_and_keep(person, owner)
    assert {"audit_texts.text", "idempotency_keys.body"} <= {*await copies(owner, SECRET)}

    await erase_all(speaking_governor, done["entries"])

    assert await copies(owner, SECRET) == []
    assert await copies(owner, TICKET) == []


async def test_every_view_shows_an_erased_reason_as_null(
    api: Api, person: Api, speaking_governor: Api, owner: Connection
) -> None:
    """The entry, the quota's last change, its history, the backfill, an export, and the repeat of the first answer."""
    done = await act_and_keep(person, owner)
    quota, backfill = f"/quotas/{done['quota']['quota_id']}", f"/backfills/{done['backfill']['backfill_id']}"
    await erase_all(speaking_governor, done["entries"])

    changed = (await person.get(quota)).json()["last_change"]
    assert (changed["reason"], changed["ticket"], changed["action"]) == (None, None, "created")
    history = (await person.get(f"{quota}/history")).json()["items"]
    assert {item["reason"] for item in history} == {item["ticket"] for item in history} == {None}
    shown = (await person.get(backfill)).json()
    assert (shown["reason"], shown["ticket"], shown["requested_by"]) == (None, None, "ops")
    for answer in [await person.get(f"/audit/entries/{entry['entry_id']}") for entry in done["entries"]]:
        assert SECRET not in answer.text
        assert answer.json()["reason"] is None
        assert answer.json()["properties"].get("quota.reason") is None
        assert "reason" in answer.json()["erased"]
    for kind in ("quota-changes", "quota-requests"):
        [change] = (await person.get(f"/{kind}")).json()["items"]
        assert (change["reason"], change["ticket"], change["comment"]) == (None, None, None)
    for form in ("ndjson", "csv", "ocsf"):
        # By somebody else: the next form may hold the entry of this export, with the reason of who asked for it.
        assert SECRET not in (await api.get(f"/audit/export?format={form}")).text
    again = await person.post("/backfills", BACKFILL, headers={"Idempotency-Key": "backfill"})
    assert (again.status_code, again.headers["idempotent-replayed"]) == (202, "true")
    assert again.json() == done["backfill"] | {"reason": None, "ticket": None}


async def test_old_proofs_still_verify(person: Api, speaking_governor: Api, owner: Connection) -> None:
    """The leaf stays: inclusion, an old checkpoint, a whole export and the service's own check."""
    done = await act_and_keep(person, owner)
    entry = done["entries"][0]
    path = f"/audit/entries/{entry['entry_id']}"
    proof = (await person.get(f"{path}/proof")).json()
    earlier = (await person.get("/audit/checkpoint")).text
    await erase_all(speaking_governor, [entry])
    await settle(person, owner)

    key = parse_key((await person.get("/audit/verifier-key")).text.strip())
    now = (await person.get(path)).json()
    hashes = [bytes.fromhex(text) for text in proof["hashes"]]
    leaf, root = bytes.fromhex(now["leaf_hash"]), bytes.fromhex(proof["root_hash"])
    assert verify_inclusion(proof["leaf_index"], proof["tree_size"], leaf, hashes, root)
    found = check_export(BytesIO((await person.get("/audit/export")).content), key, since=open_checkpoint(earlier, key))
    assert isinstance(found, Intact)
    assert found.closed >= 2
    assert (await person.get("/audit/verify")).json()["ok"] is True


async def test_the_erasing_is_an_entry_of_the_same_log(person: Api, speaking_governor: Api, owner: Connection) -> None:
    """Who, why, and which fields of which entry; once, however often it is asked for."""
    done = await act_and_keep(person, owner)
    entry = done["entries"][0]
    path = f"/audit/entries/{entry['entry_id']}/erase"

    first, second = await speaking_governor.post(path), await speaking_governor.post(path, {})

    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json() == second.json()
    assert first.json()["leaf_hash"] == entry["leaf_hash"]
    await settle(person, owner)
    [told] = await read_all(person, "/audit/entries", action="audit.erased")
    assert told["resource"] == {"type": "audit_entry", "id": entry["entry_id"]}
    assert told["reason"] == "asked for by the person"
    assert told["properties"]["fields"] == sorted(first.json()["erased"])


async def test_erasing_at_the_same_time_is_one_erasing(person: Api, speaking_governor: Api, owner: Connection) -> None:
    """Whoever comes second finds it done."""
    entry = (await act_and_keep(person, owner))["entries"][0]
    path = f"/audit/entries/{entry['entry_id']}/erase"

    answers = await asyncio.gather(*[speaking_governor.post(path) for _ in range(6)])

    assert {answer.status_code for answer in answers} <= {200, 409}
    assert 200 in {answer.status_code for answer in answers}
    await settle(person, owner)
    assert len(await read_all(person, "/audit/entries", action="audit.erased")) == 1


async def test_the_reason_of_an_erasing_can_be_erased(person: Api, speaking_governor: Api, owner: Connection) -> None:
    """It is a person's text like any other, and that it went is told by the next entry."""
    entry = (await act_and_keep(person, owner))["entries"][0]
    await erase_all(speaking_governor, [entry])
    await settle(person, owner)
    [told] = await read_all(person, "/audit/entries", action="audit.erased")

    await erase_all(speaking_governor, [told])
    await settle(person, owner)

    first, second = await read_all(person, "/audit/entries", action="audit.erased")
    assert (first["reason"], second["reason"]) == (None, "asked for by the person")
    assert second["resource"]["id"] == told["entry_id"]


async def test_an_entry_without_texts_is_answered_as_it_is(api: Api, speaking_governor: Api, owner: Connection) -> None:
    """There is nothing to erase, and nothing is recorded."""
    await api.speaking("orch:audit").get("/audit/export")
    await settle(api, owner)
    [entry] = await read_all(api, "/audit/entries")

    answer = await speaking_governor.post(f"/audit/entries/{entry['entry_id']}/erase")

    assert answer.json() == entry
    await settle(api, owner)
    assert len(await read_all(api, "/audit/entries")) == 1


async def test_nobody_but_a_governor_with_a_reason_erases(person: Api, owner: Connection) -> None:
    """And nothing is changed by whoever is not."""
    entry = (await act_and_keep(person, owner))["entries"][0]
    path = f"/audit/entries/{entry['entry_id']}/erase"

    for scope in ("orch:audit", "orch:quota", "orch:read"):
        expect_problem(await person.speaking(scope, **INTENTS).post(path), 403, "insufficient_scope")
    expect_problem(await person.speaking("orch:govern").post(path), 400, "quota_reason_required")
    expect_problem(await person.speaking("orch:govern", **INTENTS).post(path, {"why": "so"}), 422, "unknown_field")
    assert (await person.get(f"/audit/entries/{entry['entry_id']}")).json()["reason"] == SECRET


async def test_an_entry_that_is_not_there_is_not_found(
    person: Api, stranger: Api, speaking_governor: Api, owner: Connection
) -> None:
    """An unknown one, no id at all, one of another tenant: one answer, and the text stays."""
    entry = (await act_and_keep(person, owner))["entries"][0]
    other = stranger.speaking("orch:govern", **INTENTS)

    for api, entry_id in ((other, entry["entry_id"]), (speaking_governor, new_id()), (speaking_governor, "x")):
        expect_problem(await api.post(f"/audit/entries/{entry_id}/erase"), 404, "not_found")
    assert (await person.get(f"/audit/entries/{entry['entry_id']}")).json()["reason"] == SECRET


@pytest.mark.usefixtures("any_policy")
async def test_an_entry_of_the_platform_is_erased_in_its_log(speaking_governor: Api, owner: Connection) -> None:
    """The governor's own reason for a change of the policy; told in the platform's log."""
    because = f"a name in the platform's log {new_id()}"
    changing = speaking_governor.speaking("orch:govern", quota_reason=because)
    assert (await changing.put("/policy", {"max_raise_factor": 11})).status_code == 200
    await settle(changing, owner, PLATFORM)
    changes = await read_all(changing, "/audit/entries", log="platform", action="policy.changed")
    [entry] = [entry for entry in changes if entry["reason"] == because]
    path = f"/audit/entries/{entry['entry_id']}/erase"

    expect_problem(await speaking_governor.post(path), 404, "not_found")
    assert (await speaking_governor.post(f"{path}?log=platform")).json()["reason"] is None

    assert await copies(owner, because) == []
    await settle(changing, owner, PLATFORM)
    told = await read_all(changing, "/audit/entries", log="platform", action="audit.erased")
    assert entry["entry_id"] in {entry["resource"]["id"] for entry in told}
