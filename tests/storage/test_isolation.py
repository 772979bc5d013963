"""No query of one tenant sees or changes another's rows: by its own words alone, and by row-level security alone."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx2
import psycopg
import pytest
from psycopg.rows import dict_row
from tests.conftest import PassTime
from tests.factories import Connection, make_api, new_tenant
from tests.storage.recorder import Recorder, live_a_day, recording

from jobengine.bootstrap import Plane
from jobengine.storage.queries import QUERIES

# What belongs to no tenant: the clock, the binding itself, how to read and to plan, and the one policy.
PLATFORM = {
    "now",
    "set_tenant",
    "admission_look",
    "audit_plan_anew",
    "get_policy",
    "lock_policy",
    "set_policy",
    "policy_changes",
}
# What waits for the sequencer, which may have been quicker; and a change that finds itself done when it is repeated.
SOON_EMPTY = {"audit_unplaced", "attempt_end"}
TENANT_QUERIES = sorted(name for name in QUERIES if not name.startswith("system_") and name not in PLATFORM)
SYSTEM_QUERIES = {
    "system_add_client",
    "system_add_key",
    "system_add_log",
    "system_add_tenant",
    "system_advance_heads",
    "system_changed_logs",
    "system_count_backfills",
    "system_count_logs",
    "system_count_running_batches",
    "system_count_waiting",
    "system_disable_client",
    "system_due_wakeups",
    "system_find_batch_work",
    "system_find_client",
    "system_find_expired_changes",
    "system_find_installation",
    "system_find_known",
    "system_find_logs",
    "system_find_nodes",
    "system_find_role",
    "system_find_tokens",
    "system_fix_issuer",
    "system_forget_asks",
    "system_forget_wakeups",
    "system_give_back_shards",
    "system_has_tenant",
    "system_idle_admissions",
    "system_is_member",
    "system_join_sequencers",
    "system_keep_cosignature",
    "system_leave_relay",
    "system_leave_shards",
    "system_list_clients",
    "system_list_keys",
    "system_list_revoked",
    "system_lock_heads",
    "system_lock_keys",
    "system_lock_migrations",
    "system_mark_stuck",
    "system_mark_wakeups",
    "system_note_anchors",
    "system_orphan_shards",
    "system_own_shards",
    "system_place_intake",
    "system_place_nodes",
    "system_old_attempts",
    "system_prune_attempts",
    "system_prune_denials",
    "system_prune_event_calls",
    "system_prune_event_keys",
    "system_prune_idempotency_keys",
    "system_prune_leases",
    "system_prune_revoked_tokens",
    "system_read_standings",
    "system_ready",
    "system_retire_key",
    "system_sequencer_lag",
    "system_sign_head",
    "system_signed_otherwise",
    "system_start_installation",
    "system_start_policy",
    "system_take_beat",
    "system_take_relay",
    "system_unlock_migrations",
    "system_unwitnessed_logs",
    "system_waiting_logs",
    "system_step_by_index",
}


@dataclass(frozen=True, slots=True)
class Days:
    """Two tenants that did the same things under the same names, and what each of them asked."""

    first: str
    second: str
    asked_first: Recorder
    asked_second: Recorder


@pytest.fixture(scope="module")
async def days(client: httpx2.AsyncClient, plane: Plane, later: PassTime) -> Days:
    """Both days, lived once for all the queries."""
    recorders: list[Recorder] = []
    tenants = [await new_tenant(plane), await new_tenant(plane)]
    for tenant_id in tenants:
        with recording() as recorder:
            await live_a_day(make_api(client, plane, tenant_id), later)
        recorders.append(recorder)
    return Days(*tenants, *recorders)


@pytest.fixture(scope="module")
async def bound(database_url: str, days: Days) -> AsyncIterator[Connection]:
    """The application's role, bound to the second tenant."""
    options = "-c search_path=jobengine -c timezone=UTC -c role=jobengine_app"
    async with await psycopg.AsyncConnection.connect(
        database_url, autocommit=True, row_factory=dict_row, options=options
    ) as connection:
        await connection.execute("select set_config('jobengine.tenant', %s, false)", (days.second,))
        yield connection


@pytest.fixture(scope="module")
async def tables(owner: Connection) -> list[str]:
    """Every table that has rows of tenants."""
    query = """select table_name from information_schema.columns natural join information_schema.tables
        where table_schema = 'jobengine' and column_name = 'tenant_id' and table_type = 'BASE TABLE'"""
    return sorted(row["table_name"] for row in await (await owner.execute(query)).fetchall())


Outcome = tuple[object, ...]


async def outcome(connection: Connection, query: str, values: Mapping[str, object]) -> Outcome:
    """What a query answers, without times; whatever it does is undone."""
    try:
        async with connection.transaction() as undone:
            cursor = await connection.execute(QUERIES[query], values)
            rows = await cursor.fetchall() if cursor.description else []
            raise psycopg.Rollback(undone)
    except psycopg.Error as error:
        return ("error", type(error).__name__)
    return ("rows", cursor.rowcount, sorted(repr(timeless(row)) for row in rows))


def timeless(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, datetime) else value for name, value in row.items()}


