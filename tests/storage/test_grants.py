"""Who may touch what: two roles that own nothing, and hold exactly what their work needs."""

from collections.abc import AsyncIterator

import psycopg
import pytest
from tests.factories import Connection

APP, SYSTEM = "jobengine_app", "jobengine_system"
READ, ADD, CHANGE, TAKE = "SELECT", "INSERT", "UPDATE", "DELETE"

# What test_audit_rights.py says of the log is not said again.
GRANTS = {
    "alembic_version": {SYSTEM: {READ}},
    "installation": {SYSTEM: {READ, ADD, CHANGE}},
    "tenants": {APP: {READ}, SYSTEM: {READ, ADD}},
    "clients": {SYSTEM: {READ, ADD, CHANGE}},
    "signing_keys": {SYSTEM: {READ, ADD, CHANGE}},
    "policy": {APP: {READ, CHANGE}, SYSTEM: {READ, ADD}},
    "revoked_tokens": {APP: {READ, ADD}, SYSTEM: {READ, TAKE}},
    "quotas": {APP: {READ, ADD, CHANGE}, SYSTEM: {READ}},
    "quota_history": {APP: {READ, ADD}},
    "quota_overrides": {APP: {READ, ADD, CHANGE}, SYSTEM: {READ}},
    "allocations": {APP: {READ, ADD, CHANGE, TAKE}},
    "allocation_members": {APP: {READ, ADD, CHANGE, TAKE}},
    "allocation_steps": {APP: {READ, ADD, CHANGE, TAKE}},
    "allocation_marks": {APP: {READ, ADD, CHANGE}},
    "quota_changes": {APP: {READ, ADD, CHANGE}, SYSTEM: {READ}},
    "asks": {APP: {READ, ADD}},
    "asks_00": {SYSTEM: {"TRUNCATE"}},
    "admission_accounts": {APP: {READ, ADD, CHANGE}},
    "admission_grants": {APP: {READ, ADD, CHANGE, TAKE}, SYSTEM: {READ}},
    "policy_history": {APP: {READ, ADD}},
    "admission_denials": {APP: {READ, ADD, CHANGE}, SYSTEM: {READ, TAKE}},
    "leases": {APP: {READ, ADD, CHANGE}, SYSTEM: {READ, TAKE}},
    "batch_wakeups": {SYSTEM: {READ, ADD, CHANGE, TAKE}},
    "relay_turn": {SYSTEM: {READ, CHANGE}},
    "idempotency_keys": {APP: {READ, ADD, CHANGE, TAKE}, SYSTEM: {READ, TAKE}},
}
REFUSED = [
    (APP, "select secret_hash from clients"),
    (APP, "select sealed_private from signing_keys"),
    (APP, "select issuer from installation"),
    (APP, "insert into tenants values ('mine')"),
    (APP, "delete from quotas"),
    (APP, "delete from leases"),
    (APP, "update quota_history set version = 1"),
    (APP, "delete from quota_history"),
    (APP, "truncate quotas"),
    (APP, "truncate asks"),
    (APP, "delete from asks"),
    (APP, "create table mine ()"),
    (APP, "alter table quotas disable row level security"),
    (APP, "set role jobengine_system"),
    (SYSTEM, "update quotas set paused = true"),
    (SYSTEM, "select 1 from quota_history"),
    (SYSTEM, "select 1 from admission_accounts"),
    (SYSTEM, "select leaf from audit_entries"),
    (SYSTEM, "select 1 from audit_texts"),
    (SYSTEM, "update leases set slots = 0"),
    (SYSTEM, "update policy set version = 0"),
    (SYSTEM, "delete from clients"),
    (SYSTEM, "truncate leases"),
    (SYSTEM, "truncate asks"),
    (SYSTEM, "select 1 from asks"),
    (SYSTEM, "set role jobengine_app"),
]


@pytest.fixture(scope="module")
async def roles(database_url: str, owner: Connection) -> AsyncIterator[dict[str, psycopg.AsyncConnection]]:
    """Connections that can be nothing but one role: the session's own user is it."""
    assert owner
    found: dict[str, psycopg.AsyncConnection] = {}
    for role in (APP, SYSTEM):
        connection = await psycopg.AsyncConnection.connect(
            database_url, autocommit=True, options="-c search_path=jobengine"
        )
        await connection.execute(f"set session authorization {role}".encode())
        found[role] = connection
    yield found
    for connection in found.values():
        await connection.close()


@pytest.mark.parametrize("table", GRANTS)
async def test_the_grants_on_a_table_are_those_and_no_more(owner: Connection, table: str) -> None:
    """As PostgreSQL itself lists them; nothing is granted to everybody."""
    query = """select grantee, privilege_type from information_schema.role_table_grants
        where table_schema = 'jobengine' and table_name = %s and grantee = any(%s)"""
    held: dict[str, set[str]] = {}
    for row in await (await owner.execute(query, (table, [APP, SYSTEM, "PUBLIC"]))).fetchall():
        held.setdefault(row["grantee"], set()).add(row["privilege_type"])

    assert held == GRANTS[table]


@pytest.mark.parametrize(("role", "statement"), REFUSED)
async def test_what_a_role_need_not_do_it_can_not_do(
    roles: dict[str, psycopg.AsyncConnection], role: str, statement: str
) -> None:
    """Tried, not only listed."""
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await roles[role].execute(statement.encode())


async def test_the_roles_are_small(owner: Connection) -> None:
    """Neither can log in, create, pass row-level security, or own anything."""
    query = """select rolname,
        rolsuper or rolcanlogin or rolcreatedb or rolcreaterole or rolbypassrls or rolreplication as big,
        exists (select from pg_class where relowner = r.oid) as owns
        from pg_roles r where rolname = any(%s) order by rolname"""

    assert await (await owner.execute(query, ([APP, SYSTEM],))).fetchall() == [
        {"rolname": role, "big": False, "owns": False} for role in (APP, SYSTEM)
    ]


async def test_no_function_runs_with_the_owners_rights(owner: Connection) -> None:
    """There is no way around the grants."""
    query = """select p.proname from pg_proc p join pg_namespace n on n.oid = p.pronamespace
        where n.nspname = 'jobengine' and p.prosecdef"""

    assert await (await owner.execute(query)).fetchall() == []
