"""The platform's log looks after all logs: heartbeats, anchors, and what contradicts them."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.conftest import MakeDatabase
from tests.storage.audit_logs import EVERY_SHARD, KEYS, Log, another_log, open_logs

from jobengine.audit.anchors import read_anchors
from jobengine.storage import anchors as module
from jobengine.storage.anchors import Heart


@pytest.fixture
async def platform(migrated_database: MakeDatabase) -> AsyncIterator[Log]:
    """The platform's log, in a database of its own."""
    async with open_logs(await migrated_database()) as log:
        yield log


def heart_of(log: Log, process: str = "one") -> Heart:
    return Heart(log.database, process, lambda: KEYS)


async def told(log: Log, action: str) -> list[dict[str, Any]]:
    """Return the leaves of one action in the platform's log, oldest first."""
    rows = await log.sql("select leaf from audit_entries where action = %(action)s order by entry_id", action=action)
    return [json.loads(row["leaf"]) for row in rows]


async def anchors(log: Log) -> list[dict[str, Any]]:
    return [anchor for leaf in await told(log, "log.anchored") for anchor in leaf["properties"]["anchors"]]


async def settled(log: Log) -> Log:
    await log.sequencer().drain(EVERY_SHARD)
    return log


async def test_a_process_says_when_it_starts_and_stops(platform: Log) -> None:
    """Both leaves name the process, which no client can pass itself off as."""
    heart = heart_of(platform, "host:1")
    await heart.start()
    await heart.stop()

    [started], [stopped] = await told(platform, "log.started"), await told(platform, "log.stopped")
    assert started["resource"] == stopped["resource"] == {"type": "process", "id": "host:1"}
    assert started["actor"] == {"type": "system", "id": "sequencer", "client_id": None}


@pytest.fixture
async def installed(platform: Log) -> Log:
    """The same, with the row that tells whose database it is."""
    await platform.sql("insert into installation (issuer, master_check) values ('x', '\\x00')")
    return platform


async def test_one_heart_beats_once_a_minute_for_all_processes(installed: Log) -> None:
    """Whoever asks first writes it; when a minute has passed, it is due again."""
    for process in ("one", "two", "one"):
        await heart_of(installed, process).beat()
    assert len(await told(installed, "log.heartbeat")) == 1

    await installed.sql("update installation set beat_at = beat_at - interval '1 minute'")
    await heart_of(installed, "two").beat()
    assert [leaf["resource"]["id"] for leaf in await told(installed, "log.heartbeat")] == ["one", "two"]


async def test_every_changed_log_is_anchored_and_no_other(platform: Log) -> None:
    """By origin, size and root, several in one entry; a log that has not grown since is left out."""
    logs = [await another_log(platform) for _ in range(4)]
    for size, log in enumerate(logs):
        await log.record(size)
    await settled(platform)

    assert await heart_of(platform).anchor() == 3
    heads = [await log.head() for log in logs[1:]]
    assert sorted(map(str, await anchors(platform))) == sorted(
        str({"origin": head.origin, "root_hash": head.root_hash.hex(), "size": head.size}) for head in heads
    )
    assert len(await told(platform, "log.anchored")) == 1

    assert await heart_of(platform).anchor() == 0
    await logs[0].grow(1)
    assert await heart_of(platform).anchor() == 1
    assert (await anchors(platform))[-1]["origin"] == (await logs[0].head()).origin


async def test_no_entry_holds_more_anchors_than_it_may(platform: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """More logs make more entries, each of bounded size."""
    monkeypatch.setattr(module, "ANCHORS_IN_AN_ENTRY", 3)
    for _ in range(7):
        await (await another_log(platform)).record()
    await settled(platform)

    assert await heart_of(platform).anchor() == 7
    assert [len(leaf["properties"]["anchors"]) for leaf in await told(platform, "log.anchored")] == [3, 3, 1]


async def test_an_anchor_is_of_a_head_that_was_signed(platform: Log) -> None:
    """A forged head is told of as such, once, and keeps no other log from being anchored."""
    good, forged = await another_log(platform), await another_log(platform)
    for log in (good, forged):
        await log.grow(2)
    await forged.sql("update audit_logs set frontier = array[%(x)s::bytea] where tenant_id = %(log)s", x=bytes(32))

    assert await heart_of(platform).anchor() == 1
    assert await heart_of(platform).anchor() == 0
    [leaf] = await told(platform, "log.stuck")
    assert leaf["resource"] == {"type": "audit_log", "id": (await forged.head()).origin}
    assert [anchor["origin"] for anchor in await anchors(platform)] == [(await good.head()).origin]


async def test_untouched_logs_agree_with_their_anchors(platform: Log) -> None:
    """From both sides, while they grow."""
    log = await another_log(platform)
    for _ in range(3):
        await log.grow(3)
        await heart_of(platform).anchor()
    await settled(await another_log(platform))

    assert (await log.check()).ok
    assert (await platform.check()).ok


async def rewrite(log: Log) -> None:
    """Replace everything in the log by other entries, signed with the true key: what a thief of the key could do."""
    for table in ("audit_texts", "audit_tree", "audit_nodes", "audit_entries"):
        await log.sql(f"delete from {table} where tenant_id = %(log)s")
    empty = "size = 0, frontier = '{}', checkpoint = '', anchored_size = 0"
    await log.sql(f"update audit_logs set {empty} where tenant_id = %(log)s")
    await log.grow(4)


async def test_a_log_rewritten_under_its_own_key_contradicts_its_anchor(platform: Log) -> None:
    """The log by itself is flawless; the platform's log remembers another one."""
    log = await another_log(platform)
    await log.grow(4)
    await heart_of(platform).anchor()
    await settled(platform)
    await rewrite(log)

    verdict = await platform.check()
    assert (verdict.ok, verdict.first_bad) == (False, None)
    assert (await log.head()).origin in str(verdict.problem)
    await log.sql("update audit_logs set anchored_size = 4 where tenant_id = %(log)s")
    assert "platform's log" in str((await log.check()).problem)


async def test_a_log_set_back_is_seen_by_the_platform(platform: Log) -> None:
    """Even where the note beside it was set back as well."""
    log = await another_log(platform)
    await log.grow(2)
    columns = "size, frontier, root_hash, checkpoint, anchored_size, anchored_in"
    [old] = await log.sql(f"select {columns} from audit_logs where tenant_id = %(log)s")
    await log.grow(3)
    await heart_of(platform).anchor()
    await settled(platform)
    await log.sql("delete from audit_tree where tenant_id = %(log)s and sequence >= 2")
    changes = ", ".join(f"{name} = %({name})s" for name in old)
    await log.sql(f"update audit_logs set {changes} where tenant_id = %(log)s", **old)

    assert "was set back from 5 to 2" in str((await platform.check()).problem)


async def test_an_anchor_that_the_platform_does_not_hold_is_found(platform: Log) -> None:
    """Whoever changes the note of the anchor beside the log does not change the platform's log."""
    log = await another_log(platform)
    await log.grow(2)
    await heart_of(platform).anchor()
    await log.sql("update audit_logs set anchored_size = 1 where tenant_id = %(log)s")

    assert "does not hold the anchor" in str((await log.check()).problem)


@pytest.mark.parametrize("leaf", [b"{}", b"[]", b"x", b'{"action":"log.anchored","properties":{"anchors":[{}]}}'])
def test_what_is_no_anchor_is_not_read_as_one(leaf: bytes) -> None:
    """Damaged leaves raise the one error that their reader expects."""
    with pytest.raises(ValueError, match=r"."):
        read_anchors(leaf)
