"""Users of an embedded server in processes of their own, and what the tests of that server need besides."""

import asyncio
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import psycopg

from jobengine.storage import embedded, embedded_process
from jobengine.storage.embedded import EmbeddedPostgres

SOURCE = Path(embedded.__file__).parents[2]

USER = """
import asyncio, sys
from pathlib import Path
from jobengine.storage.embedded import EmbeddedPostgres, EmbeddedPostgresError

async def main():
    try:
        async with EmbeddedPostgres(Path(sys.argv[1])) as conninfo:
            print(conninfo, flush=True)
            await asyncio.to_thread(sys.stdin.read)
    except EmbeddedPostgresError as error:
        print("refused:", error, flush=True)

asyncio.run(main())
"""


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="embedded-", ignore_cleanup_errors=True) as folder:
        yield Path(folder, name)


@contextmanager
def moved(data_dir: Path, name: str) -> Iterator[Path]:
    """The same database in another place."""
    with scratch(name) as elsewhere:
        elsewhere.parent.mkdir(parents=True, exist_ok=True)
        data_dir.rename(elsewhere)
        try:
            yield elsewhere
        finally:
            elsewhere.rename(data_dir)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


async def start_and_stop(data_dir: Path) -> None:
    async with EmbeddedPostgres(data_dir):
        pass


def server_of(data_dir: Path) -> int | None:
    return embedded_process.find_server(data_dir / "pg")


async def run(conninfo: str, statement: str) -> object:
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        cursor = await connection.execute(statement.encode())
        row = await cursor.fetchone() if cursor.description else None
        return row[0] if row else None


class Process:
    """A user of the server in a process of its own."""

    def __init__(self, data_dir: Path, *, before: str = "", prefix: tuple[str, ...] = ()) -> None:
        self.popen = subprocess.Popen(
            [*prefix, sys.executable, "-c", before + USER, str(data_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])},
        )

    async def says(self) -> str:
        assert self.popen.stdout
        return (await asyncio.to_thread(self.popen.stdout.readline)).strip()

    async def leave(self) -> None:
        """End in good order."""
        await asyncio.to_thread(self.popen.communicate)
        assert self.popen.returncode == 0

    def kill(self) -> None:
        self.popen.kill()
        self.popen.communicate()


@asynccontextmanager
async def user(data_dir: Path, *, before: str = "", prefix: tuple[str, ...] = ()) -> AsyncIterator[Process]:
    process = Process(data_dir, before=before, prefix=prefix)
    try:
        yield process
    finally:
        if process.popen.returncode is None:
            await process.leave()
