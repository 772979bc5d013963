"""The metrics for Prometheus: without tenants for everybody, with them on the private port."""

import asyncio
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, Final

from litestar import Litestar, MediaType, Request, Response, get
from litestar.datastructures import State
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from jobengine import __version__
from jobengine.backfill.model import BackfillStatus
from jobengine.bootstrap import Plane
from jobengine.errors import JobengineError
from jobengine.metrics import exposition
from jobengine.storage.work import Work, read_work
from jobengine.web.problems import HANDLERS

MEDIA_TYPE: Final = "text/plain; version=0.0.4"
ACTIVE: Final = (BackfillStatus.PENDING, BackfillStatus.RUNNING, BackfillStatus.PAUSED, BackfillStatus.CANCELING)
# Whoever asks, and how often: the database is asked once in this time, and for no longer than that.
FRESH_SECONDS: Final = 1.0
ASK_SECONDS: Final = 2.0


class Scrapes:
    """Answers to Prometheus from one process."""

    def __init__(self, plane: Plane, clock: Callable[[], float] = monotonic) -> None:
        self._plane = plane
        self._clock = clock
        self._lock = asyncio.Lock()
        self._asked_at = float("-inf")
        self._work: Work | None = None

    async def answer(self, *, tenants: bool) -> Response[bytes]:
        """Return what the process has counted and what the database says now; without a database, that it is down."""
        async with self._lock:
            if self._clock() - self._asked_at >= FRESH_SECONDS:
                self._work = await self._ask()
                self._asked_at = self._clock()
        await self._plane.count_connections()
        text = exposition(_found(self._work), tenants=tenants)
        return Response(text, media_type=MEDIA_TYPE)

    async def _ask(self) -> Work | None:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return await read_work(self._plane.database)
        except (JobengineError, TimeoutError):
            return None


@get("/metrics", include_in_schema=False, media_type=MediaType.TEXT)
async def metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Show the metrics for Prometheus; none has a tenant label."""
    return await _scrapes(request.app.state).answer(tenants=False)


@get("/metrics", include_in_schema=False, media_type=MediaType.TEXT)
async def private_metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Show the metrics for Prometheus, those of single tenants too."""
    return await _scrapes(request.app.state).answer(tenants=True)


def make_metrics_app(plane: Plane) -> Litestar:
    """Return the application of the private port."""
    return Litestar(
        route_handlers=[private_metrics],
        state=State({"plane": plane}),
        exception_handlers=HANDLERS,
        openapi_config=None,
        logging_config=None,
    )


def _scrapes(state: State) -> Scrapes:
    if "scrapes" not in state:
        state.scrapes = Scrapes(state.plane)
    return state.scrapes


def _found(work: Work | None) -> Iterator[Metric]:
    info = GaugeMetricFamily("jobengine_build_info", "The release, as a label; always 1", labels=["version"])
    info.add_metric([__version__], 1)
    yield info
    yield GaugeMetricFamily(
        "jobengine_database_up", "Whether the database answered this time", value=float(work is not None)
    )
    if work is None:
        return
    active = GaugeMetricFamily("jobengine_backfills", "Backfills that are not over, by status", labels=["status"])
    for status in ACTIVE:
        active.add_metric([status.value], work.backfills.get(status.value, 0))
    yield active
    yield GaugeMetricFamily("jobengine_batches_running", "Batches that a worker holds", value=work.running_batches)
    yield GaugeMetricFamily(
        "jobengine_sequencer_lag_seconds",
        "For how long the log that waits longest stands still",
        value=work.lag_seconds,
    )
    yield GaugeMetricFamily(
        "jobengine_audit_entries_waiting", "Audit entries without a place in their log", value=work.waiting_entries
    )
    yield GaugeMetricFamily(
        "jobengine_sequencer_orphan_shards", "Shards that nobody sequences", value=work.orphan_shards
    )
    yield GaugeMetricFamily(
        "jobengine_audit_logs_stuck", "Logs that cannot go on: somebody has changed them", value=work.stuck_logs
    )