@pytest.mark.parametrize("query", TENANT_QUERIES)
async def test_a_query_keeps_to_its_tenant_without_row_level_security(
    days: Days, owner: Connection, bound: Connection, query: str
) -> None:
    """Asked for the second tenant, with its own ids or the first's, it answers a superuser what it answers the role."""
    asked = [*days.asked_second.asked[query], *days.asked_first.asked[query]]

    assert asked, "the day of a tenant in recorder.py does not ask this"
    for values in asked:
        wanted = {**values, "tenant_id": days.second}
        assert await outcome(owner, query, wanted) == await outcome(bound, query, wanted)


@pytest.mark.parametrize("query", TENANT_QUERIES)
async def test_a_query_that_names_another_tenant_finds_none(days: Days, bound: Connection, query: str) -> None:
    """Row-level security alone: the first tenant is to a transaction of the second what a tenant is that never was."""
    for values in days.asked_first.asked[query]:
        theirs = await outcome(bound, query, {**values, "tenant_id": days.first})
        nobodys = await outcome(bound, query, {**values, "tenant_id": "t-nobody"})
        assert theirs == nobodys


@pytest.mark.parametrize("query", TENANT_QUERIES)
async def test_a_query_finds_something_for_its_own_tenant(days: Days, owner: Connection, query: str) -> None:
    """The tests beside this one would pass on an empty database; this one would not."""
    if query in days.asked_first.found | SOON_EMPTY:
        return
    answers = [
        await outcome(owner, query, {**values, "tenant_id": days.first}) for values in days.asked_first.asked[query]
    ]
    assert any(answer[:2] == ("error", "UniqueViolation") or answer[1] not in (0, -1) for answer in answers)


PLANTED = {
    "a forgotten tenant": b"select lease_id from leases where job_type = 'external' and %(tenant_id)s <> ''",
    "a join without it": b"""select h.version from quotas q join quota_history h on h.quota_id is not null
        where q.tenant_id = %(tenant_id)s""",
    "a subselect without it": b"select (select count(*) from leases) from tenants where tenant_id = %(tenant_id)s",
    "an update without it": b"update quotas set paused = true where job_type = 'external' and %(tenant_id)s <> ''",
}


@pytest.mark.parametrize("text", PLANTED.values(), ids=PLANTED)
async def test_a_planted_leak_is_found(
    days: Days, owner: Connection, bound: Connection, monkeypatch: pytest.MonkeyPatch, text: bytes
) -> None:
    """Whatever a query forgets, a superuser gets more from it than the role does."""
    monkeypatch.setitem(QUERIES, "planted", text)
    wanted = {"tenant_id": days.second}

    assert await outcome(owner, "planted", wanted) != await outcome(bound, "planted", wanted)


async def test_an_unbound_or_strange_transaction_sees_no_table(
    days: Days, database_url: str, tables: list[str]
) -> None:
    """A forgotten binding shows nothing at all, and neither does another tenant's."""
    options = "-c search_path=jobengine -c role=jobengine_app"
    async with await psycopg.AsyncConnection.connect(database_url, options=options) as connection:
        for tenant_id in (None, "", "t-nobody"):
            if tenant_id is not None:
                await connection.execute("select set_config('jobengine.tenant', %s, false)", (tenant_id,))
            for table in tables:
                if not await readable(connection, table):
                    continue
                found = await (await connection.execute(f"select count(*) from {table}".encode())).fetchone()
                assert found == (0,), (table, tenant_id)
    assert days.first != days.second


async def readable(connection: psycopg.AsyncConnection[Any], table: str) -> bool:
    query = "select has_table_privilege('jobengine_app', %s, 'select')"
    return await (await connection.execute(query, (f"jobengine.{table}",))).fetchone() == (True,)


async def test_every_table_of_tenants_is_under_row_level_security(owner: Connection, tables: list[str]) -> None:
    """Also for its owner, and every key begins with the tenant."""
    query = """select relname, relrowsecurity and relforcerowsecurity as safe from pg_class
        where relname = any(%s) and relkind in ('r', 'p')"""
    secured = {row["relname"]: row["safe"] for row in await (await owner.execute(query, (tables,))).fetchall()}
    keys = """select c.relname, a.attname from pg_index i join pg_class c on c.oid = i.indrelid
        join pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[0]
        where i.indisprimary and c.relname = any(%s)"""
    first_columns = {row["relname"]: row["attname"] for row in await (await owner.execute(keys, (tables,))).fetchall()}

    assert secured == dict.fromkeys(tables, True)
    assert first_columns == dict.fromkeys(tables, "tenant_id")


async def test_a_view_shows_nobody_more_than_its_tables_do(owner: Connection) -> None:
    """A view without ``security_invoker`` would look through the eyes of its owner."""
    query = """select relname from pg_class where relnamespace = 'jobengine'::regnamespace and relkind = 'v'
        and not coalesce(reloptions, '{}') @> array['security_invoker=true']"""
    assert await (await owner.execute(query)).fetchall() == []


async def test_the_policy_changes_in_the_platforms_name_alone(days: Days, plane: Plane, owner: Connection) -> None:
    """A transaction of a tenant may read it and cannot write it."""
    before = await (await owner.execute("select * from policy")).fetchall()
    async with plane.database.transaction(days.first) as tx:
        assert await tx.one("get_policy")
        assert await tx.find("lock_policy") is None
        assert await tx.find("set_policy", document=None) is None

    assert await (await owner.execute("select * from policy")).fetchall() == before


def test_the_system_queries_are_a_closed_list() -> None:
    """A query that may look at every tenant is written down here, by whoever adds it."""
    assert {name for name in QUERIES if name.startswith("system_")} == SYSTEM_QUERIES
