"""Sequencers that race, die and meet damage: a log stays one dense line in which every entry stands once."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from tests.conftest import MakeDatabase
from tests.storage.audit_logs import EVERY_SHARD, Log, an_entry, another_log, key_of, note, open_logs

from jobengine.audit.checkpoint import verify
from jobengine.audit.model import SealedEntry
from jobengine.ids import new_id
from jobengine.storage import sequencer as module
from jobengine.storage.audit import PostgresAudit

WRITERS, LOGS, EACH = 32, 5, 6


@pytest.fixture
async def log(migrated_database: MakeDatabase) -> AsyncIterator[Log]:
    """The log of a tenant in a database of its own, where shards are free."""
    async with open_logs(await migrated_database()) as platform_log:
        yield await another_log(platform_log)


async def write(log: Log, amount: int) -> list[SealedEntry]:
    """Record entries one by one, each in a transaction of its own, as requests do."""
    return [sealed for _ in range(amount) for sealed in await log.record()]


async def drain_until(log: Log, owner: str, done: asyncio.Event) -> None:
    sequencer = log.sequencer(owner)
    while not done.is_set():
        await sequencer.drain(EVERY_SHARD)
    await sequencer.drain(EVERY_SHARD)


async def expect_dense(log: Log, sealed: Sequence[SealedEntry]) -> None:
    """Every entry has one place, places are counted from 0, and the whole is signed."""
    places = await log.places()
    assert [place for place, _ in places] == list(range(len(sealed)))
    assert {entry_id for _, entry_id in places} == {item.entry.entry_id for item in sealed}
    assert (await log.check()).ok
    assert verify((await log.head()).checkpoint, key_of((await log.head()).origin)).size == len(sealed)
    assert await log.sql("select 1 from audit_intake where tenant_id = %(log)s") == []


async def test_racing_sequencers_make_one_dense_line_of_each_log(log: Log) -> None:
    """Thirty-two writers in five logs, and two sequencers that both believe they own every shard."""
    logs = [log, *[await another_log(log) for _ in range(LOGS - 1)]]
    done = asyncio.Event()
    sequencers = [asyncio.create_task(drain_until(log, owner, done)) for owner in ("one", "two")]
    written = await asyncio.gather(*[write(logs[number % LOGS], EACH) for number in range(WRITERS)])
    done.set()
    await asyncio.gather(*sequencers)

    for number, item in enumerate(logs):
        await expect_dense(item, [sealed for entries in written[number::LOGS] for sealed in entries])


async def test_every_checkpoint_continues_the_one_before(log: Log) -> None:
    """Step by step the head is signed over everything before it."""
    sizes: list[int] = []
    for amount in (3, 1, 7):
        await log.grow(amount)
        head = await log.head()
        signed = verify(head.checkpoint, key_of(head.origin))
        assert (signed.size, signed.root) == (head.size, head.root_hash)
        sizes.append(head.size)

    assert sizes == [3, 4, 11]


async def test_places_follow_the_order_of_intake(log: Log) -> None:
    """Within a log, what was recorded first stands first, within a transaction and over several."""
    sealed = [*await log.record(5), *await write(log, 5), *await log.record(3)]
    await log.sequencer().drain(EVERY_SHARD)

    assert await log.places() == list(enumerate(item.entry.entry_id for item in sealed))


async def test_an_entry_that_commits_late_comes_later(log: Log) -> None:
    """A transaction that took its number early and commits late loses nothing but its turn."""
    async with log.database.transaction(log.tenant_id) as tx:
        slow = await PostgresAudit(tx).record(an_entry(log.tenant_id))
        [quick] = await log.record()
        assert await log.sequencer().drain(EVERY_SHARD) == 1
    assert await log.sequencer().drain(EVERY_SHARD) == 1

    assert [entry_id for _, entry_id in await log.places()] == [quick.entry.entry_id, slow.entry.entry_id]
    await expect_dense(log, [quick, slow])


async def test_a_silent_owner_loses_its_shards(log: Log) -> None:
    """Who does not renew its lease is replaced, and learns it when it wakes; nothing is forked meanwhile."""
    one, two = log.sequencer("one"), log.sequencer("two")
    assert sorted(await one.own()) == list(EVERY_SHARD)
    assert await two.own() == []

    await log.sql("update audit_shards set lease_until = clock_timestamp() - interval '1 millisecond'")
    assert sorted(await two.own()) == list(EVERY_SHARD)
    assert await one.own() == []

    sealed = await log.record(4)
    assert sum(await asyncio.gather(one.drain(EVERY_SHARD), two.drain(EVERY_SHARD))) == len(sealed)
    await expect_dense(log, sealed)


async def test_an_owner_that_leaves_is_replaced_at_once(log: Log) -> None:
    """At an orderly stop nobody waits for a lease to end."""
    one, two = log.sequencer("one"), log.sequencer("two")
    await one.own()
    await one.leave()

    assert sorted(await two.own()) == list(EVERY_SHARD)


async def test_only_owned_shards_are_drained(log: Log) -> None:
    """An entry of somebody else's shard waits for that somebody."""
    await log.record()
    [row] = await log.sql("select shard from audit_logs where tenant_id = %(log)s")
    others = [shard for shard in EVERY_SHARD if shard != row["shard"]]

    assert await log.sequencer().drain(others) == 0
    assert await log.sequencer().drain([row["shard"]]) == 1


