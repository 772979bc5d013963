"""What the owner of the database may do to a log, and what a check of it finds."""

from collections.abc import AsyncIterator

import pytest
from tests.conftest import MakeDatabase
from tests.storage.audit_logs import EVERY_SHARD, Log, another_log, open_logs

from jobengine.audit.merkle import EMPTY_ROOT, Frontier, leaf_hash, new_nodes
from jobengine.storage.audit import PAGE_ENTRIES
from jobengine.storage.audit_check import Verdict

OLD, SIZE = 5, 13

AT_SEVEN = """where tenant_id = %(log)s
    and entry_id = (select entry_id from audit_tree where tenant_id = %(log)s and sequence = 7)"""
COLUMNS = {
    "leaf": "leaf = set_byte(leaf, 20, 33)",
    "leaf of another entry": "leaf = (select leaf from audit_entries where tenant_id = %(log)s limit 1)",
    "leaf that is empty": "leaf = ''",
    "stored hash": "leaf_hash = '\\x00'",
    "action": "action = 'quota.paused'",
    "actor": "actor_id = 'somebody'",
    "time": "occurred_at = occurred_at - interval '1 microsecond'",
    "time without end": "occurred_at = 'infinity'",
    "outcome": "outcome = 'refused'",
    "token": "token_id = null",
    "resource": "resource_type = null, resource_id = null",
    "half of a resource": "resource_id = null",
}
ROWS = {
    "reason": f"update audit_texts set text = 'because' {AT_SEVEN} and field = 'reason'",
    "salt": f"update audit_texts set salt = '\\x{'00' * 16}' {AT_SEVEN} and field = 'ticket'",
    "longer salt": f"update audit_texts set salt = salt || 'O', text = 'PS-1' {AT_SEVEN} and field = 'ticket'",
    "carried reason": f"update audit_texts set text = '' {AT_SEVEN} and field = 'properties.quota.reason'",
    "text that is gone": f"delete from audit_texts {AT_SEVEN} and field = 'ticket'",
    "text whose erasing another entry tells of": f"""with told as (
            insert into audit_erasures select tenant_id, entry_id, entry_id from audit_entries {AT_SEVEN}
        ) delete from audit_texts {AT_SEVEN}""",
    "text that was never written": f"""insert into audit_texts
        select tenant_id, entry_id, 'properties.amount', salt, text from audit_texts {AT_SEVEN} and field = 'reason'""",
    "hash in the tree": "update audit_tree set leaf_hash = '\\x00' where tenant_id = %(log)s and sequence = 7",
    "entry in the tree": """update audit_tree set entry_id = gen_random_uuid()
        where tenant_id = %(log)s and sequence = 7""",
    "place": "update audit_tree set sequence = 7000 where tenant_id = %(log)s and sequence = 7",
    "row of the tree": "delete from audit_tree where tenant_id = %(log)s and sequence = 7",
}
DAMAGES = {name: f"update audit_entries set {change} {AT_SEVEN}" for name, change in COLUMNS.items()} | ROWS


@pytest.fixture(scope="module")
async def platform_log(migrated_database: MakeDatabase) -> AsyncIterator[Log]:
    async with open_logs(await migrated_database()) as log:
        yield log


@pytest.fixture
async def log(platform_log: Log) -> Log:
    """A log of thirteen entries, placed in two steps."""
    log = await another_log(platform_log)
    await log.grow(OLD)
    await log.grow(SIZE - OLD)
    return log


def outcome(verdict: Verdict) -> tuple[bool, int | None]:
    return verdict.ok, verdict.first_bad


async def swap(log: Log, first: int, second: int) -> None:
    """Let two entries change places, each with its hash."""
    where = "where tenant_id = %(log)s and sequence in (%(first)s, %(second)s)"
    pair = await log.sql(f"select sequence, entry_id, leaf_hash from audit_tree {where}", first=first, second=second)
    await log.sql(f"delete from audit_tree {where}", first=first, second=second)
    for row in pair:
        place = first + second - row["sequence"]
        await log.sql("insert into audit_tree values (%(log)s, %(n)s, %(entry_id)s, %(leaf_hash)s)", n=place, **row)


async def forge_leaf(log: Log, place: int) -> None:
    """Change what an entry says, and every hash of it that stands beside it."""
    [row] = await log.sql(
        """select e.entry_id, e.leaf from audit_tree t join audit_entries e using (tenant_id, entry_id)
        where t.tenant_id = %(log)s and t.sequence = %(place)s""",
        place=place,
    )
    leaf = row["leaf"].replace(b'"amount":', b'"amount":9')
    values = {"leaf": leaf, "hash": leaf_hash(leaf), "entry_id": row["entry_id"]}
    where = "where tenant_id = %(log)s and entry_id = %(entry_id)s"
    await log.sql(f"update audit_entries set leaf = %(leaf)s, leaf_hash = %(hash)s {where}", **values)
    await log.sql(f"update audit_tree set leaf_hash = %(hash)s {where}", **values)


