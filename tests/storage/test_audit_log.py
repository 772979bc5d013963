"""Recording and reading the log, on a real PostgreSQL."""

from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from tests.conftest import MakeDatabase
from tests.factories import NOW
from tests.storage.audit_logs import EVERY_SHARD, Log, an_entry, another_log, open_logs

from jobengine.audit.actions import Action
from jobengine.audit.merkle import EMPTY_ROOT, subtree_root
from jobengine.audit.model import Actor, Resource
from jobengine.errors import NotFound, Unavailable
from jobengine.ids import new_id
from jobengine.storage.audit import EntryFilter, PostgresAudit, get_entry, list_entries
from jobengine.tenancy.model import PLATFORM


@pytest.fixture(scope="module")
async def platform_log(migrated_database: MakeDatabase) -> AsyncIterator[Log]:
    async with open_logs(await migrated_database()) as log:
        yield log


@pytest.fixture
async def log(platform_log: Log) -> Log:
    return await another_log(platform_log)


async def listed(log: Log, after: int = -1, most: int = 100, **wanted: Any) -> list[dict[str, Any]]:
    async with log.database.transaction(log.tenant_id) as tx:
        return await list_entries(tx, EntryFilter(**wanted), after=after, most=most)


async def test_an_entry_of_a_broken_off_transaction_was_never_there(log: Log) -> None:
    """What is rolled back leaves nothing in the log, nor in its queue."""
    with suppress(ZeroDivisionError):
        async with log.database.transaction(log.tenant_id) as tx:
            await PostgresAudit(tx).record(an_entry(log.tenant_id))
            raise ZeroDivisionError
    await log.sequencer().drain(EVERY_SHARD)

    assert (await log.head()).size == 0
    assert await log.sql("select 1 from audit_entries where tenant_id = %(log)s") == []
    assert await log.sql("select 1 from audit_texts where tenant_id = %(log)s") == []


async def test_an_entry_without_a_place_is_shown_but_not_listed(log: Log) -> None:
    """Until the sequencer has been there, sequence is null and lists leave the entry out."""
    [sealed] = await log.record()

    async with log.database.transaction(log.tenant_id) as tx:
        entry = await get_entry(tx, sealed.entry.entry_id)
    assert entry["sequence"] is None
    assert entry["leaf_hash"] == sealed.leaf_hash.hex()
    assert await listed(log) == []


async def test_a_placed_entry_is_shown_as_it_was_recorded(log: Log) -> None:
    """Texts come back from their one place; the other members from the leaf."""
    [sealed] = await log.grow(1)

    [entry] = await listed(log)
    assert entry["sequence"] == 0
    assert (entry["reason"], entry["ticket"]) == ("launch day 0", "OPS-1")
    assert entry["properties"] == {"quota.reason": "launch day 0", "amount": 0}
    assert entry["actor"] == {"type": "client", "id": "ops", "client_id": "jec_test"}
    assert entry["leaf_hash"] == sealed.leaf_hash.hex()
    assert "erased" not in entry
    assert "tampered" not in entry


async def test_the_root_is_that_of_the_leaves_in_order(log: Log) -> None:
    """Whatever the steps, the head is the RFC 9162 tree over the leaf hashes."""
    assert (await log.head()).root_hash == EMPTY_ROOT
    sealed = [entry for amount in (1, 4, 2, 9) for entry in await log.grow(amount)]

    head = await log.head()
    assert head.size == head.placed == len(sealed)
    assert head.root_hash == subtree_root([entry.leaf_hash for entry in sealed])


async def test_every_filter_of_a_list_holds(log: Log) -> None:
    """Each filter keeps exactly the entries it names; since is inclusive and until is not."""
    await log.record(3)
    await log.record(1, action=Action.QUOTA_PAUSED, actor=Actor("operator", "root"), resource=None)
    await log.sequencer().drain(EVERY_SHARD)

    async def found(**wanted: Any) -> list[object]:
        return [entry["sequence"] for entry in await listed(log, **wanted)]

    assert await found() == [0, 1, 2, 3]
    assert await found(action="quota.paused") == [3]
    assert await found(actor="ops") == [0, 1, 2]
    assert await found(resource_type="quota", resource_id="quota-1") == [1]
    assert await found(since=NOW + timedelta(milliseconds=1)) == [1, 2]
    assert await found(until=NOW + timedelta(milliseconds=1)) == [0, 3]
    assert await found(action="quota.paused", actor="ops") == []


async def test_a_list_goes_on_after_a_place(log: Log) -> None:
    """A page begins behind the place of the one before."""
    await log.grow(5)

    assert [entry["sequence"] for entry in await listed(log, after=1, most=2)] == [2, 3]


