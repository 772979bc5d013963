"""Sequencers that race, die and meet damage: a log stays one dense line in which every entry stands once."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.conftest import MakeDatabase
from tests.storage.audit_logs import EVERY_SHARD, KEY, KEYS, Log, an_entry, another_log, key_of, open_logs

from jobengine.audit.checkpoint import NoteError, UnknownSigner, verify
from jobengine.audit.model import SealedEntry
from jobengine.audit.signing import LogKeys
from jobengine.ids import new_id
from jobengine.storage import sequencer as module
from jobengine.storage.anchors import Heart
from jobengine.storage.audit import PostgresAudit
from jobengine.storage.audit_check import check_log

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


FALL_SILENT = (
    "update audit_shards set lease_until = clock_timestamp() - interval '1 millisecond' where owner = %(owner)s",
    "update audit_sequencers set lease_until = clock_timestamp() - interval '1 millisecond' where owner = %(owner)s",
)


async def fall_silent(log: Log, owner: str) -> None:
    """Let an owner's leases end, as they do three seconds after it was killed."""
    for statement in FALL_SILENT:
        await log.sql(statement, owner=owner)


async def test_a_silent_owner_loses_its_shards(log: Log) -> None:
    """Who does not renew its lease is replaced, and gets its share again when it wakes; nothing is forked meanwhile."""
    one, two = log.sequencer("one"), log.sequencer("two")
    assert sorted(await one.own()) == list(EVERY_SHARD)

    await fall_silent(log, "one")
    assert sorted(await two.own()) == list(EVERY_SHARD)
    assert await one.own() == []
    await two.own()
    assert len(await one.own()) == len(EVERY_SHARD) // 2

    sealed = await log.record(4)
    assert sum(await asyncio.gather(one.drain(EVERY_SHARD), two.drain(EVERY_SHARD))) == len(sealed)
    await expect_dense(log, sealed)