async def test_a_log_that_another_one_moves_is_left_to_it(log: Log) -> None:
    """A locked head is passed over without waiting; its entries come in a later round."""
    await log.record(2)
    async with log.database.system() as tx:
        assert await tx.all("system_lock_heads", logs=[log.tenant_id])
        assert await log.sequencer().drain(EVERY_SHARD) == 0

    assert await log.sequencer().drain(EVERY_SHARD) == 2


POISONS = {
    "entry twice": """insert into audit_intake (tenant_id, shard, entry_id, leaf_hash)
        select tenant_id, shard, entry_id, leaf_hash from audit_intake where tenant_id = %(log)s""",
    "place taken": """insert into audit_tree (tenant_id, sequence, entry_id, leaf_hash)
        values (%(log)s, 2, gen_random_uuid(), '\\x00')""",
    "short hash": "update audit_intake set leaf_hash = '\\x00' where tenant_id = %(log)s",
    "broken frontier": "update audit_logs set frontier = '{}' where tenant_id = %(log)s",
    "forged head": "update audit_logs set root_hash = '\\x00', checkpoint = 'x' where tenant_id = %(log)s",
}


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
async def test_a_poisoned_log_stops_no_other(log: Log, poison: str) -> None:
    """A log that cannot move keeps its entries; those beside it in the same step get their places."""
    others = [await another_log(log) for _ in range(3)]
    await log.grow(2)
    for item in (log, *others):
        await item.record(2)
    await log.sql(poison)
    sequencer = log.sequencer()

    assert await sequencer.drain(EVERY_SHARD) == 2 * len(others)
    await others[0].record()
    assert await sequencer.drain(EVERY_SHARD) == 1
    assert (await log.head()).size == 2
    assert len(await log.sql("select 1 from audit_intake where tenant_id = %(log)s")) >= 2


async def test_a_poisoned_log_goes_on_once_it_is_healed(log: Log) -> None:
    """Nothing has to be started anew."""
    sealed = await log.grow(2)
    sealed += await log.record(2)
    await log.sql("update audit_logs set frontier = '{}' where tenant_id = %(log)s")
    sequencer = log.sequencer()
    assert await sequencer.drain(EVERY_SHARD) == 0

    tree = (await log.sql("select hash from audit_nodes where tenant_id = %(log)s"))[0]["hash"]
    await log.sql("update audit_logs set frontier = array[%(tree)s::bytea] where tenant_id = %(log)s", tree=tree)

    assert await sequencer.drain(EVERY_SHARD) == 2
    await expect_dense(log, sealed)


async def test_a_flood_leaves_room_for_other_logs(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one step every log gets its turn, and the flooded one gets what is left."""
    monkeypatch.setattr(module, "MOST_ENTRIES", 10)
    quiet = [await another_log(log, f"t-{prefix}-{new_id()}") for prefix in "az"]
    await log.record(50)
    for item in quiet:
        await item.record(2)

    async with log.database.system() as tx:
        placed = await log.sequencer()._advance(tx, [log.tenant_id, *[item.tenant_id for item in quiet]])
    assert placed == 10
    assert [(await item.head()).size for item in (log, *quiet)] == [6, 2, 2]


async def test_a_flood_is_drained_in_the_end(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call goes on while there is much to do, and the steps join without a seam."""
    monkeypatch.setattr(module, "MOST_ENTRIES", 10)
    sealed = await log.record(45)

    assert await log.sequencer().drain(EVERY_SHARD) == 45
    assert await log.places() == list(enumerate(item.entry.entry_id for item in sealed))


async def test_many_logs_move_in_one_round(log: Log) -> None:
    """More logs than one transaction holds all get their places."""
    logs = [await another_log(log) for _ in range(module._MOST_LOGS + 3)]
    for item in logs:
        await item.record()

    assert await log.sequencer().drain(EVERY_SHARD) == len(logs)
    assert {(await item.head()).size for item in logs} == {1}


async def lag(log: Log) -> tuple[float, int]:
    async with log.database.system() as tx:
        row = await tx.one("system_sequencer_lag")
    return row["seconds"], row["waiting"]


async def test_a_log_that_slept_is_not_behind(log: Log) -> None:
    """What counts is how long an entry waits while its log stands still, not how long the log had nothing to do."""
    await log.grow(1)
    await log.sql("update audit_logs set advanced_at = clock_timestamp() - interval '1 day'")
    assert await lag(log) == (0, 0)

    await log.record()
    seconds, waiting = await lag(log)
    assert waiting == 1
    assert 0 <= seconds < 5


async def test_a_log_that_stands_still_is_behind(log: Log) -> None:
    """An entry that has waited for an hour is an hour's lag."""
    await log.record()
    await log.sql("update audit_logs set advanced_at = clock_timestamp() - interval '1 day'")
    old = "019b0000-0000-7000-8000-000000000000"
    await log.sql("update audit_intake set entry_id = %(old)s where tenant_id = %(log)s", old=old)

    seconds, _ = await lag(log)
    assert seconds > 3_600


async def test_a_head_is_signed_by_the_key_that_signs_now(log: Log) -> None:
    """A sequencer with another key does not continue a log: its key is wrong, or the head is."""
    await log.grow(1)
    await log.record()
    stranger = module.Sequencer(log.database, "three", lambda checkpoint: note(checkpoint) + "— x AAAAAAA=\n")

    assert await stranger.drain(EVERY_SHARD) == 0
    assert await log.sequencer().drain(EVERY_SHARD) == 1
