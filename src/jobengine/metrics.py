"""What the service counts about itself, under names that begin with ``jobengine_``; the edges count, the core does not.

Counters of all processes of one server add up: a process counts in memory, workers of one supervisor in shared files.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, cast

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

OWN: Final = "jobengine_"
OF_TENANTS: Final = "jobengine_tenant_"
"""Metrics with a tenant label, which only the private port shows, begin like this."""

_SHARED: Final = "PROMETHEUS_MULTIPROC_DIR"
_FOLDER: Final = "jobengine-metrics-"
_LOCK: Final = "in-use"
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)

# When a counter began is of no use to Prometheus, and doubles what it has to keep.
disable_created_metrics()
REGISTRY: Final = CollectorRegistry()

HTTP_REQUESTS = Counter(
    "jobengine_http_requests",
    "Requests by route template, method and status",
    ["route", "method", "status"],
    registry=REGISTRY,
)
HTTP_SECONDS = Histogram(
    "jobengine_http_request_seconds",
    "Seconds from a request to the beginning of its answer",
    ["route", "method"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
PROBLEMS_TOLD = Counter("jobengine_problems", "Problem documents answered, by code", ["code"], registry=REGISTRY)
# Without the cause: whoever reads it would learn which client ids exist, which the answers keep to themselves.
TOKEN_REQUESTS = Counter(
    "jobengine_token_requests", "Token requests granted, or refused by error", ["outcome"], registry=REGISTRY
)
ADMISSIONS = Counter("jobengine_admissions", "Admission requests by outcome", ["outcome"], registry=REGISTRY)
DENIALS = Counter(
    "jobengine_admission_denials", "Denied admissions by each limit that stood in the way", ["limit"], registry=REGISTRY
)
GROUP_SIZE = Histogram(
    "jobengine_admission_group_size",
    "Admission operations committed in one transaction",
    buckets=_SIZES,
    registry=REGISTRY,
)
BATCH_ATTEMPTS = Counter(
    "jobengine_batch_attempts_ended",
    "Ended attempts at batches, by what the batch became and why",
    ["outcome", "cause"],
    registry=REGISTRY,
)
EVENTS = Counter("jobengine_events", "Events of completed batches, by outcome", ["outcome"], registry=REGISTRY)
ENTRIES = Counter(
    "jobengine_audit_entries", "Audit entries taken in, by action and outcome", ["action", "outcome"], registry=REGISTRY
)
SEQUENCED = Counter("jobengine_audit_entries_sequenced", "Audit entries given their place", registry=REGISTRY)
CONNECTIONS = Gauge(
    "jobengine_database_connections",
    "Connections of the pools, by pool and state",
    ["pool", "state"],
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
WAITING = Gauge(
    "jobengine_database_waiting",
    "Transactions that wait for a connection, by pool",
    ["pool"],
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
WAKE_UPS = Counter(
    "jobengine_wake_ups", "Wake-ups sent to workers over the broker, by job type", ["job_type"], registry=REGISTRY
)
WAKE_UPS_WAITING = Gauge(
    "jobengine_wake_ups_waiting",
    "Wake-ups that lie in the broker",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
RELAY_LAG = Gauge(
    "jobengine_relay_lag_seconds",
    "For how long no wake-up could be sent, because the broker or the database did not answer",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
TENANT_ADMISSIONS = Counter(
    "jobengine_tenant_admissions", "Admission requests by tenant and outcome", ["tenant", "outcome"], registry=REGISTRY
)
TENANT_DENIALS = Counter(
    "jobengine_tenant_admission_denials",
    "Denied admissions by tenant and each limit that stood in the way",
    ["tenant", "limit"],
    registry=REGISTRY,
)
ProcessCollector(registry=REGISTRY)


def note_admissions(outcomes: Mapping[str, int], limits: Mapping[str, int], *, tenant_id: str | None) -> None:
    """Count answered admissions and the *limits* that denied some of them; *tenant_id* None leaves the tenant out."""
    for outcome, times in outcomes.items():
        ADMISSIONS.labels(outcome).inc(times)
        if tenant_id is not None:
            TENANT_ADMISSIONS.labels(tenant_id, outcome).inc(times)
    for limit, times in limits.items():
        DENIALS.labels(limit).inc(times)
        if tenant_id is not None:
            TENANT_DENIALS.labels(tenant_id, limit).inc(times)


def note_completed(processed: int, duplicates: int, failed: int) -> None:
    """Count one completed batch and its events."""
    BATCH_ATTEMPTS.labels("succeeded", "completed").inc()
    EVENTS.labels("processed").inc(processed)
    EVENTS.labels("duplicates").inc(duplicates)
    EVENTS.labels("failed").inc(failed)


def exposition(found: Iterable[Metric] = (), *, tenants: bool = False) -> bytes:
    """Return everything counted, with what was *found* for this answer, in the text format of Prometheus.

    Metrics of single *tenants* are left out unless asked for.
    """
    return generate_latest(_Shown(list(found), tenants=tenants))


@contextmanager
def several_processes() -> Generator[None]:
    """Let processes that are started inside the block count together with each other, in a private folder."""
    before = os.environ.get(_SHARED)
    _clear_away()
    with tempfile.TemporaryDirectory(prefix=_FOLDER) as folder, _living_in(Path(folder)):
        os.environ[_SHARED] = folder
        try:
            yield
        finally:
            os.environ.pop(_SHARED)
            if before is not None:
                os.environ[_SHARED] = before


@contextmanager
def _living_in(folder: Path) -> Generator[None]:
    unlocked = folder / "unlocked"
    with unlocked.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        # Whoever sees it under this name finds it locked; the kernel unlocks it even for a process that is killed.
        unlocked.rename(folder / _LOCK)
        yield


def _clear_away() -> None:
    """Remove what killed supervisors of this user left behind."""
    for lock in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*/{_LOCK}"):
        with suppress(OSError), lock.open("rb") as file:
            if lock.parent.is_symlink() or os.fstat(file.fileno()).st_uid != os.getuid():
                continue
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)


def forget_process(pid: int) -> None:
    """Take a lost process out of the gauges; what it has counted stays counted."""
    if folder := os.environ.get(_SHARED):
        for file in Path(folder).glob(f"gauge_live*_{pid}.db"):
            file.unlink(missing_ok=True)


class _Shown(CollectorRegistry):
    """What one answer shows: ours, of this process or of all, and what was found for it."""

    def __init__(self, found: list[Metric], *, tenants: bool) -> None:
        super().__init__()
        self._found = found
        self._tenants = tenants

    def collect(self) -> Iterator[Metric]:
        folder = os.environ.get(_SHARED)
        source: Collector = MultiProcessCollector(None, path=folder) if folder else REGISTRY
        counted = cast("Iterable[Metric]", source.collect())
        for metric in (*counted, *self._found):
            # A handler's own metrics may lie in the same folder.
            ours = folder is None or metric.name.startswith(OWN)
            if ours and (self._tenants or not metric.name.startswith(OF_TENANTS)):
                yield metric
