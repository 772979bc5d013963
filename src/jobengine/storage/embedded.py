"""PostgreSQL as a part of this program: one private server per data folder, shared by every process that uses it.

The server lives in a session of its own. Three flocks say who may do what, and the kernel frees them however a process
ends: each user of the server shares ``pg.users``; who starts or stops it holds ``pg.lock`` alone; the server and all
its children keep ``pg.alive``. The last user to leave stops the server; one whose users were killed serves the next.
"""

import asyncio
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import TypeVar

import psycopg
from psycopg import conninfo, pq

from jobengine.storage import embedded_process as process
from jobengine.storage.embedded_process import EmbeddedPostgresError

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError"]

START_SECONDS = 60
STOP_SECONDS = 60
# Whoever holds a lock may use up the time of a start or of a stop, but hardly of both.
LOCK_SECONDS = 90
POLL_SECONDS = 0.02
# A server may be killed while it starts; one that fails by itself does so every time.
ATTEMPTS = 3
LOG_BYTES = 8 * 1024 * 1024
LOG_CHECK_SECONDS = 60
# A server without its socket for so long has lost it: nobody can reach it any more.
SILENT_SECONDS = 5

_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)


class EmbeddedPostgres:
    """One user of the server of *data_dir*; any number of them, in any number of processes, share it."""

    def __init__(self, data_dir: Path) -> None:
        self._cluster = _Cluster(data_dir.resolve())
        self._seat: int | None = None
        self._guard: psycopg.AsyncConnection | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Make the server run, and return a conninfo of its owner that stays valid until stop, crashes included.

        Raises EmbeddedPostgresError; it gives up 60 seconds after it is its turn to start the server.
        """
        if self._watcher is None:
            try:
                self._seat = await self._cluster.take_seat()
                await self._reach()
            except BaseException:
                await self.stop()
                raise
            self._watcher = asyncio.create_task(self._watch(), name="embedded-postgres-watcher")
        return self._cluster.conninfo(process.DATABASE)

    async def stop(self) -> None:
        """Leave the server, and stop it if nobody else uses it; without effect when not started."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            await asyncio.wait([watcher])
        guard, self._guard = self._guard, None
        if guard is not None:
            await guard.close()
        seat, self._seat = self._seat, None
        if seat is not None:
            try:
                await self._cluster.leave(seat)
            finally:
                _unlock(seat)

    async def __aenter__(self) -> str:
        """Start, and give the conninfo."""
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        await self.stop()

    async def _reach(self) -> None:
        """Make the server run and hold a connection to it: the kernel tells at once when the other end dies."""
        if self._guard is not None:
            await self._guard.close()
        with _clear_errors(self._cluster.data_dir):
            for attempt in range(1, ATTEMPTS + 1):
                await self._cluster.ensure_running()
                try:
                    # Not the database of the program, which must be free to be copied or dropped.
                    address = self._cluster.conninfo("postgres")
                    self._guard = await psycopg.AsyncConnection.connect(address, autocommit=True)
                except psycopg.OperationalError:
                    if attempt == ATTEMPTS:
                        raise
                else:
                    return

    async def _watch(self) -> None:
        while self._guard is not None:
            try:
                async for _ in self._guard.notifies(timeout=LOG_CHECK_SECONDS):
                    pass
                with suppress(OSError):
                    self._cluster.bound_log()
            except psycopg.Error as error:
                _log.warning("embedded_postgres.lost: %s", process.last_lines(str(error)))
                await self._recover()

    async def _recover(self) -> None:
        while True:
            try:
                await self._reach()
            except EmbeddedPostgresError as error:
                _log.error("embedded_postgres.restart_failed: %s", error)
                await asyncio.sleep(1)
            else:
                _log.warning("embedded_postgres.back")
                return


