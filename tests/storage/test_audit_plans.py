"""Plans of the audit log's queries that a process keeps: made early, they must still serve a log that has grown."""

import re
from collections.abc import AsyncIterator, Sequence

import psycopg
import pytest
from psycopg.rows import dict_row
from tests.conftest import MakeDatabase
from tests.factories import Connection

from jobengine.storage.database import OPTIONS
from jobengine.storage.queries import QUERIES

# Tenants and entries of each that are there when the plan is made, and whether the tables were analysed by then.
YOUNG = {
    "nothing is there": (0, 0, False),
    "never analysed": (1, 3_000, False),
    "one log": (1, 3_000, True),
    "many small logs": (2_000, 1, True),
    "a few logs": (3, 1_000, True),
}
EACH = "generate_series(1, %(tenants)s) t, generate_series(0, %(each)s) s"
FILL = (
    f"""insert into audit_tree (tenant_id, sequence, entry_id, leaf_hash)
        select 't-plan-' || t, s, gen_random_uuid(), '\\x00' from {EACH}""",
    f"""insert into audit_intake (tenant_id, shard, entry_id, leaf_hash)
        select 't-plan-' || t, 0, gen_random_uuid(), '\\x00' from {EACH}""",
)


@pytest.fixture(scope="module")
async def alone(migrated_database: MakeDatabase) -> AsyncIterator[Connection]:
    """A superuser's connection, set as the product's are, to a database whose statistics no other test moves."""
    async with await psycopg.AsyncConnection.connect(
        await migrated_database(), autocommit=True, row_factory=dict_row, options=OPTIONS
    ) as connection:
        yield connection


@pytest.fixture(params=YOUNG.values(), ids=list(YOUNG))
async def young(request: pytest.FixtureRequest, alone: Connection) -> AsyncIterator[Connection]:
    """A superuser's transaction that sees a log at an early age, and is undone."""
    tenants, entries, analysed = request.param
    async with alone.transaction() as undone:
        await alone.execute("set local session_replication_role = replica")
        await alone.execute("set local plan_cache_mode = force_generic_plan")
        for fill in FILL:
            await alone.execute(fill.encode(), {"tenants": tenants, "each": entries - 1})
        if analysed:
            await alone.execute("analyze audit_tree, audit_intake")
        yield alone
        raise psycopg.Rollback(undone)


async def plan(connection: Connection, query: str, values: Sequence[str]) -> str:
    """Return the plan for all values of a named query, whose parameters stand in the order of their first use."""
    text = QUERIES[query].decode()
    for number, name in enumerate(dict.fromkeys(re.findall(r"%\((\w+)\)s", text)), 1):
        text = text.replace(f"%({name})s", f"${number}")
    await connection.execute(f"prepare early as {text}".encode())
    try:
        rows = await (await connection.execute(f"explain execute early ({', '.join(values)})".encode())).fetchall()
    finally:
        await connection.execute("deallocate early")
    return "\n".join(row["QUERY PLAN"] for row in rows)


async def test_a_proof_seeks_its_places(young: Connection) -> None:
    """Only the primary key, which holds the places, gives the leaves: no other index reads the whole log for them."""
    for query, values in (
        ("audit_nodes", ("'{0}'", "'t-plan-1'", "'{1}'", "'{0}'")),
        ("system_find_nodes", ("'{t-plan-1}'", "'{0}'", "'{0}'")),
    ):
        shown = await plan(young, query, values)
        assert re.search(r"Index Scan using audit_tree_pkey.*\n\s+Index Cond: .*sequence >= ", shown), shown


async def test_a_list_seeks_its_places(young: Connection) -> None:
    """A page of a log reads as many places as it shows."""
    shown = await plan(young, "audit_list_all", ("'t-plan-1'", "0", "50"))
    assert re.search(r"Index Scan using audit_tree_pkey.*\n\s+Index Cond: .*sequence > ", shown), shown


async def test_a_step_takes_only_its_thousand(young: Connection) -> None:
    """Waiting entries are taken by where they lie, and found by the primary key: a flood is not read at each step."""
    await young.execute(QUERIES["system_step_by_index"])
    shown = await plan(young, "system_place_intake", ("'{t-plan-1}'", "'{0}'", "1000"))
    assert "Tid Scan on audit_intake" in shown
    assert re.search(r"Index (Only )?Scan using audit_intake_pkey.*\n\s+Index Cond: .tenant_id = ", shown), shown
