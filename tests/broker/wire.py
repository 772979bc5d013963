"""A wire between two programs that a test can cut: a TCP proxy."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread


class Wire:
    """Carries what comes to *port* to somebody else's port, while it is whole."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._streams: set[asyncio.StreamWriter] = set()
        self._is_whole = True
        self._server: asyncio.Server | None = None
        self.port = 0

    def cut(self) -> None:
        """Break every connection, and take no new one: the other side is gone."""
        self._do(self._cut)

    def mend(self) -> None:
        """Let connections through again."""
        self._do(self._mend)

    def _cut(self) -> None:
        self._is_whole = False
        for stream in self._streams:
            stream.transport.abort()

    def _mend(self) -> None:
        self._is_whole = True

    def _do(self, work: object) -> None:
        async def call() -> None:
            work()

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(30)

    async def _open(self) -> None:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._cut()
        self._server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._is_whole:
            writer.transport.abort()
            return
        self._streams.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            self._streams.add(far_writer)
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
            self._streams.discard(far_writer)
        finally:
            self._streams.discard(writer)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    with suppress(OSError):
        writer.close()


@contextmanager
def open_wire(target: int) -> Iterator[Wire]:
    """Run a wire to a port of this machine until the block ends."""
    wire = Wire(target)
    thread = Thread(target=wire._loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(wire._open(), wire._loop).result(30)
    try:
        yield wire
    finally:
        asyncio.run_coroutine_threadsafe(wire._close(), wire._loop).result(30)
        wire._loop.call_soon_threadsafe(wire._loop.stop)
        thread.join(30)
        wire._loop.close()
