"""A real `jobengine serve` process with a data folder of its own, and the command line beside it."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from secrets import token_hex
from time import monotonic, sleep
from typing import Any, Final, TypeVar

from tests.clusters import furnish
from tests.registering import Wanted, make_clients

ROOT: Final = Path(__file__).resolve().parents[2]
BIN: Final = Path(sys.executable).parent
START_SECONDS: Final = 60
STOP_SECONDS: Final = 40
EVERY_ROLE: Final = ("Orch.Viewer", "Orch.Operator", "Orch.Admin", "Orch.Auditor", "Orch.Worker")
JOB_TYPES: Final = """\
[job_types.advisory-ingest]
handler = "python:tests.acceptance.handlers:ingest"

[job_types.external]
handler = "external"

[job_types.patient]
handler = "external"
lease_seconds = 3600
"""

Found = TypeVar("Found")


class StillWaitingError(AssertionError):
    """What was promised within some seconds has not come."""


def eventually(look: Callable[[], Found | None], seconds: float, what: str) -> Found:
    """Return what *look* finds as soon as it finds something true; raises StillWaitingError after *seconds*."""
    until = monotonic() + seconds
    while not (found := look()):
        if monotonic() > until:
            raise StillWaitingError(f"after {seconds} s there is still not {what}; the last look found {found!r}")
        sleep(0.05)
    return found


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def new_tenants(count: int) -> list[str]:
    """Return names of tenants that nobody else has."""
    return [f"t-{token_hex(6)}" for _ in range(count)]


@dataclass(frozen=True, slots=True)
class Credentials:
    """What `client create` tells, once."""

    client_id: str
    secret: str = field(repr=False)
    tenants: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Installation:
    """A data folder with its configuration; servers and commands are started on it."""

    folder: Path
    settings: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def make(
        cls, folder: Path, job_types: str = JOB_TYPES, *, furnished: bool = True, **settings: str
    ) -> "Installation":
        """Write the file of job types; *settings* are further ones, without their prefix.

        The embedded database is there, with its tables, unless it is to be made by whoever starts first.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "jobengine.toml").write_text(job_types, "utf-8")
        made = cls(folder, {f"JOBENGINE_{name}": value for name, value in settings.items()})
        if furnished and "DATABASE_URL" not in settings:
            furnish(made.data_dir)
        return made

    @property
    def data_dir(self) -> Path:
        """The data folder."""
        return self.folder / "data"

    def environ(self, **more: str) -> dict[str, str]:
        """Return the environment of a process on this installation; none of ours leaks in but what is meant."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("JOBENGINE_")}
        ours = {"JOBENGINE_DATA_DIR": str(self.data_dir), "JOBENGINE_CONFIG": str(self.folder / "jobengine.toml")}
        return {**kept, **ours, **self.settings, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", **more}

    def run(self, *words: str, program: str = "jobengine", **more: str) -> "subprocess.CompletedProcess[str]":
        """Run one command to its end; *more* is added to its environment."""
        command = [str(BIN / program), *words]
        return subprocess.run(
            command, env=self.environ(**more), capture_output=True, text=True, check=False, timeout=90, cwd=self.folder
        )

    def create_client(
        self, name: str, tenants: Sequence[str], roles: Sequence[str], owner: str | None = None
    ) -> Credentials:
        """Make a client on the database itself."""
        [made] = self.create_clients(Wanted(name, tenants, roles, owner))
        return made

    def create_clients(self, *wanted: Wanted) -> list[Credentials]:
        """Make clients on the database itself, as the command does; the command has tests of its own."""
        made = make_clients(self.environ(), wanted)
        return [Credentials(told["client_id"], told["client_secret"], tuple(told["tenants"])) for told in made]

    def start(self, *words: str, **more: str) -> "Server":
        """Start a server, with further *words* on its command line, and return at once."""
        port = free_port()
        log = self.folder / f"server-{port}.log"
        with log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "jobengine.cli", "serve", *words],
                # What a killed server leaves in its temporary folder goes with ours.
                env=self.environ(JOBENGINE_PORT=str(port), TMPDIR=str(self.folder), **more),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        return Server(self, port, process, log)

    def postgres_pids(self) -> list[int]:
        """Return the processes whose working directory is this installation's database: those of PostgreSQL."""
        pg, found = str(self.data_dir / "pg"), list[int]()
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and str((entry / "cwd").readlink()) == pg:
                    found.append(int(entry.name))
        return found

    def postmaster(self) -> int:
        """Return the process id of the database's first process, the parent of the others."""
        return int((self.data_dir / "pg" / "postmaster.pid").read_text("ascii").splitlines()[0])

    def clean_up(self) -> None:
        """End a database whose users were killed, so that a test leaves nothing behind."""
        for pid in self.postgres_pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Server:
    """One serving process."""

    installation: Installation
    port: int
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def url(self) -> str:
        """Where it is reached."""
        return f"http://127.0.0.1:{self.port}"

    def wait_until_ready(self) -> "Server":
        """Return when it answers that it is ready; raises with the end of its log when it never does."""
        try:
            eventually(lambda: self.process.poll() is not None or self.is_ready(), START_SECONDS, "a ready server")
            assert self.process.poll() is None
        except AssertionError:
            self.kill()
            raise AssertionError(self.log.read_text("utf-8", errors="replace")[-3000:]) from None
        return self

    def is_ready(self) -> bool:
        """Tell whether it answers that it is ready."""
        # Asked often: the plainest client costs the machine the least. It hears nothing where nobody takes it in.
        connection = HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == HTTPStatus.OK
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def stop(self) -> int:
        """Ask it to end as a supervisor does, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)

    def kill(self) -> None:
        """End it without a word: kill -9."""
        self.process.kill()
        self.process.wait(STOP_SECONDS)


@contextmanager
def serving(installation: Installation, *words: str, **more: str) -> Iterator[Server]:
    """Run a server until the block ends; the end is not judged here."""
    server = installation.start(*words, **more).wait_until_ready()
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()


def each_item(page: Callable[[str | None], Mapping[str, Any]]) -> Iterator[Any]:
    """Follow a list from page to page."""
    token: str | None = None
    while True:
        found = page(token)
        yield from found["items"]
        token = found["next_page_token"]
        if token is None:
            return
