"""The real command and the real server, each as a process of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from time import monotonic, sleep
from typing import IO, Any

import pytest
from tests.registering import Wanted, make_clients

COMMAND = str(Path(sys.executable).with_name("jobengine"))
START_SECONDS = 120


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document that it printed."""
        assert self.out, self.err
        return json.loads(self.out)


@dataclass
class Shell:
    """Runs ``jobengine`` with an environment of its own; nothing of the tests' own settings is in it."""

    settings: Mapping[str, str]

    @property
    def environ(self) -> dict[str, str]:
        """The whole environment."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("JOBENGINE_")}
        return clean | {"COLUMNS": "80"} | dict(self.settings)

    def having(self, **settings: str) -> "Shell":
        """Return a shell with more settings, named without their prefix."""
        return Shell({**self.settings, **{f"JOBENGINE_{name}": value for name, value in settings.items()}})

    def run(self, *arguments: str) -> Ended:
        """Run a command to its end."""
        done = subprocess.run(
            [COMMAND, *arguments], env=self.environ, capture_output=True, timeout=START_SECONDS, check=False
        )
        return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())

    def start(self, *arguments: str, **options: Any) -> "subprocess.Popen[bytes]":
        """Start a command and let it run."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | options
        return subprocess.Popen([COMMAND, *arguments], env=self.environ, **pipes)


@dataclass(frozen=True)
class Tenant:
    """A tenant of its own on the running server, and a client of each role."""

    name: str
    clients: Mapping[str, Mapping[str, str]]
    shell: Shell

    def speaking(self, role: str) -> Shell:
        """Return the shell of the client with this role."""
        client = self.clients[role]
        return self.shell.having(CLIENT_ID=client["client_id"], CLIENT_SECRET=client["client_secret"])


@dataclass
class Service:
    """A running server."""

    shell: Shell
    url: str
    process: "subprocess.Popen[bytes]" = field(repr=False)
    said: IO[bytes] = field(repr=False)

    def new_tenant(self, *roles: str) -> Tenant:
        """Make a tenant and its clients."""
        name = f"t-{token_hex(6)}"
        return Tenant(name, self.new_clients([name], *roles), self.shell.having(URL=self.url))

    def new_clients(self, tenants: Sequence[str], *roles: str) -> dict[str, dict[str, str]]:
        """Make a client of each role in all of these tenants, at once and without a command."""
        made = make_clients(self.shell.environ, [Wanted(role, tenants, [f"Orch.{role}"]) for role in roles])
        return dict(zip(roles, made, strict=True))

    def new_client(self, tenant: str, role: str) -> dict[str, str]:
        """Make a client by the command."""
        made = self.shell.run(
            "client", "create", f"{role}-of-{tenant}", "--tenant", tenant, "--role", f"Orch.{role}", "--json"
        )
        assert made.code == 0, made.err
        return made.document


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(shell: Shell, *arguments: str) -> Iterator[Service]:
    """Run a server until the block ends, and stop it as an operator would."""
    url = f"http://127.0.0.1:{shell.settings['JOBENGINE_PORT']}"
    process = shell.start("serve", *arguments)
    assert process.stderr is not None
    try:
        wait_for_line(process.stderr, f"jobengine serves on {url}")
        yield Service(shell, url, process, process.stderr)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise


def wait_for_line(said: IO[bytes], wanted: str) -> None:
    """Read what a process says until it says *wanted*; fails with all of it when it ends before."""
    heard: list[str] = []
    for line in said:
        heard.append(line.decode().strip())
        if heard[-1] == wanted:
            return
    pytest.fail("\n".join(heard))


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Look again and again until *condition* holds."""
    until = monotonic() + seconds
    while not condition():
        assert monotonic() < until
        sleep(0.05)
