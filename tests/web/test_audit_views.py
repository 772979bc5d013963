"""Exports of a part: filtered with proof that nothing is left out, continued after a break, as CSV, as OCSF."""

import csv
import json
from io import BytesIO, StringIO
from typing import Any

import pytest
from tests.conftest import PassTime
from tests.factories import INTENTS, LIMITS, Api, Connection, expect_problem
from tests.storage.recorder import live_a_day
from tests.unit.audit.ocsf import faults
from tests.web.audit_reading import grow, read_all, settle

from jobengine.tenancy.model import PLATFORM
from jobengine_verify.notes import parse_key
from jobengine_verify.verify import Intact, Named, Tampered, check_export


async def export(api: Api, **query: object) -> bytes:
    answer = await api.get("/audit/export", params={name: str(value) for name, value in query.items()})
    assert answer.status_code == 200, answer.text
    return answer.content


async def judge(api: Api, content: bytes, tiles: bytes | None = None) -> Intact | Tampered:
    key = parse_key((await api.get("/audit/verifier-key")).text.strip())
    return check_export(BytesIO(content), key, tiles=None if tiles is None else BytesIO(tiles))


async def shown(api: Api, **query: object) -> list[int]:
    """Return which places of the log a filtered export shows, after having it verified."""
    content = await export(api, **query)
    found = await judge(api, content)
    assert isinstance(found, Intact), found
    places: list[int | None] = []
    for line in map(json.loads, content.splitlines()[1:]):
        places += [None] * len(line["withheld"]) if "withheld" in line else [len(places)]
    assert len(places) == found.checkpoint.size
    assert places.count(None) == found.withheld
    return [place for place in places if place is not None]


async def test_a_filtered_export_withholds_the_others_in_their_places(api: Api, owner: Connection) -> None:
    """By kind and by time; of every other entry the hash stands where the entry was, and the whole is intact."""
    entries = await grow(api, owner, 7)
    since, until = entries[2]["occurred_at"], entries[5]["occurred_at"]

    assert await shown(api, action="quota.paused") == [1, 3, 5]
    assert await shown(api, since=since) == [2, 3, 4, 5, 6]
    assert await shown(api, since=since, until=until) == [2, 3, 4]
    assert await shown(api, since=since, until=until, action="quota.paused") == [3]
    assert await shown(api, action="key.rotated") == []


async def test_an_entry_left_out_of_a_filtered_export_is_missed(api: Api, owner: Connection) -> None:
    """Neither an entry nor a hash can be taken away or changed."""
    await grow(api, owner, 6)
    lines = (await export(api, action="quota.paused")).splitlines(keepends=True)
    assert [b"withheld" in line for line in lines[1:]] == [True, False, True, False, True, False]

    for place in range(1, len(lines)):
        assert isinstance(await judge(api, b"".join(lines[:place] + lines[place + 1 :])), Tampered)
    changed = lines[3].replace(b'["', b'["0', 1).replace(b'"]', b'"]', 1)
    match await judge(api, b"".join([*lines[:3], changed, *lines[4:]])):
        case Tampered(_, Named(index)):
            assert index == 2
        case other:
            pytest.fail(str(other))


async def test_an_export_goes_on_after_a_break(api: Api, owner: Connection) -> None:
    """With the place after the last whole line and the size of its checkpoint; what came since does not disturb."""
    entries = await grow(api, owner, 6)
    whole = (await export(api)).splitlines(keepends=True)
    await grow(api, owner, 2)

    rest = await export(api, first=4, size=len(entries))

    assert whole[5:] == rest.splitlines(keepends=True)
    assert isinstance(await judge(api, b"".join(whole[:5]) + rest), Intact)
    assert await export(api, first=6, size=6) == b""


async def test_a_filtered_export_goes_on_after_a_break(api: Api, owner: Connection) -> None:
    """The first place is that of an entry, shown or withheld, not of a line."""
    await grow(api, owner, 5)
    first = (await export(api, action="quota.paused")).splitlines(keepends=True)[:3]

    rest = await export(api, action="quota.paused", first=2, size=5)

    assert isinstance(await judge(api, b"".join(first) + rest), Intact)


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ({"first": 1}, "first"),
        ({"size": 1}, "first"),
        ({"first": 2, "size": 1}, "size"),
        ({"first": 0, "size": 10**6}, "size"),
        ({"first": -1, "size": 1}, "first"),
        ({"format": "xml"}, "format"),
        ({"format": "tiles", "action": "quota.paused"}, "format"),
        ({"action": "quota.exploded"}, "action"),
        ({"since": "yesterday"}, "since"),
    ],
)
async def test_an_export_that_cannot_be_is_refused(
    api: Api, owner: Connection, query: dict[str, Any], path: str
) -> None:
    """Before anything is recorded or sent, with the parameter that is wrong."""
    await grow(api, owner, 2)

    document = expect_problem(await api.get("/audit/export", params=query), 422, "validation_failed")

    assert [error["path"] for error in document["errors"]] == [path]
    await settle(api, owner)
    assert await read_all(api, "/audit/entries", action="audit.exported") == []


