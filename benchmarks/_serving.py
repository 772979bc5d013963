"""What the benchmarks share: a server of their own, tokens for it, and a client too thin to be the thing measured."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, cast

import httpx2

PROGRAM = ("-m", "jobengine.cli")
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
LIMITLESS = {"max_active": 10**9, "max_per_hour": 10**9, "burst": 10**9, "refill_per_second": 10**6}


@dataclass(slots=True)
class Server:
    """A running server; *data_dir* is its own."""

    host: str
    port: int
    data_dir: Path
    environ: Mapping[str, str]
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{self.host}:{self.port}"

    def restart(self) -> None:
        """End the server and start it again on what it left."""
        _end(self.process)
        self.process = _start(self.environ)
        _wait(self.process, self.url)

    def client(self, name: str, *roles: str, tenant: str = "bench") -> tuple[str, str]:
        """Make a client on the server's database."""
        words = [word for role in roles for word in ("--role", role)]
        command = [
            sys.executable,
            "-m",
            "jobengine.cli",
            "client",
            "create",
            name,
            "--tenant",
            tenant,
            *words,
            "--json",
        ]
        made = json.loads(subprocess.check_output(command, env=self.environ))  # noqa: S603 - our own program
        return made["client_id"], made["client_secret"]

    def token(self, client: tuple[str, str], scope: str, **form: str) -> str:
        """Get a token."""
        form |= {"grant_type": "client_credentials", "scope": scope}
        answer = httpx2.post(f"{self.url}/oauth2/token", data=form, auth=client)
        answer.raise_for_status()
        return answer.json()["access_token"]


@contextmanager
def server(config: str = "", *, program: Sequence[str] = PROGRAM, **environ: str) -> Generator[Server]:
    """Run a server in a fresh folder until the block ends."""
    with tempfile.TemporaryDirectory(prefix="jobengine-bench-") as folder:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        (Path(folder) / "jobengine.toml").write_text(config)
        environ = {
            **os.environ,
            "JOBENGINE_DATA_DIR": f"{folder}/data",
            "JOBENGINE_CONFIG": f"{folder}/jobengine.toml",
            "JOBENGINE_PORT": str(port),
            "JOBENGINE_LOG_LEVEL": "warning",
            **environ,
        }
        running = Server("127.0.0.1", port, Path(folder) / "data", environ, _start(environ, program))
        try:
            _wait(running.process, running.url)
            yield running
        finally:
            _end(running.process)


def _start(environ: Mapping[str, str], program: Sequence[str] = PROGRAM) -> subprocess.Popen[bytes]:
    command = [sys.executable, *program, "serve"]
    return subprocess.Popen(command, env=environ)  # noqa: S603 - our own program


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(30)


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            if httpx2.get(f"{url}/readyz").is_success:
                return
        except httpx2.HTTPError:
            pass
        sleep(0.1)
    raise SystemExit("the server does not start")


class Connection(asyncio.Protocol):
    """One keep-alive connection that speaks just enough HTTP/1.1, and costs as little as Python can."""

    def __init__(self, head: bytes) -> None:
        self._head = head
        self._received = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, where: Server, token: str) -> "Connection":
        """Connect."""
        head = f"Host: {where.host}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n".encode()
        _, opened = await asyncio.get_running_loop().create_connection(lambda: cls(head), where.host, where.port)
        return opened

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Send a request and return status and body."""
        self._answer = asyncio.get_running_loop().create_future()
        first = b"POST %s HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n" % (path.encode(), self._head, len(body))
        if self._transport is None or self._transport.is_closing():
            raise ConnectionError("the server hung up")
        self._transport.write(first + body)
        return await self._answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the line."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer once head and body are here."""
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        size = _LENGTH.search(head)
        if found and len(body) >= (int(size[1]) if size else 0) and self._answer is not None:
            self._received = b""
            self._answer.set_result((int(head[9:12]), body))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionError("the server hung up"))

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()


@dataclass(frozen=True, slots=True)
class Figures:
    """What a run gave: calls a second, and latencies in milliseconds."""

    rate: float
    p50: float
    p99: float


async def measure(
    where: Server, token: str, connections: int, seconds: float, call: Callable[[Connection], Awaitable[Any]]
) -> Figures:
    """Call as often as *connections* can for a while."""
    opened = [await Connection.open(where, token) for _ in range(connections)]
    took: list[float] = []
    until = perf_counter() + seconds

    async def repeat(connection: Connection) -> None:
        while (began := perf_counter()) < until:
            told = await call(connection)
            # A call that also waits says itself what it took.
            took.append(told if isinstance(told, float) else perf_counter() - began)

    began = perf_counter()
    await asyncio.gather(*map(repeat, opened))
    elapsed = perf_counter() - began
    for connection in opened:
        connection.close()
    return figures(took, elapsed)


def figures(took: list[float], elapsed: float) -> Figures:
    """Sum up what each call took, in seconds."""
    if not took:
        return Figures(0.0, float("nan"), float("nan"))
    took.sort()
    return Figures(len(took) / elapsed, took[len(took) // 2] * 1000, took[int(len(took) * 0.99)] * 1000)
