"""The embedded server lives, dies and comes back: real processes and real kills."""

import asyncio
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from tests.storage.embedded_users import Process, mode, run, scratch, server_of, start_and_stop, user

from jobengine.storage import embedded
from jobengine.storage.embedded import EmbeddedPostgres, EmbeddedPostgresError


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    with scratch("data") as folder:
        asyncio.run(start_and_stop(folder))
        yield folder


@pytest.fixture
def data_dir(made: Path) -> Iterator[Path]:
    """A database that every test leaves as it found it, and at rest: making one for each would take the most time."""
    assert server_of(made) is None
    yield made
    assert server_of(made) is None, "the test has left a server behind"


@contextmanager
def without(path: Path) -> Iterator[Path]:
    """The database lacks a file."""
    aside = path.rename(path.with_suffix(".aside"))
    try:
        yield path
    finally:
        aside.replace(path)


async def eventually(conninfo: str, statement: str) -> object:
    """What a client that tries again sees, and within five seconds."""
    deadline = time.monotonic() + 5
    while True:
        try:
            return await run(conninfo, statement)
        except psycopg.OperationalError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)


async def test_data_survives_a_stop_and_a_start() -> None:
    """A new folder below one that others cannot enter becomes a database that keeps what was committed."""
    with scratch("new/data") as data_dir:
        # What the killed making of a database has left is cleared away.
        (data_dir / "pg.new-abandoned" / "pg").mkdir(parents=True)
        data_dir.chmod(0o700)
        async with EmbeddedPostgres(data_dir) as conninfo:
            await run(conninfo, "CREATE TABLE IF NOT EXISTS kept AS SELECT 42 AS number")
        assert server_of(data_dir) is None

        async with EmbeddedPostgres(data_dir) as conninfo:
            assert await run(conninfo, "SELECT number FROM kept") == 42
        assert mode(data_dir) == mode(data_dir.parent.parent) == 0o700
        assert [path.name for path in data_dir.glob("pg.new-*")] == []


async def test_settings_are_durable_utf8_and_utc(data_dir: Path) -> None:
    """What acknowledged means rests on these settings."""
    expected = {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "data_checksums": "on",
        "server_encoding": "UTF8",
        "TimeZone": "UTC",
        "jit": "off",
        "listen_addresses": "",
    }
    async with EmbeddedPostgres(data_dir) as conninfo:
        found = {name: await run(conninfo, f"SELECT current_setting('{name}')") for name in expected}
        assert await run(conninfo, "SELECT current_database() || '/' || current_user") == "jobengine/jobengine"

    assert found == expected


async def test_first_of_two_users_to_leave_leaves_the_server_to_the_second(data_dir: Path) -> None:
    """Only the last user to leave stops the server, in one process or in two."""
    first, second = EmbeddedPostgres(data_dir), EmbeddedPostgres(data_dir)
    conninfo = await first.start()
    assert await second.start() == conninfo
    async with user(data_dir) as third:
        assert await third.says() == conninfo
        server = server_of(data_dir)

        await first.stop()
        await second.stop()
        assert server_of(data_dir) == server
        assert await run(conninfo, "SELECT 1") == 1

    assert server_of(data_dir) is None


async def test_start_and_stop_may_be_repeated(data_dir: Path) -> None:
    """A second start gives the same answer, a second stop does nothing, and one may start again after it."""
    server = EmbeddedPostgres(data_dir)
    assert await server.start() == await server.start()

    await server.stop()
    await server.stop()
    async with server as conninfo:
        assert await run(conninfo, "SELECT 1") == 1


async def test_processes_that_start_at_once_share_one_server() -> None:
    """Of two that find nothing at all, one makes the database and both use it."""
    with scratch("data") as data_dir:
        async with user(data_dir) as first, user(data_dir) as second:
            conninfos = {await first.says(), await second.says()}
            assert len(conninfos) == 1
            assert await run(conninfos.pop(), "SELECT 1") == 1
        assert server_of(data_dir) is None


async def test_next_user_takes_over_the_server_of_a_killed_one(data_dir: Path) -> None:
    """A killed user frees its seat, its server serves the next one and ends with it."""
    process = Process(data_dir)
    conninfo = await process.says()
    server = server_of(data_dir)
    process.kill()
    assert server_of(data_dir) == server

    async with EmbeddedPostgres(data_dir) as same:
        assert same == conninfo
        assert server_of(data_dir) == server
    assert server_of(data_dir) is None


async def test_killed_server_is_restarted_with_what_was_committed(data_dir: Path) -> None:
    """Both users notice, one restarts, the conninfo stays good, and a child that still computes does not hinder."""
    async with EmbeddedPostgres(data_dir) as conninfo, user(data_dir) as other:
        await other.says()
        await run(conninfo, "CREATE TABLE IF NOT EXISTS kept AS SELECT 42 AS number")
        busy = asyncio.create_task(run(conninfo, "SELECT count(*) FROM generate_series(1, 1000000000000)"))
        await asyncio.sleep(0.05)
        server = server_of(data_dir)
        assert server

        os.kill(server, signal.SIGKILL)
        assert await eventually(conninfo, "SELECT number FROM kept") == 42
        with pytest.raises(psycopg.OperationalError):
            await busy
        assert server_of(data_dir) not in {None, server}