async def test_what_was_exported_is_recorded(api: Api, owner: Connection) -> None:
    """Which form, which part, which filter."""
    entries = await grow(api, owner, 3)
    since = entries[1]["occurred_at"]
    await export(api, format="csv", action="quota.paused", since=since)
    await export(api, first=1, size=2)
    await settle(api, owner)

    first, second = [entry["properties"] for entry in await read_all(api, "/audit/entries", action="audit.exported")]
    assert first.items() >= {"entries": 3, "format": "csv", "action": "quota.paused", "since": since}.items()
    assert second == {"entries": 2, "format": "ndjson", "first": 1} | {
        name: text for name, text in second.items() if name.startswith(("quota.", "backfill.", "request."))
    }


async def test_tiles_name_the_entry_that_was_changed(api: Api, owner: Connection) -> None:
    """With the leaf hashes beside it, an export changed with care tells which entry it was."""
    entries = await grow(api, owner, 9)
    content = await export(api)
    tiles = await export(api, format="tiles", first=0, size=9)
    assert tiles == b"".join(bytes.fromhex(entry["leaf_hash"]) for entry in entries)

    changed = content.replace(b'"action":"quota.resumed"', b'"action":"quota.deleted"', 1)

    assert isinstance(await judge(api, content, tiles), Intact)
    match await judge(api, changed, tiles):
        case Tampered(_, Named(index, entry_id)):
            assert (index, entry_id) == (2, entries[2]["entry_id"])
        case other:
            pytest.fail(str(other))


async def test_csv_is_for_people_and_runs_nothing(api: Api, owner: Connection) -> None:
    """A reason that begins like a formula stays a text; every entry is one record."""
    hostile = api.speaking("orch:quota", quota_reason='=HYPERLINK("http://evil","a, b")', quota_ticket="OPS-1")
    assert (await hostile.post("/quotas", {"job_type": "odd", "limits": LIMITS})).status_code == 201
    await settle(api, owner)
    [entry] = await read_all(api, "/audit/entries")

    answer = await api.get("/audit/export?format=csv")

    assert answer.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    assert answer.headers["content-disposition"].endswith('.csv"')
    [row] = csv.DictReader(StringIO(answer.text, newline=""))
    assert row["reason"] == f"'{entry['reason']}"
    assert (row["sequence"], row["action"], row["actor_id"]) == ("0", "quota.created", "ops")
    assert json.loads(row["after"]) == entry["after"]
    assert row["leaf_hash"] == entry["leaf_hash"]


async def test_ocsf_is_for_other_tools(api: Api, owner: Connection) -> None:
    """API Activity, class 6003: who, what, on what, how it ended, and the reason beside it."""
    entries = await grow(api, owner, 2)

    created, paused = map(json.loads, (await export(api, format="ocsf")).splitlines())

    assert (created["class_uid"], created["category_uid"], created["type_uid"]) == (6003, 6, 600301)
    assert (paused["activity_id"], paused["activity_name"], paused["status_id"]) == (3, "Update", 1)
    assert created["metadata"]["uid"] == entries[0]["entry_id"]
    assert created["actor"] == {"user": {"uid": "ops", "type": "client"}, "app_uid": "jec_test"}
    assert created["api"]["operation"] == "quota.created"
    assert created["api"]["request"]["uid"] == entries[0]["trace_id"]
    assert created["resources"] == [{"type": "quota", "uid": entries[0]["resource"]["id"]}]
    assert created["unmapped"]["reason"] == INTENTS["quota_reason"]


async def test_everything_that_is_done_is_an_ocsf_event(
    api: Api, governor: Api, owner: Connection, later: PassTime
) -> None:
    """A day of a tenant and what the platform wrote down beside it, each held against OCSF 1.3.0."""
    await live_a_day(api, later)
    speaking = governor.speaking("orch:govern", **INTENTS)
    assert (await speaking.put("/policy", {"backfill_share": 0.5})).is_success
    await settle(api, owner)
    await settle(api, owner, PLATFORM)

    done = set[str]()
    for content in (await export(api, format="ocsf"), await export(speaking, format="ocsf", log="platform")):
        for event in map(json.loads, content.splitlines()):
            assert faults(event) == [], event
            done.add(event["api"]["operation"])

    assert len(done) >= 20
    assert "policy.changed" in done


async def test_a_damaged_entry_is_shown_as_such_in_every_view(api: Api, owner: Connection) -> None:
    """What cannot be believed is not shown, and the rest is."""
    entries = await grow(api, owner, 3)
    where = {"log": api.tenant_id, "entry_id": entries[1]["entry_id"]}
    await owner.execute(
        "update audit_entries set leaf = '{}' where tenant_id = %(log)s and entry_id = %(entry_id)s", where
    )

    rows = list(csv.DictReader(StringIO((await export(api, format="csv")).decode(), newline="")))
    events = [json.loads(line) for line in (await export(api, format="ocsf")).splitlines()]

    assert [row["tampered"] for row in rows] == ["", "leaf", ""]
    assert [event["status_code"] for event in events] == ["success", "unknown", "success"]
    assert rows[1]["actor_id"] == ""
