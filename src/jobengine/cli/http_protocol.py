"""Bounds on what a connection may send before it is a request: uvicorn with httptools has none of its own."""

import asyncio
from typing import Any, ClassVar, Final, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from jobengine.web.ending import ENDING

MAX_HEAD_BYTES: Final = 64 * 1024

_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 33\r\nconnection: close\r\n\r\n"
    b"The head of the request is large.\n"
)


# What more than this waits for the end of the loop's turn is written at once.
_MOST_GATHERED: Final = 64 * 1024


class _Gathering:
    """A transport that sends what one turn of the loop writes at once: head and body of an answer in one packet."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._gathered: list[bytes] = []
        self._size = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._gathered:
            self._loop.call_soon(self._flush)
        self._gathered.append(data)
        self._size += len(data)
        if self._size > _MOST_GATHERED:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._gathered:
            data, self._gathered, self._size = b"".join(self._gathered), [], 0
            self._transport.write(data)


class _HeadTooLarge(httptools.HttpParserError):
    """The head of a request, or its trailers, pass the bound."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection whose request line, headers and trailers are bounded in size, and its head and body in time.

    The application finds an event under the name ENDING in the state of its scope: it is set when the server begins to
    end, and answers without an end of their own have to find one.
    """

    head_seconds: ClassVar[float] = 20.0
    body_seconds: ClassVar[float] = 60.0
    _head_bytes: int = 0
    # The parser keeps the beginning of a field to itself: bytes that went in since it last gave something out.
    _held_bytes: int = 0
    _gave: bool = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Expect a request."""
        super().connection_made(cast("asyncio.Transport", _Gathering(transport, self.loop)))
        # One event for all connections: they are given the same state.
        self._ending: asyncio.Event = self.app_state.setdefault(ENDING, asyncio.Event())
        self._expect(self.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing any more."""
        self._expect(None)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Finish the answer that is being given, and let endless ones know."""
        self._ending.set()
        super().shutdown()

    def data_received(self, data: bytes) -> None:
        """Parse, and close the connection of whoever sends more than a head may hold."""
        self._gave = False
        super().data_received(data)
        self._held_bytes = 0 if self._gave else self._held_bytes + len(data)
        if self._held_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse()

    def on_message_begin(self) -> None:
        """Begin to count."""
        super().on_message_begin()
        self._head_bytes = 0
        if self._timer is None:
            self._expect(self.head_seconds)

    def on_url(self, url: bytes) -> None:
        """Count a piece of the request line."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header or a trailer."""
        self._count(len(name) + len(value) + len(": \r\n"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Let the request begin."""
        self._gave = True
        self._expect(self.body_seconds)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body, which is bounded elsewhere."""
        self._gave = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Have the whole request."""
        self._expect(None)
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, or too much of it."""
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse()
        else:
            super().send_400_response(msg)

    def _count(self, size: int) -> None:
        self._gave = True
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise _HeadTooLarge

    def _refuse(self) -> None:
        self.transport.write(_TOO_LARGE)
        self.transport.close()

    def _expect(self, seconds: float | None) -> None:
        """Cut the connection off after so many seconds, unless what is expected has come; None expects nothing."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self.transport.close)