async def forge_nodes(log: Log) -> Frontier:
    """Make the nodes those of the leaves as they are now, and return the frontier."""
    rows = await log.sql("select leaf_hash from audit_tree where tenant_id = %(log)s order by sequence")
    tree, nodes = new_nodes(Frontier(), [row["leaf_hash"] for row in rows])
    for (level, index), hashed in nodes.items():
        await log.sql(
            "update audit_nodes set hash = %(h)s where tenant_id = %(log)s and level = %(l)s and index = %(i)s",
            h=hashed, l=level, i=index,
        )  # fmt: skip
    return tree


async def set_head(log: Log, size: int, root: bytes, frontier: tuple[bytes, ...], checkpoint: str) -> None:
    await log.sql(
        """update audit_logs set size = %(size)s, root_hash = %(root)s, frontier = %(frontier)s,
            checkpoint = %(checkpoint)s where tenant_id = %(log)s""",
        size=size, root=root, frontier=list(frontier), checkpoint=checkpoint,
    )  # fmt: skip


async def test_an_untouched_log_is_intact(log: Log) -> None:
    """Everything is as it was sealed, and the root is that of the head."""
    verdict = await log.check()

    assert verdict == Verdict(SIZE, (await log.head()).root_hash, None, None)
    assert verdict.ok


async def test_an_empty_log_is_intact(platform_log: Log) -> None:
    """Nothing recorded is nothing wrong, and neither is an entry that still waits."""
    log = await another_log(platform_log)
    await log.record()

    assert await log.check() == Verdict(0, EMPTY_ROOT, None, None)


async def test_a_log_of_several_pages_is_checked_whole(platform_log: Log) -> None:
    """Pages join without a seam, and damage in a later page keeps its place."""
    log = await another_log(platform_log)
    await log.grow(2 * PAGE_ENTRIES + 3)
    assert (await log.check()).ok

    place = PAGE_ENTRIES + 1
    await log.sql(
        "update audit_tree set leaf_hash = '\\x00' where tenant_id = %(log)s and sequence = %(place)s", place=place
    )

    verdict = await log.check()
    assert outcome(verdict) == (False, place)
    assert verdict.entries == 2 * PAGE_ENTRIES + 3


@pytest.mark.parametrize("statement", DAMAGES.values(), ids=DAMAGES)
async def test_a_damaged_entry_is_named_by_its_place(log: Log, statement: str) -> None:
    """Whatever is changed of an entry, or beside it, the first bad place is that entry's."""
    await log.sql(statement)

    assert outcome(await log.check()) == (False, 7)


@pytest.mark.parametrize("leaf", [b"\xff", b"[]", b'{"a":1}', b"[" * 100_000], ids=["bytes", "list", "other", "deep"])
async def test_a_leaf_that_is_none_is_named_by_its_place(log: Log, leaf: bytes) -> None:
    """Garbage under its right hash counts as bad; it breaks nothing."""
    values = {"leaf": leaf, "hash": leaf_hash(leaf)}
    await log.sql(f"update audit_entries set leaf = %(leaf)s, leaf_hash = %(hash)s {AT_SEVEN}", **values)
    await log.sql("update audit_tree set leaf_hash = %(hash)s where tenant_id = %(log)s and sequence = 7", **values)
    await forge_nodes(log)

    assert outcome(await log.check()) == (False, 7)


@pytest.mark.parametrize("with_place", [False, True])
async def test_a_deleted_entry_is_missed_where_it_stood(log: Log, with_place: bool) -> None:
    """An entry that is gone with all that hung on it leaves a gap."""
    await log.sql(f"delete from audit_texts {AT_SEVEN}")
    await log.sql(f"delete from audit_entries {AT_SEVEN}")
    if with_place:
        await log.sql("delete from audit_tree where tenant_id = %(log)s and sequence = 7")

    assert outcome(await log.check()) == (False, 7)


async def test_the_first_of_several_damages_is_named(log: Log) -> None:
    """Damage further on hides none before it, whatever its kind."""
    await forge_leaf(log, 3)
    await log.sql(DAMAGES["action"])
    assert outcome(await log.check()) == (False, 2)  # 2 or 3: only the node above both tells

    await log.sql("update audit_tree set leaf_hash = '\\x00' where tenant_id = %(log)s and sequence = 1")
    assert outcome(await log.check()) == (False, 1)


async def test_swapped_entries_are_found_below_the_node_that_tells(log: Log) -> None:
    """Entries that changed places with their hashes show in the nodes above the first of them."""
    await swap(log, 4, 9)

    verdict = await log.check()
    assert outcome(verdict) == (False, 4)
    assert "the entries 4 to 5" in (verdict.problem or "")