async def test_an_entry_is_there_for_whatever_its_transaction_asks_next(log: Log) -> None:
    """It goes ahead of a read, of a write that refers to it, and of several queries at once."""
    entries = [an_entry(log.tenant_id, number) for number in range(3)]
    async with log.database.transaction(log.tenant_id) as tx:
        audit = PostgresAudit(tx)
        await audit.record(entries[0])
        assert (await get_entry(tx, entries[0].entry_id))["reason"] == "launch day 0"
        await audit.record(entries[1])
        erased, [found] = await tx.together(
            ("audit_add_erasure", {"entry_id": entries[0].entry_id, "erased_in": entries[1].entry_id}),
            ("audit_get", {"entry_id": entries[1].entry_id}),
        )
        assert len(erased) == 1
        assert found["sequence"] is None
        await audit.record(entries[2])
        assert await tx.run("audit_add_erasure", entry_id=entries[1].entry_id, erased_in=entries[2].entry_id) == 1
    await log.sequencer().drain(EVERY_SHARD)

    assert [entry["entry_id"] for entry in await listed(log)] == [entry.entry_id for entry in entries]


@pytest.mark.parametrize("asks_next", [True, False], ids=["with a query", "with the commit"])
async def test_a_tenant_without_a_log_takes_no_entry(log: Log, *, asks_next: bool) -> None:
    """Where an entry could not be kept, the act that it tells of must not happen either."""
    await log.sql("insert into tenants (tenant_id) values ('without-log') on conflict do nothing")

    async def act() -> None:
        async with log.database.transaction("without-log") as tx:
            await tx.run("admission_start")
            await PostgresAudit(tx).record(an_entry("without-log"))
            if asks_next:
                await tx.all("account_names")

    with pytest.raises(Unavailable, match="no audit log"):
        await act()
    async with log.database.transaction("without-log") as tx:
        assert await tx.all("account_names") == []


async def test_an_entry_of_another_log_is_not_taken(log: Log, platform_log: Log) -> None:
    """An entry belongs to the log of its own transaction."""
    async with log.database.transaction(log.tenant_id) as tx:
        with pytest.raises(ValueError, match="its own transaction"):
            await PostgresAudit(tx).record(an_entry(platform_log.tenant_id))


async def test_an_entry_of_another_tenant_is_not_found(log: Log) -> None:
    """One tenant's entry looks to another like one that does not exist."""
    [sealed] = await log.grow(1)
    other = await another_log(log)

    for entry_id in (sealed.entry.entry_id, new_id()):
        async with other.database.transaction(other.tenant_id) as tx:
            with pytest.raises(NotFound, match="no such audit entry"):
                await get_entry(tx, entry_id)


async def test_the_platform_has_a_log_of_its_own(platform_log: Log) -> None:
    """Entries without a tenant stand in the platform's log."""
    before = (await platform_log.head()).size
    await platform_log.record(1, resource=Resource("policy", "platform"))
    await platform_log.sequencer().drain(EVERY_SHARD)

    [entry] = await listed(platform_log, after=before - 1)
    assert platform_log.tenant_id == PLATFORM
    assert entry["tenant_id"] is None
    assert entry["resource"] == {"type": "policy", "id": "platform"}


@pytest.mark.parametrize("leaf", [b"\xff", b"[]", b'{"a":1}', b"[" * 100_000], ids=["bytes", "list", "other", "deep"])
async def test_a_damaged_leaf_spoils_no_list(log: Log, leaf: bytes) -> None:
    """A leaf that is not the one in the tree is named and never shown, and the entries beside it are."""
    await log.grow(3)
    await log.sql(
        "update audit_entries set leaf = %(leaf)s where tenant_id = %(log)s and resource_id = 'quota-1'", leaf=leaf
    )

    first, damaged, last = await listed(log)
    assert "tampered" not in first
    assert "tampered" not in last
    assert damaged["tampered"] == ["leaf"]
    assert damaged["sequence"] == 1
    assert damaged["actor"] is damaged["reason"] is None


async def test_a_changed_text_is_not_shown(log: Log) -> None:
    """A text that does not open its commitment shows as null and is named."""
    [sealed] = await log.grow(1)
    await log.sql("update audit_texts set text = 'because' where tenant_id = %(log)s and field = 'reason'")

    async with log.database.transaction(log.tenant_id) as tx:
        entry = await get_entry(tx, sealed.entry.entry_id)
    assert entry["reason"] is None
    assert entry["tampered"] == ["reason"]
    assert entry["ticket"] == "OPS-1"
