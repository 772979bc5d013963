"""The private port for metrics, beside the one that everybody may call."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager

import uvicorn

from jobengine.bootstrap import Plane
from jobengine.cli.http_protocol import BoundedHttpProtocol
from jobengine.web.metrics import make_metrics_app

# Whoever scrapes asks again: nobody's end waits for that.
SHUTDOWN_SECONDS = 1


@asynccontextmanager
async def serving_metrics(plane: Plane, sockets: Sequence[socket.socket]) -> AsyncGenerator[None]:
    """Answer on *sockets* until the block ends; without any, there is no such port."""
    if not sockets:
        yield
        return
    server = _Server(_config(plane))
    task = asyncio.create_task(server.serve(list(sockets)), name="metrics")
    try:
        await server.ready.wait()
        yield
    finally:
        server.should_exit = True
        await task


def _config(plane: Plane) -> uvicorn.Config:
    return uvicorn.Config(
        make_metrics_app(plane),
        http=BoundedHttpProtocol,
        ws="none",
        interface="asgi3",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


class _Server(uvicorn.Server):
    """A server whose signals are the business of the one beside it."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()
