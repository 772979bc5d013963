"""Upgrades: the last release on a newer schema, and a server whose login owns nothing."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from secrets import token_hex

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from tests.conftest import MakeDatabase
from tests.factories import BASE_URL, new_tenant

from jobengine.bootstrap import open_plane
from jobengine.settings import Settings
from jobengine.storage.migrator import migrate


@pytest.fixture
async def login(server: str) -> AsyncIterator[str]:
    """A login of the cluster that owns nothing."""
    name = f"login_{token_hex(6)}"
    async with await psycopg.AsyncConnection.connect(server, autocommit=True) as connection:
        made = sql.SQL("create role {} login password 'made-up'").format(sql.Identifier(name))
        await connection.execute(made)
        yield name
        await connection.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


async def test_a_server_whose_login_owns_nothing_starts_on_a_migrated_schema(
    empty_database: MakeDatabase, login: str, tmp_path: Path
) -> None:
    """Only `jobengine migrate` needs the owner's password."""
    owner = await empty_database()
    own = make_conninfo(owner, user=login, password="made-up")
    await asyncio.to_thread(migrate, owner, own)

    async with open_plane(Settings(data_dir=tmp_path, database_url=own, issuer=BASE_URL), serving=True) as plane:
        assert await new_tenant(plane)


async def test_a_login_that_owns_nothing_cannot_make_the_schema(empty_database: MakeDatabase, login: str) -> None:
    """A server that is newer than its schema says so instead of serving."""
    own = make_conninfo(await empty_database(), user=login, password="made-up")

    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await asyncio.to_thread(migrate, own, own)


async def test_the_last_release_starts_on_a_newer_schema(migrated_database: MakeDatabase, tmp_path: Path) -> None:
    """A server that restarts in the middle of an upgrade, or after a step back, leaves the schema as it is."""
    conninfo = await migrated_database()
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        await connection.execute("update jobengine.alembic_version set version_num = '9999'")

        async with open_plane(
            Settings(data_dir=tmp_path, database_url=conninfo, issuer=BASE_URL), serving=True
        ) as plane:
            assert await new_tenant(plane)

        found = await (await connection.execute("select version_num from jobengine.alembic_version")).fetchone()
    assert found == ("9999",)