class _Cluster:
    """The server of one data folder, and what can be done to it by one process at a time."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self._pg = data_dir / "pg"
        self._log = data_dir / "postgres.log"
        self._mark: int | None = None
        self._spawned = 0
        self._silent_since: float | None = None

    def conninfo(self, database: str) -> str:
        """Return the owner's way in; EmbeddedPostgresError when the socket or the password is not in good hands."""
        return conninfo.make_conninfo(
            host=str(process.socket_folder(self.data_dir)),
            port=process.SETTINGS["port"],
            user=process.OWNER,
            password=process.read_password(self._pg),
            dbname=database,
            connect_timeout=5,
        )

    # --- locks

    async def take_seat(self) -> int:
        """Become a user of the server for as long as the returned lock is held."""
        with _clear_errors(self.data_dir):
            self.data_dir.mkdir(0o700, parents=True, exist_ok=True)
            return await self._lock("pg.users", fcntl.LOCK_SH)

    @asynccontextmanager
    async def _decision(self) -> AsyncGenerator[None]:
        """Be the only one, of all processes, who starts or stops the server."""
        lock = await self._lock("pg.lock", fcntl.LOCK_EX)
        try:
            yield
        finally:
            _unlock(lock)

    async def _lock(self, name: str, kind: int) -> int:
        lock = self._open_lock(name)
        try:
            await self._wait_for(lock, kind, name)
        except BaseException:
            os.close(lock)
            raise
        return lock

    async def _wait_for(self, lock: int, kind: int, name: str) -> None:
        deadline = monotonic() + LOCK_SECONDS
        while not _try_lock(lock, kind):
            if monotonic() > deadline:
                problem = f"Another process has held {self.data_dir / name} for {LOCK_SECONDS} s"
                raise EmbeddedPostgresError(problem, "See what it is doing (lslocks), and try again.")
            await asyncio.sleep(POLL_SECONDS)

    def _open_lock(self, name: str) -> int:
        return self._open(name, os.O_RDWR)

    def _open(self, name: str, flags: int) -> int:
        # Python makes it not inheritable: no server may keep a lock of the process that started it.
        descriptor = os.open(self.data_dir / name, flags | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        if os.geteuid() == 0:
            # What root leaves in another user's folder, that user must be able to open.
            owner = self.data_dir.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        return descriptor

    # --- start

    async def ensure_running(self) -> None:
        """Return when the server answers; EmbeddedPostgresError after 60 seconds, or at once if it cannot start."""
        if sys.platform != "linux":
            raise EmbeddedPostgresError("The embedded PostgreSQL needs Linux", "Set JOBENGINE_DATABASE_URL.")
        async with self._decision():
            deadline = monotonic() + START_SECONDS
            self._mark, self._spawned, self._silent_since = None, 0, None
            while monotonic() < deadline:
                answer = await _to_its_end(self._ping)
                if answer == pq.Ping.OK:
                    return
                if answer != pq.Ping.REJECT:
                    await _to_its_end(self._advance)
                await asyncio.sleep(POLL_SECONDS)
        problem = f"PostgreSQL did not answer within {START_SECONDS} s: {self._last_words()}"
        raise EmbeddedPostgresError(problem, f"See {self._log}, and end what still uses {self._pg}.")

    def _ping(self) -> int:
        if not self._pg.exists():
            return pq.Ping.NO_RESPONSE
        return pq.PGconn.ping(self.conninfo("postgres").encode())

    def _advance(self) -> None:
        """Do what brings a silent server nearer to an answer."""
        if (pid := process.find_server(self._pg)) is not None:
            self._end_if_unreachable(pid)
            return
        if self._spawned == ATTEMPTS:
            raise EmbeddedPostgresError(f"PostgreSQL did not start: {self._last_words()}", f"See {self._log}.")
        # Held by the children of a server too, and across process namespaces: who gets it is alone with the data.
        alive = self._open_lock("pg.alive")
        try:
            if _try_lock(alive, fcntl.LOCK_EX):
                self._spawn(alive)
            else:
                process.kill_orphans(self._pg)
        finally:
            os.close(alive)

    def _end_if_unreachable(self, pid: int) -> None:
        if (process.socket_folder(self.data_dir) / process.SOCKET).exists():
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = monotonic()
        elif monotonic() - self._silent_since > SILENT_SECONDS:
            process.send(pid, signal.SIGINT)

    def _spawn(self, alive: int) -> None:
        run_as = process.choose_run_as(self._pg)
        if not self._pg.exists():
            process.create_cluster(run_as, self._pg)
        process.check_version(self._pg)
        run_as.give_tree(self._pg)
        sockets = process.socket_folder(self.data_dir)
        run_as.give(sockets)
        process.remove_left_overs(self._pg, sockets)
        self.bound_log()
        log = self._open(self._log.name, os.O_WRONLY | os.O_APPEND)
        try:
            self._mark = os.fstat(log).st_size
            process.spawn_server(run_as, self._pg, sockets, log=log, alive=alive)
            self._spawned += 1
        finally:
            os.close(log)

    # --- stop

    async def leave(self, seat: int) -> None:
        """Stop the server if *seat* is the last one; nobody can take another meanwhile."""
        with _clear_errors(self.data_dir):
            async with self._decision():
                if _try_lock(seat, fcntl.LOCK_EX):
                    await self._shut_down()

    async def _shut_down(self) -> None:
        pid = process.find_server(self._pg)
        if pid is None:
            return
        begin = monotonic()
        process.send(pid, signal.SIGINT)
        while process.is_running(pid, self._pg):
            waited = monotonic() - begin
            if waited > STOP_SECONDS:
                raise EmbeddedPostgresError(f"PostgreSQL (process {pid}) does not stop", f"See {self._log}.")
            if waited > STOP_SECONDS / 2:
                # Without a last checkpoint: the next start recovers what was committed.
                process.send(pid, signal.SIGQUIT)
            await asyncio.sleep(POLL_SECONDS)
        if (sockets := process.socket_folder(self.data_dir)).parent != self.data_dir:
            with suppress(OSError):
                sockets.rmdir()

    # --- log

    def bound_log(self) -> None:
        """Keep one older log of bounded size; the server appends, so the log can be cut while it writes."""
        if self._log.exists() and self._log.stat().st_size > LOG_BYTES:
            shutil.copy(self._log, self._log.with_suffix(".log.1"))
            os.truncate(self._log, 0)

    def _last_words(self) -> str:
        if self._mark is None or not self._log.exists():
            return "it has said nothing"
        with self._log.open("rb") as file:
            file.seek(max(self._mark, self._log.stat().st_size - 8192))
            return process.last_lines(file.read().decode(errors="replace"))


@contextmanager
def _clear_errors(data_dir: Path) -> Generator[None]:
    try:
        yield
    except (OSError, subprocess.SubprocessError) as error:
        advice = "Run as the owner of DATA_DIR, on a disk with room."
        raise EmbeddedPostgresError(f"The embedded PostgreSQL of {data_dir}: {error}", advice) from error
    except psycopg.Error as error:
        raise EmbeddedPostgresError(
            f"PostgreSQL does not let its owner in: {error}", "See postgres.log in DATA_DIR."
        ) from error


def _try_lock(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(lock: int) -> None:
    # A forked child may hold a copy of the descriptor, so closing alone would not do.
    fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)


async def _to_its_end(function: Callable[[], _Result]) -> _Result:
    """Run *function* in a thread and see it end even when the waiting is cancelled: the locks must outlast it."""
    task = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
