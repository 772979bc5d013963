"""Who may do what to the log: roles hold grants, and nobody but the owner may change an entry."""

from collections.abc import AsyncIterator

import psycopg
import pytest
from tests.conftest import MakeDatabase
from tests.storage.audit_logs import Log, another_log, open_logs

APP, SYSTEM = "jobengine_app", "jobengine_system"
TABLES = (
    "audit_logs", "audit_entries", "audit_texts", "audit_erasures", "audit_intake", "audit_tree", "audit_nodes",
    "audit_shards",
)  # fmt: skip
GRANTS = {
    (APP, "audit_logs"): {"SELECT"},
    (APP, "audit_entries"): {"SELECT", "INSERT"},
    (APP, "audit_texts"): {"SELECT", "INSERT", "DELETE"},
    (APP, "audit_erasures"): {"SELECT", "INSERT"},
    (APP, "audit_intake"): {"INSERT"},
    (APP, "audit_tree"): {"SELECT"},
    (APP, "audit_nodes"): {"SELECT"},
    (SYSTEM, "audit_logs"): {"SELECT", "INSERT", "UPDATE"},
    (SYSTEM, "audit_intake"): {"SELECT", "DELETE"},
    (SYSTEM, "audit_tree"): {"SELECT", "INSERT"},
    (SYSTEM, "audit_nodes"): {"SELECT", "INSERT"},
    (SYSTEM, "audit_shards"): {"SELECT", "UPDATE"},
}


@pytest.fixture(scope="module")
async def log(migrated_database: MakeDatabase) -> AsyncIterator[Log]:
    async with open_logs(await migrated_database()) as platform_log:
        log = await another_log(platform_log)
        await log.grow(2)
        yield log


async def attempt(log: Log, role: str, statement: str) -> int:
    """Do something as *role* inside the log's tenant; return how many rows it touched."""
    async with log.owner.transaction(force_rollback=True):
        await log.sql("select set_config('jobengine.tenant', %(log)s, true)")
        await log.sql(f"set local role {role}")
        return (await log.owner.execute(statement.encode(), {"log": log.tenant_id})).rowcount


async def test_the_grants_are_those_and_no_more(log: Log) -> None:
    """The rights of both roles on every table of the log, as PostgreSQL itself lists them."""
    rows = await log.sql(
        """select grantee, table_name, array_agg(privilege_type::text) as rights
        from information_schema.role_table_grants
        where table_schema = 'jobengine' and table_name = any(%(tables)s) and grantee = any(%(roles)s)
        group by 1, 2""",
        tables=list(TABLES),
        roles=[APP, SYSTEM, "PUBLIC"],
    )

    assert {(row["grantee"], row["table_name"]): set(row["rights"]) for row in rows} == GRANTS


@pytest.mark.parametrize("role", [APP, SYSTEM])
@pytest.mark.parametrize("table", ["audit_entries", "audit_texts", "audit_tree", "audit_nodes"])
@pytest.mark.parametrize("verb", ["update {} set tenant_id = tenant_id", "delete from {}", "truncate {} cascade"])
async def test_nobody_who_serves_may_change_what_was_logged(log: Log, role: str, table: str, verb: str) -> None:
    """Entries, texts, places and nodes are written once; without an erasure that is told of, no text can go."""
    statement = verb.format(table)
    if (role, statement) == (APP, "delete from audit_texts"):
        assert await attempt(log, role, statement) == 0
        return
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await attempt(log, role, statement)


async def test_texts_go_only_with_the_entry_that_tells_of_it(log: Log) -> None:
    """What deletes all texts deletes those of entries that an erasure names, and no others."""
    other = await another_log(log)
    erased, _, told = (str(sealed.entry.entry_id) for sealed in await other.grow(3))
    held = await other.sql("select 1 from audit_texts where tenant_id = %(log)s and entry_id = %(id)s", id=erased)
    await other.sql("insert into audit_erasures values (%(log)s, %(id)s, %(told)s)", id=erased, told=told)

    assert held
    assert await attempt(other, APP, "delete from audit_texts") == len(held)


async def test_a_tenant_cannot_write_into_the_log_of_another(log: Log) -> None:
    """Row-level security refuses an entry, a text and a place in the queue under another tenant's name."""
    other = await another_log(log)
    await other.grow(1)
    writes = (
        """insert into audit_entries select '{}', gen_random_uuid(), occurred_at, action, outcome, actor_id, null, null,
            null, leaf, leaf_hash from audit_entries limit 1""",
        "insert into audit_texts select '{}', entry_id, 'x', salt, text from audit_texts limit 1",
        "insert into audit_intake (tenant_id, shard, entry_id, leaf_hash) values ('{}', 1, gen_random_uuid(), '')",
    )
    for statement in writes:
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            await attempt(log, APP, statement.format(other.tenant_id))


@pytest.mark.parametrize("table", ["audit_logs", "audit_entries", "audit_texts", "audit_tree", "audit_nodes"])
async def test_a_tenant_sees_its_own_log_alone(log: Log, table: str) -> None:
    """Without any condition in the query, only the tenant's own rows come back."""
    other = await another_log(log)
    await other.grow(2)
    own = await log.sql(f"select 1 from {table} where tenant_id = %(log)s")

    assert own
    assert await attempt(log, APP, f"select 1 from {table}") == len(own)
