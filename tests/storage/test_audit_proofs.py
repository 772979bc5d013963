"""Proofs from the stored tree, held against the leaves themselves."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from tests.conftest import MakeDatabase
from tests.storage.audit_logs import Log, another_log, open_logs

from jobengine.audit.merkle import subtree_root, verify_consistency, verify_inclusion
from jobengine.audit.tiles import Tile
from jobengine.errors import Conflict, JobengineError, NotFound, ValidationFailed
from jobengine.ids import new_id
from jobengine.storage.audit_proofs import prove_consistency, prove_inclusion, read_tile
from jobengine.storage.database import Transaction

STEPS = (1, 2, 5, 9)
SIZE = sum(STEPS)


@pytest.fixture(scope="module")
async def platform_log(migrated_database: MakeDatabase) -> AsyncIterator[Log]:
    async with open_logs(await migrated_database()) as log:
        yield log


@pytest.fixture(scope="module")
async def log(platform_log: Log) -> Log:
    """A log that grew in uneven steps."""
    log = await another_log(platform_log)
    for amount in STEPS:
        await log.grow(amount)
    return log


async def leaf_hashes(log: Log) -> list[bytes]:
    rows = await log.sql("select leaf_hash from audit_tree where tenant_id = %(log)s order by sequence")
    return [row["leaf_hash"] for row in rows]


async def test_every_entry_is_proved_to_be_in_the_tree(log: Log) -> None:
    """Each leaf at its index, up to the root of the signed head."""
    leaves = await leaf_hashes(log)
    async with log.database.transaction(log.tenant_id) as tx:
        for place, entry_id in await log.places():
            proof = await prove_inclusion(tx, entry_id)
            assert (proof.leaf_index, proof.head.size) == (place, SIZE)
            assert verify_inclusion(place, SIZE, leaves[place], proof.hashes, proof.head.root_hash)


async def test_every_size_is_proved_to_continue_every_smaller_one(log: Log) -> None:
    """All pairs of sizes that the log has had, with the roots that it had then."""
    leaves = await leaf_hashes(log)
    roots = [subtree_root(leaves[:size]) for size in range(SIZE + 1)]
    async with log.database.transaction(log.tenant_id) as tx:
        for to_size in range(SIZE + 1):
            for from_size in range(to_size + 1):
                proof = await prove_consistency(tx, from_size, to_size)
                assert (proof.from_root, proof.to_root) == (roots[from_size], roots[to_size])
                assert verify_consistency(from_size, to_size, roots[from_size], roots[to_size], proof.hashes)


async def test_the_newest_size_is_the_one_meant_by_none(log: Log) -> None:
    """Who names no later checkpoint gets a proof up to the head."""
    async with log.database.transaction(log.tenant_id) as tx:
        assert (await prove_consistency(tx, 3, None)).to_size == SIZE


@pytest.mark.parametrize(
    ("from_size", "to_size", "name"), [(4, 3, "from"), (-1, 3, "from"), (0, SIZE + 1, "to"), (SIZE + 1, None, "from")]
)
async def test_sizes_that_never_were_are_refused(log: Log, from_size: int, to_size: int | None, name: str) -> None:
    """The member that is wrong is named."""
    async with log.database.transaction(log.tenant_id) as tx:
        with pytest.raises(ValidationFailed, match=f"^{name}: must be"):
            await prove_consistency(tx, from_size, to_size)


async def test_an_entry_without_a_place_has_no_proof_yet(platform_log: Log) -> None:
    """That is another answer than that there is no such entry."""
    log = await another_log(platform_log)
    [sealed] = await log.record()
    async with log.database.transaction(log.tenant_id) as tx:
        with pytest.raises(Conflict):
            await prove_inclusion(tx, sealed.entry.entry_id)
        with pytest.raises(NotFound):
            await prove_inclusion(tx, new_id())


async def test_a_tile_holds_its_nodes_in_order(log: Log) -> None:
    """As wide as it was asked for, and never wider than the tree."""
    leaves = await leaf_hashes(log)
    async with log.database.transaction(log.tenant_id) as tx:
        assert await read_tile(tx, Tile(0, 0, SIZE)) == b"".join(leaves)
        assert await read_tile(tx, Tile(0, 0, 3)) == b"".join(leaves[:3])
        for beyond in (Tile(0, 0, SIZE + 1), Tile(0, 0), Tile(0, 1, 1), Tile(1, 0, 1), Tile(63, 10**15, 1)):
            with pytest.raises(NotFound):
                await read_tile(tx, beyond)


async def test_a_tile_of_a_higher_level_holds_subtree_roots(platform_log: Log) -> None:
    """One hash of level 1 stands for 256 leaves."""
    log = await another_log(platform_log)
    await log.grow(256)
    async with log.database.transaction(log.tenant_id) as tx:
        assert await read_tile(tx, Tile(1, 0, 1)) == subtree_root(await leaf_hashes(log))
        assert len(await read_tile(tx, Tile(0, 0))) == 256 * 32


Read = Callable[[Transaction, str], Awaitable[object]]
READS: dict[str, Read] = {
    "inclusion": prove_inclusion,
    "consistency": lambda tx, _: prove_consistency(tx, 3, None),
    "tile": lambda tx, _: read_tile(tx, Tile(0, 0, 5)),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
async def test_a_tree_that_lacks_nodes_proves_nothing(platform_log: Log, read: Read) -> None:
    """Rather no proof than one that is wrong."""
    log = await another_log(platform_log)
    sealed = await log.grow(5)
    await log.sql("delete from audit_nodes where tenant_id = %(log)s")
    await log.sql("delete from audit_tree where tenant_id = %(log)s and sequence = 1")

    async with log.database.transaction(log.tenant_id) as tx:
        with pytest.raises(JobengineError, match="damaged"):
            await read(tx, sealed[0].entry.entry_id)
