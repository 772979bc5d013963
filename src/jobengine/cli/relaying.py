"""The relay beside a serving process, where the settings name a broker."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Final, TypeAlias

from jobengine.bootstrap import Plane
from jobengine.cli.exits import CommandFailed, Exit
from jobengine.errors import JobengineError
from jobengine.storage.outbox import Outbox
from jobengine.worker.relay import Relay

SEND_EVERY: Final = timedelta(milliseconds=200)

StandingWork: TypeAlias = tuple[str, timedelta, Callable[[], Awaitable[object]]]


@asynccontextmanager
async def relaying(plane: Plane) -> AsyncGenerator[Sequence[StandingWork]]:
    """Yield the standing work that wakes workers on Celery; none without a broker, or without job types for it."""
    settings = plane.settings
    if settings.broker_url is None or not settings.celery_job_types:
        yield ()
        return
    try:
        from jobengine.worker.broker import Broker
    except ImportError:
        hint = "pip install 'jobengine[celery]'"
        raise CommandFailed("JOBENGINE_BROKER_URL is set, and Celery is not installed", Exit.ERROR, hint=hint) from None
    broker = Broker(settings.broker_url, settings.broker_queue)
    relay = Relay(Outbox(plane.database, plane.name), broker, settings.celery_job_types, settings.broker_slots)
    try:
        yield (("relay", SEND_EVERY, relay.step),)
    finally:
        with suppress(JobengineError):
            await relay.close()
