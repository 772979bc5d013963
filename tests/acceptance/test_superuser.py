"""Whoever owns the database edits, deletes, or puts yesterday's backup back: whoever kept a checkpoint finds out where.

The auditor keeps the checkpoint and the leaf hashes of an earlier day, and has the verifier. The owner of the database
has everything else but the key, which lies outside of it.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.conftest import MakeDatabase
from tests.storage.audit_logs import KEYS, Log, another_log, open_logs

from jobengine.audit.merkle import Frontier, leaf_hash, new_nodes
from jobengine.audit.witness import Inconsistent, Submission, cosign, judge, read_cosignature, witness_key
from jobengine.storage.audit_export import Export, Format, export_log
from jobengine_verify.cli import main
from jobengine_verify.notes import open_checkpoint, parse_key
from jobengine_verify.verify import Among, Intact, Missing, Named, Tampered, check_export

YESTERDAY, SINCE_THEN = 300, 20
# Children first.
TABLES = ("audit_texts", "audit_tree", "audit_nodes", "audit_logs", "audit_entries")


@dataclass(frozen=True, slots=True)
class Auditor:
    """What somebody outside has: the key, and what was kept on a day."""

    vkey: str
    checkpoint: str
    tiles: bytes

    def judge(self, content: bytes, *, with_tiles: bool = True) -> Intact | Tampered:
        """Check an export against what was kept."""
        key = parse_key(self.vkey)
        tiles = BytesIO(self.tiles) if with_tiles else None
        return check_export(BytesIO(content), key, open_checkpoint(self.checkpoint, key), tiles)

    def first_bad(self, content: bytes) -> int:
        """Return the first bad place of an export that is tampered with."""
        match self.judge(content):
            case Tampered(first_bad=Named(index) | Missing(index)):
                return index
            case other:
                pytest.fail(f"no place is named: {other}")


@pytest.fixture(scope="module")
async def platform_log(migrated_database: MakeDatabase) -> AsyncIterator[Log]:
    async with open_logs(await migrated_database()) as log:
        yield log


@pytest.fixture
async def log(platform_log: Log) -> Log:
    """A log as it was yesterday."""
    log = await another_log(platform_log)
    await log.grow(YESTERDAY)
    return log


async def exported(log: Log, form: Format = Format.NDJSON) -> bytes:
    """Export the log as the service does."""
    head = await log.head()
    wanted = Export(size=head.size, note=head.checkpoint, format=form)
    return b"".join([chunk async for chunk in export_log(log.database, log.tenant_id, wanted)])


async def visit(log: Log) -> Auditor:
    """Let the auditor come by and keep what there is."""
    head = await log.head()
    return Auditor(str(KEYS.verifier_key(head.origin)), head.checkpoint, await exported(log, Format.TILES))


async def save(log: Log) -> None:
    """Make a backup of the log."""
    for table in TABLES:
        await log.sql(f"create temporary table saved_{table} as select * from {table} where tenant_id = %(log)s")


async def put_back(log: Log) -> None:
    """Put the backup back in the place of what is there now."""
    await log.sql("set session_replication_role = replica")
    for table in TABLES:
        await log.sql(f"delete from {table} where tenant_id = %(log)s")
        await log.sql(f"insert into {table} select * from saved_{table}")
        await log.sql(f"drop table saved_{table}")
    await log.sql("set session_replication_role = default")


async def hash_anew(log: Log) -> None:
    """Make every hash that the database holds that of the entries as they are now; the signature stays the old one."""
    rows = await log.sql(
        """select t.sequence, e.entry_id, e.leaf from audit_tree t join audit_entries e using (tenant_id, entry_id)
        where t.tenant_id = %(log)s order by t.sequence"""
    )
    await log.sql("delete from audit_tree where tenant_id = %(log)s")
    await log.sql("delete from audit_nodes where tenant_id = %(log)s")
    for place, row in enumerate(rows):
        values = {"place": place, "entry_id": row["entry_id"], "hash": leaf_hash(row["leaf"])}
        await log.sql("insert into audit_tree values (%(log)s, %(place)s, %(entry_id)s, %(hash)s)", **values)
        await log.sql(
            "update audit_entries set leaf_hash = %(hash)s where tenant_id = %(log)s and entry_id = %(entry_id)s",
            **values,
        )
    tree, nodes = new_nodes(Frontier(), [leaf_hash(row["leaf"]) for row in rows])
    for (level, index), hashed in nodes.items():
        await log.sql("insert into audit_nodes values (%(log)s, %(l)s, %(i)s, %(h)s)", l=level, i=index, h=hashed)
    await log.sql(
        "update audit_logs set root_hash = %(root)s, frontier = %(frontier)s where tenant_id = %(log)s",
        root=tree.root(), frontier=list(tree.hashes),
    )  # fmt: skip


async def entry_at(log: Log, place: int) -> str:
    return (await log.places())[place][1]


async def test_nothing_is_found_where_nothing_was_done(log: Log) -> None:
    """A log that only grew continues what was kept."""
    auditor = await visit(log)
    await log.grow(SINCE_THEN)

    assert isinstance(auditor.judge(await exported(log)), Intact)


@pytest.mark.parametrize("place", [0, 150, 299])
async def test_an_edited_entry_is_named(log: Log, place: int) -> None:
    """Changed in its leaf, with every hash of the database made anew."""
    auditor = await visit(log)
    await log.grow(SINCE_THEN)
    await log.sql(
        """update audit_entries
        set leaf = convert_to(replace(convert_from(leaf, 'UTF8'), '"amount":', '"amount":9'), 'UTF8')
        where tenant_id = %(log)s and entry_id = %(entry_id)s""",
        entry_id=await entry_at(log, place),
    )
    await hash_anew(log)

    assert auditor.first_bad(await exported(log)) == place
    match auditor.judge(await exported(log), with_tiles=False):
        case Tampered(first_bad=Among(first, last)):
            assert first <= place <= last < YESTERDAY
        case other:
            pytest.fail(str(other))
    assert not (await log.check()).ok


async def test_an_edited_reason_is_named_without_anything_kept(log: Log) -> None:
    """The text alone contradicts its own entry."""
    await log.sql(
        "update audit_texts set text = 'because' where tenant_id = %(log)s and entry_id = %(entry_id)s",
        entry_id=await entry_at(log, 42),
    )
    auditor = await visit(log)

    match auditor.judge(await exported(log), with_tiles=False):
        case Tampered(first_bad=Named(index)):
            assert index == 42
        case other:
            pytest.fail(str(other))


@pytest.mark.parametrize("place", [0, 150, 299])
async def test_a_deleted_entry_is_named(log: Log, place: int) -> None:
    """Taken out with everything that hung on it, the others moved up and hashed anew."""
    auditor = await visit(log)
    await log.grow(SINCE_THEN)
    entry_id = await entry_at(log, place)
    for table in ("audit_texts", "audit_tree", "audit_entries"):
        await log.sql(f"delete from {table} where tenant_id = %(log)s and entry_id = %(id)s", id=entry_id)
    await hash_anew(log)

    assert auditor.first_bad(await exported(log)) == place
    assert not (await log.check()).ok


async def test_yesterdays_backup_is_found_by_todays_checkpoint(log: Log) -> None:
    """All of it is signed by the right key, and it ends too soon."""
    await save(log)
    await log.grow(SINCE_THEN)
    auditor = await visit(log)
    await put_back(log)

    assert auditor.first_bad(await exported(log)) == YESTERDAY


async def test_what_a_witness_signed_finds_the_backup_without_an_auditor(log: Log) -> None:
    """Nobody of ours kept anything: the last checkpoint that a witness cosigned is held against it."""
    await save(log)
    await log.grow(SINCE_THEN)
    head = await log.head()
    key, name = Ed25519PrivateKey.generate(), "witness.example"
    ours = {head.origin: [KEYS.verifier_key(head.origin)]}
    seen = judge(Submission(0, (), head.checkpoint), ours, lambda _: None)
    witnessed = f"{head.checkpoint}{cosign(seen, key, name, 1_800_000_000)}\n"
    await put_back(log)
    await log.grow(2 * SINCE_THEN)

    line = witnessed.removeprefix(head.checkpoint)
    assert read_cosignature(line, witnessed, witness_key(name, key)) == (line.strip(), 1_800_000_000)
    found = Auditor(str(KEYS.verifier_key(head.origin)), witnessed, b"").judge(await exported(log), with_tiles=False)
    assert isinstance(found, Tampered)
    assert found.first_bad == Among(0, YESTERDAY + SINCE_THEN - 1)
    now = (await log.head()).checkpoint
    with pytest.raises(Inconsistent):
        judge(Submission(seen.size, (bytes(32),), now), ours, lambda _: seen)


@pytest.mark.parametrize("place", [0, 150, 299])
@pytest.mark.parametrize("deed", ["edited", "deleted"])
async def test_what_a_witness_signed_finds_an_entry_that_is_not_as_it_was(log: Log, deed: str, place: int) -> None:
    """The tiles of that day name it; a log that its owner cannot sign anew is held against the witnessed checkpoint."""
    await log.grow(SINCE_THEN)
    auditor = await visit(log)
    key = Ed25519PrivateKey.generate()
    seen = KEYS.read(auditor.checkpoint)
    cosigned = f"{auditor.checkpoint}{cosign(seen, key, 'witness.example', 1_800_000_000)}\n"
    entry_id = await entry_at(log, place)
    if deed == "edited":
        await log.sql(
            """update audit_entries
            set leaf = convert_to(replace(convert_from(leaf, 'UTF8'), '"amount":', '"amount":9'), 'UTF8')
            where tenant_id = %(log)s and entry_id = %(id)s""",
            id=entry_id,
        )
    else:
        for table in ("audit_texts", "audit_tree", "audit_entries"):
            await log.sql(f"delete from {table} where tenant_id = %(log)s and entry_id = %(id)s", id=entry_id)
    await hash_anew(log)

    assert replace(auditor, checkpoint=cosigned).first_bad(await exported(log)) == place


async def test_a_backup_that_grew_on_is_found_where_it_parted(log: Log) -> None:
    """The service went on from there in good faith and signed: two logs of one name, which part at one place."""
    await save(log)
    await log.grow(SINCE_THEN)
    auditor = await visit(log)
    await put_back(log)
    await log.grow(2 * SINCE_THEN)

    found = auditor.judge(await exported(log))
    assert isinstance(found, Tampered)
    assert "the log was rewritten" in found.problem
    assert auditor.first_bad(await exported(log)) == YESTERDAY


async def test_the_command_says_where(log: Log, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As an auditor runs it: exit code 1, and the place in words."""
    await save(log)
    await log.grow(SINCE_THEN)
    auditor = await visit(log)
    await put_back(log)
    (tmp_path / "export.ndjson").write_bytes(await exported(log))
    (tmp_path / "checkpoint").write_text(auditor.checkpoint, "utf-8")

    code = main([str(tmp_path / "export.ndjson"), "--key", auditor.vkey, "--since", str(tmp_path / "checkpoint")])

    assert code == 1
    assert f"index {YESTERDAY} is missing" in capsys.readouterr().out
