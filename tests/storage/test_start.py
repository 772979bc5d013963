"""Starting on a database: migrations, the master key, and what is fixed at the first start."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from stat import S_IMODE

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from tests.conftest import MakeDatabase

from jobengine.authority.master_key import MasterKey
from jobengine.bootstrap import open_plane, read_master_key
from jobengine.errors import Unavailable
from jobengine.settings import Settings, SettingsError
from jobengine.storage.database import Database
from jobengine.storage.migrator import migrate

CATALOGUE = """
    select table_name, column_name, data_type, is_nullable, column_default, ordinal_position
    from information_schema.columns where table_schema = 'jobengine'
    union all
    select tablename, policyname, cmd, qual, with_check, 0 from pg_policies where schemaname = 'jobengine'
    union all
    select tablename, indexname, indexdef, null, null, 0 from pg_indexes where schemaname = 'jobengine'
    order by 1, 2, 3
"""


async def catalogue(conninfo: str) -> list[tuple[object, ...]]:
    async with await psycopg.AsyncConnection.connect(conninfo) as connection:
        return await (await connection.execute(CATALOGUE)).fetchall()


@pytest.fixture
async def database(migrated_database: MakeDatabase) -> str:
    """A database of its own, migrated and never started on."""
    return await migrated_database()


@pytest.fixture
def wanted(database: str, tmp_path: Path) -> Settings:
    """Settings of a first start."""
    return Settings(data_dir=tmp_path, database_url=database)


async def test_migrating_again_changes_nothing(database: str) -> None:
    """A release starts as often as it likes."""
    before = await catalogue(database)

    await asyncio.to_thread(migrate, database, database)

    assert await catalogue(database) == before
    assert len(before) > 100


async def test_two_migrations_at_once_wait_for_each_other(empty_database: MakeDatabase, database: str) -> None:
    """Every process migrates at its start, and together they make what one alone makes."""
    conninfo = await empty_database()

    await asyncio.gather(*[asyncio.to_thread(migrate, conninfo, conninfo) for _ in range(3)])

    assert await catalogue(conninfo) == await catalogue(database)


async def test_a_migration_that_waits_goes_on_when_the_lock_is_free(empty_database: MakeDatabase) -> None:
    """The lock is a session's: whoever dies with it leaves it."""
    conninfo = await empty_database()
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as other:
        await other.execute("select pg_advisory_lock(%s)", (0x6A6F62656E67,))
        migration = asyncio.create_task(asyncio.to_thread(migrate, conninfo, conninfo))
        done, _ = await asyncio.wait({migration}, timeout=0.3)
        assert not done
    await migration

    assert await catalogue(conninfo)


@pytest.fixture
async def login(server: str) -> AsyncIterator[str]:
    """A user without any right of its own."""
    async with await psycopg.AsyncConnection.connect(server, autocommit=True) as connection:
        name = f"jobengine_test_{token_hex(4)}"
        await connection.execute(f"create role {name} login password 'made-up'".encode())
        yield name
        await connection.execute(f"drop role {name}".encode())


async def test_a_login_without_rights_serves_what_the_owner_migrated(empty_database: MakeDatabase, login: str) -> None:
    """The service's own user becomes a member of the two roles, and needs no more."""
    owner = await empty_database()
    await asyncio.to_thread(migrate, owner, make_conninfo(owner, user=login, password="made-up"))

    async with await psycopg.AsyncConnection.connect(owner, autocommit=True) as connection:
        await connection.execute(f"set session authorization {login}".encode())
        await connection.execute("set role jobengine_app")
        await connection.execute("select 1 from jobengine.quotas")
        await connection.execute("set role jobengine_system")
        await connection.execute("select 1 from jobengine.clients")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute("create table jobengine.mine ()")


async def test_the_first_start_makes_a_master_key_for_the_owner_alone(wanted: Settings) -> None:
    """Mode 0600, in the data folder unless a setting names another place."""
    async with open_plane(wanted, serving=True):
        assert S_IMODE((wanted.data_dir / "master.key").stat().st_mode) == 0o600

    elsewhere = replace(wanted, master_key_file=wanted.data_dir / "keys" / "other.key")
    with pytest.raises(SettingsError, match="is not the master key of this database"):
        async with open_plane(elsewhere):
            pass


async def test_a_wrong_master_key_stops_the_start(wanted: Settings) -> None:
    """Nothing was changed by the attempt: the right one starts again."""
    async with open_plane(wanted, serving=True) as plane:
        kids = [key.kid for key in plane.keys]
    right = wanted.master_key_path.read_bytes()
    wanted.master_key_path.write_bytes(MasterKey.generate().to_file())

    with pytest.raises(SettingsError, match="is not the master key of this database"):
        async with open_plane(wanted, serving=True):
            pass

    wanted.master_key_path.write_bytes(right)
    async with open_plane(wanted, serving=True) as plane:
        assert [key.kid for key in plane.keys] == kids


@pytest.mark.parametrize("content", [b"", b"short", b"\0" * 100])
def test_a_broken_master_key_file_is_named(tmp_path: Path, content: bytes) -> None:
    """The message names the setting and the file, and nothing of what is in it."""
    (tmp_path / "master.key").write_bytes(content)

    with pytest.raises(SettingsError, match=r"JOBENGINE_MASTER_KEY_FILE .*master\.key"):
        read_master_key(tmp_path / "master.key")


def test_many_first_starts_at_once_share_one_master_key(tmp_path: Path) -> None:
    """Whoever comes second reads what the first one wrote, never half of it."""
    path = tmp_path / "deep" / "master.key"

    keys = {read_master_key(path).to_file() for _ in range(5)}

    assert keys == {path.read_bytes()}
    assert [file.name for file in path.parent.iterdir()] == ["master.key"]


async def test_the_issuer_is_fixed_by_the_first_server(wanted: Settings) -> None:
    """A command before it fixes nothing; afterwards another issuer stops the start, and none means the stored one."""
    async with open_plane(replace(wanted, port=9_999)) as plane:
        assert plane.realm.issuer == "http://127.0.0.1:9999"
    async with open_plane(replace(wanted, issuer="https://jobs.example"), serving=True) as plane:
        assert plane.realm.issuer == "https://jobs.example"
    async with open_plane(replace(wanted, port=1), serving=True) as plane:
        assert plane.realm.issuer == "https://jobs.example"

    for serving in (True, False):
        with pytest.raises(SettingsError, match=r"https://jobs\.example"):
            async with open_plane(replace(wanted, issuer="https://other.example"), serving=serving):
                pass


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "jobs.example"])  # noqa: S104 - the case in question
async def test_a_server_for_others_must_be_told_its_issuer(wanted: Settings, host: str) -> None:
    """Its own guess would be an address that nobody else can reach."""
    with pytest.raises(SettingsError, match="JOBENGINE_ISSUER"):
        async with open_plane(replace(wanted, host=host), serving=True):
            pass


async def test_a_database_that_is_not_there_is_unavailable(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, without the password."""
    monkeypatch.setattr("jobengine.storage.database.CONNECT_SECONDS", 0.2)
    missing = Database(make_conninfo(database, dbname="nowhere", password="made-up"))
    try:
        with pytest.raises(Unavailable) as caught:
            await missing.open()
    finally:
        await missing.close()

    assert "made-up" not in str(caught.value)