async def test_server_whose_child_was_killed_recovers_by_itself(data_dir: Path) -> None:
    """PostgreSQL drops all connections then; the watcher waits for it and starts no second server."""
    async with EmbeddedPostgres(data_dir) as conninfo:
        server = server_of(data_dir)
        with pytest.raises(psycopg.OperationalError):
            await run(conninfo, "COPY (SELECT 1) TO PROGRAM 'kill -9 $PPID'")

        assert await eventually(conninfo, "SELECT 1") == 1
        assert server_of(data_dir) == server


async def test_stale_process_id_of_a_living_stranger_is_not_believed(data_dir: Path) -> None:
    """After a crash of the machine the number in postmaster.pid may be anybody's."""
    with stranger() as pid:
        pid_file = f"{pid}\n{data_dir / 'pg'}\n1700000000\n5432\n{data_dir / 'run'}\n\n12345 67890\nready\n"
        (data_dir / "pg" / "postmaster.pid").write_text(pid_file)
        (data_dir / "run" / ".s.PGSQL.5432.lock").write_text(pid_file)
        (data_dir / "run" / ".s.PGSQL.5432").touch()

        async with EmbeddedPostgres(data_dir) as conninfo:
            assert await run(conninfo, "SELECT 1") == 1
        os.kill(pid, 0)


async def test_left_server_without_a_socket_is_replaced(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server nobody can reach would otherwise keep the data from everybody."""
    monkeypatch.setattr(embedded, "SILENT_SECONDS", 0.1)
    process = Process(data_dir)
    await process.says()
    process.kill()
    server = server_of(data_dir)
    (data_dir / "run" / ".s.PGSQL.5432").unlink()

    async with EmbeddedPostgres(data_dir) as conninfo:
        assert await run(conninfo, "SELECT 1") == 1
        assert server_of(data_dir) not in {None, server}


@contextmanager
def stranger() -> Iterator[int]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


async def test_second_server_is_not_started_beside_the_rest_of_a_first(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of an earlier server may live where it cannot be seen, in another container say."""
    monkeypatch.setattr(embedded, "START_SECONDS", 0.2)
    with (data_dir / "pg.alive").open() as rest:
        fcntl.flock(rest, fcntl.LOCK_SH)

        with pytest.raises(EmbeddedPostgresError, match=r"did not answer within .* end what still uses"):
            await EmbeddedPostgres(data_dir).start()


async def test_data_of_another_major_version_is_refused(data_dir: Path) -> None:
    """The error names both versions and the way out."""
    with without(data_dir / "pg" / "PG_VERSION") as version:
        version.write_text("16\n")

        with pytest.raises(EmbeddedPostgresError, match=r"is of PostgreSQL 16, and this program runs 18\. Dump"):
            await EmbeddedPostgres(data_dir).start()


async def test_server_that_cannot_start_says_why(data_dir: Path) -> None:
    """The last words of its log stand in the error, and that takes no 60 seconds."""
    begin = time.monotonic()
    with (
        without(data_dir / "pg" / "global" / "pg_control"),
        pytest.raises(EmbeddedPostgresError, match=r"control file|pg_control"),
    ):
        await EmbeddedPostgres(data_dir).start()

    assert time.monotonic() - begin < 10


async def test_lost_password_is_named_in_the_error(data_dir: Path) -> None:
    """Nothing is guessed when the password file is gone."""
    with (
        without(data_dir / "pg" / "owner.password"),
        pytest.raises(EmbeddedPostgresError, match=r"owner\.password is lost"),
    ):
        await EmbeddedPostgres(data_dir).start()


async def test_data_dir_that_is_a_file_is_named() -> None:
    """An error of the file system names the path and is no stack trace of ours."""
    with scratch("data") as data_dir:
        data_dir.touch()

        with pytest.raises(EmbeddedPostgresError, match="data"):
            await EmbeddedPostgres(data_dir).start()


@pytest.mark.parametrize("seconds", [0.0, 0.03, 0.1, 0.2])
async def test_cancelled_start_leaves_nothing_behind(data_dir: Path, seconds: float) -> None:
    """Wherever it is cut short, the next one starts as if it had never been."""
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(never_ready(data_dir), timeout=seconds)

    assert server_of(data_dir) is None
    async with EmbeddedPostgres(data_dir) as conninfo:
        assert await run(conninfo, "SELECT 1") == 1


async def never_ready(data_dir: Path) -> None:
    async with EmbeddedPostgres(data_dir):
        await asyncio.Event().wait()


async def test_log_is_bounded_by_a_start(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One older log is kept, and both are the owner's alone."""
    monkeypatch.setattr(embedded, "LOG_BYTES", 10)
    log, older = data_dir / "postgres.log", data_dir / "postgres.log.1"
    log.write_text("an old and very long log\n")

    await start_and_stop(data_dir)
    assert older.read_text() == "an old and very long log\n"
    assert "an old" not in log.read_text()
    assert mode(log) == mode(older) == 0o600