async def test_a_forged_leaf_is_found_below_the_node_that_tells(log: Log) -> None:
    """An entry changed with care, with both hashes beside it, contradicts the node above."""
    await forge_leaf(log, 9)

    verdict = await log.check()
    assert outcome(verdict) == (False, 8)
    assert "the entries 8 to 9" in (verdict.problem or "")


async def test_a_forged_tree_contradicts_its_head(log: Log) -> None:
    """With all nodes forged as well, the root is not the one that was signed."""
    await forge_leaf(log, 9)
    await forge_nodes(log)

    verdict = await log.check()
    assert outcome(verdict) == (False, None)
    assert verdict.problem == "the entries are not those of the head"


async def test_a_forged_head_lacks_the_signature(log: Log) -> None:
    """With the head forged as well, only the key is missing, and that lies outside of the database."""
    head = await log.head()
    await forge_leaf(log, 9)
    tree = await forge_nodes(log)
    await set_head(log, SIZE, tree.root(), tree.hashes, head.checkpoint)

    verdict = await log.check()
    assert outcome(verdict) == (False, None)
    assert verdict.problem == "the head is not signed by the log's key"


async def test_a_forged_head_is_never_grown(log: Log) -> None:
    """The next step does not sign what somebody else wrote: the log stands still, and others go on."""
    head = await log.head()
    await forge_leaf(log, 9)
    tree = await forge_nodes(log)
    await set_head(log, SIZE, tree.root(), tree.hashes, head.checkpoint)
    other = await another_log(log)
    await log.record()
    await other.record()

    assert await log.sequencer().drain(EVERY_SHARD) == 1
    assert ((await log.head()).size, (await other.head()).size) == (SIZE, 1)
    assert not (await log.check()).ok


async def test_a_head_of_another_log_is_not_taken(log: Log) -> None:
    """A good signature under another log's name is none of this log."""
    other = await another_log(log)
    await other.grow(SIZE)
    await log.sql(
        "update audit_logs set checkpoint = %(note)s where tenant_id = %(log)s", note=(await other.head()).checkpoint
    )

    assert outcome(await log.check()) == (False, None)


HEADS = {
    "origin": "origin = 'no name, ' || tenant_id",
    "root": "root_hash = '\\x00'",
    "frontier": "frontier = frontier || frontier",
    "no checkpoint": "checkpoint = ''",
    "garbage": "checkpoint = 'garbage'",
}


@pytest.mark.parametrize("change", HEADS.values(), ids=HEADS)
async def test_a_damaged_head_blames_no_entry(log: Log, change: str) -> None:
    """What is wrong with the head alone is told without naming an entry."""
    await log.sql(f"update audit_logs set {change} where tenant_id = %(log)s")

    verdict = await log.check()
    assert outcome(verdict) == (False, None)
    assert verdict.problem


@pytest.mark.parametrize("size", [SIZE + 1, 10**15])
async def test_a_head_beyond_the_tree_is_found_at_its_end(log: Log, size: int) -> None:
    """A head may claim anything; the tree ends where it ends."""
    await log.sql("update audit_logs set size = %(size)s where tenant_id = %(log)s", size=size)

    assert outcome(await log.check()) == (False, SIZE)


async def test_a_cut_tree_is_found_at_the_cut(log: Log) -> None:
    """A tree without its end is shorter than what was signed."""
    await log.sql("delete from audit_tree where tenant_id = %(log)s and sequence >= 9")

    assert outcome(await log.check()) == (False, 9)


@pytest.mark.parametrize("with_tree", [False, True])
async def test_a_log_set_back_to_an_old_head_misses_entries(platform_log: Log, with_tree: bool) -> None:
    """An old head is signed; but entries that came after it are still there, in the tree or at least in the log."""
    log = await another_log(platform_log)
    await log.grow(OLD)
    old = await log.head()
    await log.grow(SIZE - OLD)
    await set_head(log, OLD, old.root_hash, old.frontier, old.checkpoint)
    if with_tree:
        await log.sql("delete from audit_tree where tenant_id = %(log)s and sequence >= %(size)s", size=OLD)

    assert outcome(await log.check()) == (False, OLD)


@pytest.mark.parametrize("change", ["update audit_nodes set hash = '\\x00'", "delete from audit_nodes"])
async def test_a_damaged_node_blames_no_entry(log: Log, change: str) -> None:
    """Under a root that was signed the leaves are good, and the node is what was changed."""
    await log.sql(f"{change} where tenant_id = %(log)s and level = 2 and index = 1")

    verdict = await log.check()
    assert outcome(verdict) == (False, None)
    assert verdict.problem == "the node over the entries 4 to 7 is not the one in the tree"
