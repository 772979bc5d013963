"""Whoever sends too slowly is cut off, and disturbs nobody."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx2
import pytest
import uvicorn
from litestar import Litestar
from litestar.types import Receive, Scope, Send
from tests.factories import Api

from jobengine.bootstrap import Plane
from jobengine.cli.http_protocol import BoundedHttpProtocol

PATIENT = 60


class Hasty(BoundedHttpProtocol):
    """The same, for tests that would rather not wait."""

    head_seconds = 0.5
    body_seconds = 0.5


@asynccontextmanager
async def listening(app: Any) -> AsyncIterator[int]:
    """Serve an application whose lifespan is somebody else's, and return its port."""
    bound = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=Hasty, lifespan="off", log_config=None, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve([bound]))
    try:
        yield bound.getsockname()[1]
    finally:
        server.should_exit = True
        await task


@pytest.fixture
async def port(app: Litestar) -> AsyncIterator[int]:
    """The real application."""
    async with listening(app) as bound:
        yield bound


async def drip(port: int, first: bytes, then: Callable[[], bytes]) -> bytes:
    """Send *first* and then a little again and again until the server hangs up; return what it said."""
    async with asyncio.timeout(PATIENT):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        said = asyncio.create_task(reader.read())
        writer.write(first)
        with suppress(ConnectionError):
            while not said.done():
                writer.write(then())
                await writer.drain()
                await asyncio.wait([said], timeout=0.05)
        writer.close()
        try:
            return await said
        except ConnectionError:
            return b""


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (b"", b""),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\n", b"A: b\r\n"),
        (b"POST /oauth2/token HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n", b"a"),
        (b"POST /oauth2/token HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    ],
    ids=["nothing", "a head", "a body", "chunks"],
)
async def test_a_request_that_never_gets_whole_is_cut_off(port: int, first: bytes, then: bytes) -> None:
    """However steadily it drips; others are answered meanwhile."""
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as other:
        dripping = asyncio.create_task(drip(port, first, lambda: then))
        while not dripping.done():
            assert (await other.get("/healthz", headers={"Connection": "close"})).status_code == 200
            await asyncio.wait([dripping], timeout=0.1)

        assert b"HTTP/1.1 2" not in await dripping


async def test_a_body_that_was_cut_off_leaves_no_fault_and_no_lease(
    port: int, plane: Plane, api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half an ask asks for nothing, and is nobody's error."""
    await api.quota()
    body = b'{"job_type": "scan", "slots": 1'
    head = (
        b"POST /api/v1/admissions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer " + api.token.encode() + b"\r\nContent-Length: 99\r\n\r\n"
    )
    assert plane.verify(api.token).tenant_id == api.tenant_id

    await drip(port, head + body, lambda: b"")

    assert (await api.get("/admissions")).json()["items"] == []
    assert '"level": "error"' not in capsys.readouterr().err


async def test_an_answer_may_take_longer_than_its_request() -> None:
    """The bounds are for what is sent, not for what is thought about; and the connection goes on."""

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await receive()
        await asyncio.sleep(3 * Hasty.body_seconds)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok", "more_body": False})

    async with (
        listening(slow) as port,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=PATIENT) as client,
    ):
        answers = [await client.post("/", content=b"x" * 70_000) for _ in range(2)]

    assert [answer.text for answer in answers] == ["ok", "ok"]