@pytest.mark.parametrize("processes", [2, 3, 7])
async def test_processes_share_the_shards_and_keep_them(log: Log, processes: int) -> None:
    """Whoever comes later gets a fair share within two turns, and then nothing moves any more."""
    sequencers = [log.sequencer(f"process-{number}") for number in range(processes)]
    shares: list[list[int]] = []
    for _ in range(3):
        shares = [sorted(await sequencer.own()) for sequencer in sequencers]

    assert sorted(shard for share in shares for shard in share) == list(EVERY_SHARD)
    assert max(map(len, shares)) == -(-len(EVERY_SHARD) // processes)
    assert [sorted(await sequencer.own()) for sequencer in sequencers] == shares


async def test_the_shards_of_a_killed_process_are_taken_whole(log: Log) -> None:
    """In one turn after its leases ended: the share of those who live has grown by then."""
    one, two = log.sequencer("one"), log.sequencer("two")
    for _ in range(2):
        await one.own()
        await two.own()
    await fall_silent(log, "one")

    assert sorted(await two.own()) == list(EVERY_SHARD)


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
    await sequencer.drain(EVERY_SHARD)
    assert (await others[0].head()).size == 3
    assert (await log.head()).size == 2
    assert len(await log.sql("select 1 from audit_intake where tenant_id = %(log)s")) >= 2


async def test_a_log_that_cannot_go_on_is_told_of_once(log: Log) -> None:
    """In the platform's log, by its origin, and in the verdict on the log; it is not the sequencer that is behind."""
    await log.grow(2)
    await log.record()
    await log.sql("update audit_logs set frontier = '{}' where tenant_id = %(log)s")
    for owner in ("one", "one", "two"):
        await log.sequencer(owner).drain(EVERY_SHARD)

    head = await log.head()
    [told] = await log.sql("select leaf, actor_id, resource_id from audit_entries where action = 'log.stuck'")
    assert (told["actor_id"], told["resource_id"]) == ("sequencer", head.origin)
    assert head.stuck_because
    assert head.stuck_because in told["leaf"].decode()
    assert not (await log.check()).ok
    assert await lag(log) == 0
    assert await stuck(log) == 1


async def test_a_log_with_a_poisoned_queue_does_not_verify(log: Log) -> None:
    """What is stored is whole, and yet the next entry can never get its place: that is told as such."""
    await log.grow(2)
    await log.record()
    await log.sql(POISONS["entry twice"])
    await log.sequencer().drain(EVERY_SHARD)

    verdict = await log.check()
    assert (verdict.ok, verdict.first_bad) == (False, 2)
    assert "cannot go on" in str(verdict.problem)


async def test_a_poisoned_log_goes_on_once_it_is_healed(log: Log) -> None:
    """Nothing has to be started anew."""
    sealed = await log.grow(2)
    sealed += await log.record(2)
    await log.sql("update audit_logs set frontier = '{}' where tenant_id = %(log)s")
    sequencer = log.sequencer()
    assert await sequencer.drain(EVERY_SHARD) == 0

    tree = (await log.sql("select hash from audit_nodes where tenant_id = %(log)s"))[0]["hash"]
    await log.sql("update audit_logs set frontier = array[%(tree)s::bytea] where tenant_id = %(log)s", tree=tree)

    await sequencer.drain(EVERY_SHARD)
    await expect_dense(log, sealed)
    assert await stuck(log) == 0


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


async def lag(log: Log) -> float:
    async with log.database.system() as tx:
        return (await tx.one("system_sequencer_lag"))["seconds"]


async def stuck(log: Log) -> int:
    async with log.database.system() as tx:
        return (await tx.one("system_count_waiting"))["stuck"]


async def test_a_log_that_slept_is_not_behind(log: Log) -> None:
    """What counts is how long an entry waits while its log stands still, not how long the log had nothing to do."""
    await log.grow(1)
    await log.sql("update audit_logs set advanced_at = clock_timestamp() - interval '1 day'")
    assert await lag(log) == 0

    await log.record()
    assert 0 <= await lag(log) < 3_600


async def test_a_log_that_stands_still_is_behind(log: Log) -> None:
    """An entry that has waited for an hour is an hour's lag, whatever the clock of the server that made it says."""
    await another_log(log)
    await log.record(2)
    await log.sql("update audit_logs set advanced_at = clock_timestamp() - interval '1 day'")
    await log.sql("update audit_intake set queued_at = clock_timestamp() - interval '1 hour 1 minute'")

    assert await lag(log) > 3_600


async def test_a_head_that_another_key_signed_is_not_continued(log: Log) -> None:
    """A sequencer with another key does not continue a log: its key is wrong, or the head is."""
    await log.grow(1)
    await log.record()
    keys = LogKeys({"other": Ed25519PrivateKey.generate()}, "other")
    stranger = module.Sequencer(log.database, "three", lambda: keys)

    await stranger.drain(EVERY_SHARD)
    assert (await log.head()).size == 1
    await log.sequencer().drain(EVERY_SHARD)
    assert (await log.head()).size == 2


async def test_a_log_goes_on_under_the_next_key(log: Log) -> None:
    """Its old checkpoints verify with the old key, its new ones with the new, and the whole is one log."""
    await log.grow(3)
    before = await log.head()
    keys = LogKeys({"test": KEY, "next": Ed25519PrivateKey.generate()}, "next")
    await log.record(2)
    await module.Sequencer(log.database, "one", lambda: keys).drain(EVERY_SHARD)

    after = await log.head()
    assert verify(before.checkpoint, keys.verifier_key(before.origin, "test")).size == 3
    assert verify(after.checkpoint, keys.verifier_key(after.origin)).size == 5
    with pytest.raises(UnknownSigner):
        verify(after.checkpoint, keys.verifier_key(after.origin, "test"))
    assert (await check_log(log.database, log.tenant_id, keys)).ok


async def test_a_quiet_log_is_put_under_the_next_key(log: Log) -> None:
    """Its head stays what it is, and whoever knows the newest key alone can verify it; a forged head is left alone."""
    forged = await another_log(log)
    for item in (log, forged):
        await item.grow(2)
    await forged.sql("update audit_logs set checkpoint = replace(checkpoint, '2', '3') where tenant_id = %(log)s")
    keys = LogKeys({"test": KEY, "next": Ed25519PrivateKey.generate()}, "next")
    await module.Sequencer(log.database, "one", lambda: keys).sign_anew(EVERY_SHARD)

    head = await log.head()
    assert verify(head.checkpoint, keys.verifier_key(head.origin)).size == 2
    with pytest.raises(NoteError):
        keys.read((await forged.head()).checkpoint)


async def test_a_log_that_was_set_back_is_not_continued(log: Log) -> None:
    """An older signed head, with a tree cut to it, is no place to go on from once the newer one was anchored."""
    await log.grow(2)
    [old] = await log.sql("select size, frontier, root_hash, checkpoint from audit_logs where tenant_id = %(log)s")
    await log.grow(3)
    assert await Heart(log.database, "one", lambda: KEYS).anchor() == 1
    await log.sql("delete from audit_tree where tenant_id = %(log)s and sequence >= 2")
    await log.sql(
        """update audit_logs set size = %(size)s, frontier = %(frontier)s, root_hash = %(root_hash)s,
        checkpoint = %(checkpoint)s where tenant_id = %(log)s""",
        **old,
    )
    await log.record()
    await log.sequencer().drain(EVERY_SHARD)

    assert (await log.head()).size == 2
    assert "set back" in str((await log.head()).stuck_because)
    assert not (await log.check()).ok
