"""What the benchmarks share: a server of their own, tokens for it, and a client too thin to be the thing measured."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import httpx2

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
def server(config: str = "", **environ: str) -> Generator[Server]:
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
        running = Server("127.0.0.1", port, Path(folder) / "data", environ, _start(environ))
        try:
            _wait(running.process, running.url)
            yield running
        finally:
            _end(running.process)


def _start(environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "jobengine.cli", "serve"]
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


class Connection:
    """One keep-alive connection that speaks just enough HTTP/1.1."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        self._reader = reader
        self._writer = writer
        self._head = head

    @classmethod
    async def open(cls, where: Server, token: str) -> "Connection":
        """Connect."""
        reader, writer = await asyncio.open_connection(where.host, where.port)
        head = f"Host: {where.host}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n".encode()
        return cls(reader, writer, head)

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Send a request and return status and body."""
        size = str(len(body)).encode()
        self._writer.write(b"POST " + path.encode() + b" HTTP/1.1\r\n" + self._head + b"Content-Length: " + size)
        self._writer.write(b"\r\n\r\n" + body)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        return int(head[9:12]), await self._reader.readexactly(length) if length else b""

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


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
            await call(connection)
            took.append(perf_counter() - began)

    began = perf_counter()
    await asyncio.gather(*map(repeat, opened))
    elapsed = perf_counter() - began
    for connection in opened:
        connection.close()
    return figures(took, elapsed)


def figures(took: list[float], elapsed: float) -> Figures:
    """Sum up what each call took, in seconds."""
    took.sort()
    return Figures(len(took) / elapsed, took[len(took) // 2] * 1000, took[int(len(took) * 0.99)] * 1000)
