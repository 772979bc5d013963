"""A serving process: the port, the plane, the standing work, and an orderly end on SIGTERM or SIGINT."""

import asyncio
import gc
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import uvicorn
import uvloop
from uvicorn.supervisors import Multiprocess

from jobengine.bootstrap import Plane, background
from jobengine.cli.call import Call
from jobengine.cli.exits import CommandFailed, Exit
from jobengine.cli.http_protocol import BoundedHttpProtocol
from jobengine.cli.installation import opened, settings_of
from jobengine.cli.metrics_port import serving_metrics
from jobengine.cli.relaying import relaying
from jobengine.errors import JobengineError
from jobengine.logs import send_logs_to_structlog
from jobengine.metrics import forget_process, several_processes
from jobengine.settings import Settings
from jobengine.web.app import make_app
from jobengine.worker.supervisor import Supervisor

SHUTDOWN_SECONDS = 10
KEEP_ALIVE_SECONDS = 15
BACKLOG = 2048
YOUNG_OBJECTS = 20_000
SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A worker on a busy machine may be slow to answer its supervisor; that is no reason to kill it.
HEALTH_SECONDS = 30


def run(call: Call, workers: int) -> int:
    """Serve until a signal ends it, and return the exit code; raises CommandFailed when it cannot start."""
    settings = settings_of(call.environ)
    sockets = bind(settings)
    private: list[socket.socket] = []
    try:
        if settings.metrics_port is not None:
            private += bind(replace(settings, port=settings.metrics_port), "JOBENGINE_METRICS_PORT")
        if workers > 1:
            return asyncio.run(_supervise(settings, sockets, private, workers))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(settings, sockets, private))
    except asyncio.CancelledError:
        return Exit.OK
    except JobengineError as error:
        raise CommandFailed(error.detail, Exit.ERROR) from None
    except OSError as error:
        raise CommandFailed(f"cannot listen on {address(settings)}: {error.strerror}", Exit.ERROR) from None
    finally:
        for bound in sockets + private:
            bound.close()


@asynccontextmanager
async def serving(settings: Settings) -> AsyncGenerator[Plane]:
    """Open the plane with everything that a serving process does beside answering requests."""
    async with opened(settings, serving=True) as plane, relaying(plane) as relayed:
        supervisor = Supervisor(plane, settings.embedded_slots)
        try:
            async with background(plane, ("batches", timedelta(0), supervisor.step), *relayed):
                # What is here now stays to the end: no collection need walk through it again and again.
                gc.collect()
                gc.freeze()
                gc.set_threshold(YOUNG_OBJECTS)
                yield plane
        finally:
            # Only now: while it still looks for work, it would fill the slots that closing makes free.
            await supervisor.close()


def application() -> object:
    """Return the application of one worker of several; it reads the settings and opens its own plane."""
    send_logs_to_structlog()

    @asynccontextmanager
    async def opened_here() -> AsyncGenerator[Plane]:
        with _ending_with_parent():
            async with serving(settings_of(os.environ)) as plane:
                yield plane

    return make_app(opened_here)


async def _serve(settings: Settings, sockets: list[socket.socket], private: list[socket.socket]) -> int:
    send_logs_to_structlog()
    _end_start_on_signal()
    async with serving(settings) as plane, serving_metrics(plane, private):
        server = _Server(_config(make_app(lambda: _given(plane))), address(settings))
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, server.handle_exit, number, None)
        await server.serve(sockets)
    return Exit.OK


async def _supervise(
    settings: Settings, sockets: list[socket.socket], private: list[socket.socket], workers: int
) -> int:
    send_logs_to_structlog()
    _end_start_on_signal()
    # The supervisor opens the plane too: what is wrong is told once, and the database outlives a lost worker.
    with several_processes():
        async with opened(settings, serving=True) as plane, serving_metrics(plane, private):
            supervisor = await _watch_over(settings, sockets, workers)
    if supervisor.failed:
        raise CommandFailed("a worker could not start; the log tells why", Exit.ERROR)
    return Exit.OK


async def _watch_over(settings: Settings, sockets: list[socket.socket], workers: int) -> "_Supervisor":
    for number in SIGNALS:
        asyncio.get_running_loop().remove_signal_handler(number)
    supervisor = _Supervisor(_config(f"{__name__}:application", workers=workers), sockets, address(settings))
    await asyncio.to_thread(supervisor.run)
    return supervisor


def _end_start_on_signal() -> None:
    """Let a signal end this task while it starts, so that what it has opened is closed."""
    task = asyncio.current_task()
    if task is not None:
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)


def _config(app: Any, *, workers: int = 1) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        factory=isinstance(app, str),
        workers=workers,
        loop="uvloop",
        http=BoundedHttpProtocol,
        ws="none",
        interface="asgi3",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        # An X-Forwarded-For that anybody may send would let anybody choose the address they are throttled by.
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        timeout_worker_healthcheck=HEALTH_SECONDS,
    )


class _Server(uvicorn.Server):
    """A server whose signals are its caller's; uvicorn would raise them again and end the process by signal."""

    def __init__(self, config: uvicorn.Config, url: str) -> None:
        super().__init__(config)
        self._url = url

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        announce(self._url)


class _Supervisor(Multiprocess):
    """Workers on one port; *failed* tells whether one could not start."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket], url: str) -> None:
        super().__init__(config, sockets)
        self.failed = False
        self._url: str | None = url

    def keep_subprocess_alive(self) -> None:
        if self.should_exit.is_set():
            return
        before = {process.pid for process in self.processes}
        super().keep_subprocess_alive()
        for pid in before - {process.pid for process in self.processes}:
            forget_process(pid or 0)
        self.failed = self.should_exit.is_set()
        if self._url and all(process.is_ready() for process in self.processes):
            announce(self._url)
            self._url = None


def bind(settings: Settings, name: str = "JOBENGINE_PORT") -> list[socket.socket]:
    """Take the port before anything is started; raises CommandFailed, naming its setting, when somebody else has it."""
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return [_bind(family, where) for family, _, _, _, where in dict.fromkeys(found)]
    except OSError as error:
        hint = f"end what listens there, or choose another {name} or JOBENGINE_HOST"
        raise CommandFailed(f"cannot listen on {address(settings)}: {error.strerror}", Exit.ERROR, hint=hint) from None


def _bind(family: int, where: Any) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(where)
    except OSError:
        bound.close()
        raise
    return bound


def address(settings: Settings) -> str:
    """Return the address to call the server at.

    >>> address(Settings(host="::1", port=8080))
    'http://[::1]:8080'
    """
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


def announce(url: str) -> None:
    """Tell whoever waits that requests are answered now."""
    sys.stderr.write(f"jobengine serves on {url}\n")
    sys.stderr.flush()


@contextmanager
def _ending_with_parent() -> Generator[None]:
    """End this worker when its supervisor is gone: nobody would ever end it otherwise."""
    parent = multiprocessing.parent_process()
    if parent is None:
        yield
        return
    loop, sentinel = asyncio.get_running_loop(), parent.sentinel

    def orphaned() -> None:
        loop.remove_reader(sentinel)
        os.kill(os.getpid(), signal.SIGTERM)

    loop.add_reader(sentinel, orphaned)
    try:
        yield
    finally:
        with suppress(OSError):
            loop.remove_reader(sentinel)


def _given(plane: Plane) -> AbstractAsyncContextManager[Plane]:
    @asynccontextmanager
    async def given() -> AsyncGenerator[Plane]:
        yield plane

    return given()
