"""``command:program args`` handlers: the batch as JSON on standard input, the attempt's token in the environment."""

import asyncio
import os
import shlex
import sys
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Final

from jobengine.worker import launch
from jobengine.worker.outcome import Completed, Failed, Outcome
from jobengine.worker.processes import handler_environment, kill

RETRY_EXIT: Final = 75
_LAST_WORDS_BYTES: Final = 4_000
# A daemon that the command left behind may hold its standard error open for ever.
_LAST_WORDS_SECONDS: Final = 1
_CHUNK_BYTES: Final = 64 * 1024
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where a wildcard listens, this machine calls


def local_url(host: str, port: int) -> str:
    """Return where the service answers that listens on *host* and *port*, called from the same machine.

    >>> local_url("127.0.0.1", 8080), local_url("::", 80)
    ('http://127.0.0.1:8080', 'http://[::1]:80')
    """
    name = _WILDCARDS.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


async def run_command(command: str, batch: bytes, url: str, token: str) -> Outcome:
    """Run *command*; exit 0 completes, 75 fails for a retry, anything else fails. Cancelling this call kills it."""
    try:
        arguments = shlex.split(command)
    except ValueError as error:
        return Failed(f"the command cannot be read: {error}", retryable=False)
    environment = handler_environment(os.environ) | {"JOBENGINE_URL": url, "JOBENGINE_TOKEN": token}
    async with _last_words() as words:
        # A file and not a pipe: nobody waits for a command that does not read.
        with TemporaryFile() as standard_input:
            standard_input.write(batch)
            standard_input.seek(0)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *arguments),
                stdin=standard_input,
                stdout=DEVNULL,
                stderr=words.pipe,
                env=environment,
                start_new_session=True,
            )
        try:
            status = await process.wait()
        except BaseException:
            await kill(process)
            raise
        if status == 0:
            return Completed()
        return Failed(f"exit {status}: {await words.text()}", status == RETRY_EXIT)


@dataclass(slots=True)
class _LastWords:
    """The end of what a command writes to *pipe*, its standard error."""

    pipe: int
    _reading: asyncio.Task[bytes]

    async def text(self) -> str:
        os.close(self.pipe)
        self.pipe = -1
        with suppress(TimeoutError):
            last = await asyncio.wait_for(self._reading, _LAST_WORDS_SECONDS)
            return last.decode(errors="replace").strip()
        return ""

    async def close(self) -> None:
        if self.pipe >= 0:
            os.close(self.pipe)
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)


@asynccontextmanager
async def _last_words() -> AsyncGenerator[_LastWords]:
    reading, writing = os.pipe()
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb", buffering=0)
    )
    words = _LastWords(writing, asyncio.create_task(_tail(reader)))
    try:
        yield words
    finally:
        await words.close()
        transport.close()


async def _tail(reader: asyncio.StreamReader) -> bytes:
    tail = b""
    while chunk := await reader.read(_CHUNK_BYTES):
        tail = (tail + chunk)[-_LAST_WORDS_BYTES:]
    return tail
