"""Whom the embedded server runs as, and who can reach it: real accounts, and a kernel that says no."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from tests.storage.embedded_users import mode, moved, run, scratch, server_of, start_and_stop, user

from jobengine.storage import embedded_launch, embedded_process
from jobengine.storage.embedded import EmbeddedPostgres, EmbeddedPostgresError

IS_ROOT = os.geteuid() == 0
STRANGER = 65534
MAY_PASS = 1 << embedded_launch.CAP_DAC_OVERRIDE

# A seccomp filter as in a container's default profile: unshare(CLONE_NEWUSER) is EPERM.
FORBID_NAMESPACES = """
import ctypes, platform, struct
number = {"x86_64": 272, "aarch64": 97}[platform.machine()]
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
program = struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code))
assert libc.prctl(22, 2, ctypes.create_string_buffer(program), 0, 0) == 0
"""

# Nor the one right of root that would let another account pass closed folders.
FORBID_REACH = (
    FORBID_NAMESPACES
    + """
import os, sys
if os.geteuid() == 0 and "again" not in sys.argv:
    assert libc.prctl(24, 1, 0, 0, 0) == 0
    os.execv(sys.executable, [*sys.orig_argv, "again"])
"""
)

# A stranger knocks at the socket; the interpreter is loaded before it becomes one.
KNOCK = """
import errno, os, socket, sys
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    socket.socket(socket.AF_UNIX).connect(sys.argv[1])
    print("connected")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


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


async def test_nobody_else_on_the_machine_can_reach_the_server(data_dir: Path) -> None:
    """No TCP, a socket in a folder of the owner alone, and a password on top."""
    async with EmbeddedPostgres(data_dir) as conninfo:
        socket = data_dir / "run" / ".s.PGSQL.5432"
        assert [mode(path) for path in (socket.parent, socket, data_dir / "pg")] == [0o700, 0o700, 0o700]
        assert mode(data_dir / "pg" / "owner.password") == 0o600
        log = (data_dir / "postgres.log").read_text()
        assert "listening on Unix socket" in log
        assert "listening on IPv" not in log
        with pytest.raises(psycopg.OperationalError, match="password"):
            await run(f"host={socket.parent} user=jobengine dbname=jobengine password=guess", "SELECT 1")
        assert await run(conninfo, "SELECT 1") == 1

        # Not even when everything above the folder is open to all.
        with opened(data_dir):
            assert knock(socket) == ("EACCES" if IS_ROOT else "connected")


@contextmanager
def opened(data_dir: Path) -> Iterator[None]:
    for folder in (data_dir.parent, data_dir):
        folder.chmod(0o755)
    yield
    for folder in (data_dir.parent, data_dir):
        folder.chmod(0o700)


def knock(socket: Path) -> str:
    done = subprocess.run([sys.executable, "-c", KNOCK, str(socket)], check=True, capture_output=True, text=True)
    return done.stdout.strip()


LONG = "/".join(["long" * 20] * 3)


async def test_folder_with_a_very_long_path_is_served(data_dir: Path) -> None:
    """A socket's path may have 107 bytes; the short folder is the owner's alone and goes with the server."""
    with moved(data_dir, LONG) as far:
        async with EmbeddedPostgres(far) as conninfo:
            folder = Path(conninfo_to_dict(conninfo)["host"])
            assert not folder.is_relative_to(far)
            assert mode(folder) == 0o700
            assert await run(conninfo, "SELECT 1") == 1

        assert server_of(far) is None
        assert knock(folder) == "ENOENT"


async def test_path_of_odd_characters_is_served(data_dir: Path) -> None:
    """A comma in a socket's path would mean two hosts to a client."""
    with moved(data_dir, 'it\'s, "odd" =é') as odd:
        async with EmbeddedPostgres(odd) as conninfo:
            assert await run(conninfo, "SELECT 1") == 1


async def test_planted_socket_folder_is_refused(data_dir: Path) -> None:
    """A folder that others can write to, or a link, would let them play the server."""
    with moved(data_dir, LONG) as far:
        folder = embedded_process.socket_folder(far)
        folder.chmod(0o777)
        with pytest.raises(EmbeddedPostgresError, match="not a folder of the server's user alone"):
            await EmbeddedPostgres(far).start()

        folder.rmdir()
        folder.symlink_to(far)
        with pytest.raises(EmbeddedPostgresError, match="not a folder of the server's user alone"):
            await EmbeddedPostgres(far).start()
        folder.unlink()


async def test_user_other_than_root_runs_the_server_as_itself(data_dir: Path) -> None:
    """Nothing but the user's own rights is needed."""
    run_as = embedded_process.choose_run_as(data_dir / "pg")
    launch = (sys.executable, embedded_launch.__file__, run_as.kind, str(run_as.uid), str(run_as.gid), "stay", "/")
    run_as.give_tree(data_dir / "pg")
    async with user(data_dir, prefix=launch) as process:
        assert await run(await process.says(), "SELECT 1") == 1


async def test_root_leaves_the_files_of_another_owner_to_that_owner() -> None:
    """A command run by root in a service's folder must not lock the service out."""
    with scratch("data") as data_dir:
        data_dir.mkdir(0o700)
        owner = STRANGER if IS_ROOT else os.geteuid()
        os.chown(data_dir, owner, -1)
        async with user(data_dir) as process:
            assert await run(await process.says(), "SELECT 1") == 1
            assert {path.stat().st_uid for path in (*data_dir.iterdir(), *data_dir.rglob("base"))} == {owner}


async def test_root_without_namespaces_uses_an_account_that_reaches_closed_folders() -> None:
    """As in a container: the account gets the database, and every folder above stays closed."""
    with scratch("data") as data_dir:
        async with user(data_dir, before=FORBID_NAMESPACES) as process:
            assert await run(await process.says(), "SELECT 1") == 1
            assert ((data_dir / "pg").stat().st_uid == os.geteuid()) != IS_ROOT
            assert data_dir.stat().st_uid == data_dir.parent.stat().st_uid == os.geteuid()
            assert mode(data_dir) == mode(data_dir.parent) == 0o700
            assert rights_of(data_dir) == (MAY_PASS if IS_ROOT else 0)


def rights_of(data_dir: Path) -> int:
    """Return the effective capabilities of the server, one bit each."""
    status = Path(f"/proc/{server_of(data_dir)}/status").read_text()
    return next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))


async def test_server_of_root_has_no_right_of_root_it_can_do_without(data_dir: Path) -> None:
    """None in a namespace; where there is none, at most the one to pass closed folders."""
    kind = embedded_process.choose_run_as(data_dir / "pg").kind
    async with EmbeddedPostgres(data_dir):
        assert rights_of(data_dir) == (MAY_PASS if kind == "reaching" else 0)


async def test_root_without_any_way_is_told_what_to_do(data_dir: Path) -> None:
    """A database that no account can reach is an error, and everything stays root's own."""
    folders = (data_dir.parent, data_dir, data_dir / "pg", data_dir / "pg" / "base")
    before = {path: path.stat()[:6] for path in folders}
    async with user(data_dir, before=FORBID_REACH) as process:
        said = await process.says()

    assert (said.startswith("refused:") and "Run as" in said) == IS_ROOT
    assert {path: path.stat()[:6] for path in folders} == before
