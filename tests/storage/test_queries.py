"""Every named query is one that PostgreSQL understands and its role may run."""

import re
from collections.abc import AsyncIterator

import psycopg
import pytest
from tests.factories import Connection

from jobengine.storage.queries import QUERIES


@pytest.fixture(scope="module")
async def roles(database_url: str, owner: Connection) -> AsyncIterator[dict[str, psycopg.AsyncConnection]]:
    """A connection in each role."""
    found: dict[str, psycopg.AsyncConnection] = {}
    for role in ("jobengine_app", "jobengine_system"):
        options = f"-c search_path=jobengine -c role={role} -c jobengine.tenant=t-nobody"
        found[role] = await psycopg.AsyncConnection.connect(database_url, autocommit=True, options=options)
    assert owner
    yield found
    for connection in found.values():
        await connection.close()


@pytest.mark.parametrize("query", QUERIES)
async def test_a_named_query_can_be_explained_in_its_role(
    roles: dict[str, psycopg.AsyncConnection], query: str
) -> None:
    """Tables, columns, types and grants are there; its parameters have types without a value."""
    role = "jobengine_system" if query.startswith("system_") else "jobengine_app"
    names = {name.decode(): None for name in re.findall(rb"%\((\w+)\)s", QUERIES[query])}

    plan = await (await roles[role].execute(b"explain " + QUERIES[query], names)).fetchall()

    assert plan


@pytest.mark.parametrize("text", ["select nothing from quotas", "select 1 from clients", "truncate audit_entries"])
async def test_a_broken_query_can_not_be_explained(roles: dict[str, psycopg.AsyncConnection], text: str) -> None:
    """The test above can fail: for a column that is not there, and for a table that is not the role's."""
    with pytest.raises(psycopg.Error):
        await roles["jobengine_app"].execute(b"explain " + text.encode())
