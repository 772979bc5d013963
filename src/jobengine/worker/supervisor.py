"""The embedded workers of a serving process: claim due batches tenant by tenant, and take back what is overdue."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Final

import structlog

from jobengine.authority.tokens import EMBEDDED_WORKER, BatchAttempt
from jobengine.backfill.attempts import ClaimedBatch
from jobengine.bootstrap import Plane
from jobengine.errors import JobengineError
from jobengine.storage.batches import claim, sweep
from jobengine.worker.command_handler import local_url
from jobengine.worker.link import Link
from jobengine.worker.ports import Workplace
from jobengine.worker.runner import BatchRunner

LOOK_EVERY: Final = timedelta(milliseconds=200)
SWEEPS_AT_ONCE: Final = 4
DENIED_FOR: Final = timedelta(milliseconds=500)
"""How long a tenant that got nothing, for its quota denies it, is not asked for; every question takes its lock."""

_log = structlog.get_logger()


class Supervisor:
    """Keeps up to *slots* batches running in this process."""

    def __init__(self, plane: Plane, slots: int) -> None:
        self._plane = plane
        self._slots = slots
        self._runner = BatchRunner(workplace(plane))
        self._running: dict[asyncio.Task[None], str] = {}
        self._embedded = [name for name, job in plane.settings.job_types.items() if not job.is_external]
        self._last_tenant = ""
        self._denied_until: dict[str, float] = {}
        self._ended = asyncio.Event()
        self._looking = asyncio.Lock()
        self._sweeping = asyncio.Semaphore(SWEEPS_AT_ONCE)
        self._closed = False

    async def step(self) -> None:
        """Look once, when a batch has ended or after a while: take back overdue batches, then hand out due ones."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), LOOK_EVERY.total_seconds())
        self._ended.clear()
        async with self._looking:
            if not self._closed:
                await self._look()

    async def close(self) -> None:
        """Give the running batches back, which are tried again elsewhere, and end the waiting processes."""
        self._closed = True
        async with self._looking:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
            await self._runner.close()

    async def _look(self) -> None:
        async with self._plane.database.system() as tx:
            found = await tx.all("system_find_batch_work", job_types=self._embedded)
        await asyncio.gather(*(self._sweep(row["tenant_id"]) for row in found if row["overdue"]))
        now = asyncio.get_running_loop().time()
        self._denied_until = {tenant: until for tenant, until in self._denied_until.items() if until > now}
        due = self._in_turn(
            row["tenant_id"] for row in found if row["due"] and row["tenant_id"] not in self._denied_until
        )
        for tenant_id in due:
            room = self._slots - len(self._running)
            if room <= 0:
                return
            await _one(tenant_id, self._claim(tenant_id, max(1, room // len(due))))

    def _in_turn(self, tenants: Iterable[str]) -> list[str]:
        # Whoever has the least here comes first; of equals, the tenant after the one served last.
        busy = Counter(self._running.values())
        return sorted(tenants, key=lambda tenant: (busy[tenant], tenant <= self._last_tenant, tenant))

    async def _sweep(self, tenant_id: str) -> None:
        async def take_back() -> None:
            async with self._sweeping, self._plane.database.transaction(tenant_id) as tx:
                await sweep(tx)

        await _one(tenant_id, take_back())

    async def _claim(self, tenant_id: str, most: int) -> None:
        async with self._plane.database.transaction(tenant_id) as tx:
            batches = await claim(tx, "embedded", self._embedded, most, EMBEDDED_WORKER)
        if batches:
            self._last_tenant = tenant_id
        else:
            self._denied_until[tenant_id] = asyncio.get_running_loop().time() + DENIED_FOR.total_seconds()
        for batch in batches:
            task = asyncio.create_task(self._run(batch), name=f"batch {batch.batch_id}")
            self._running[task] = tenant_id
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        # What it held is free: its tenant may have the next one at once.
        self._denied_until.pop(self._running.pop(task), None)
        self._ended.set()

    async def _run(self, batch: ClaimedBatch) -> None:
        try:
            with self._plane.traces.working("batch.run", _told(batch)):
                await self._runner.run(Link(self._plane.database, batch))
        except Exception:  # noqa: BLE001 - the lease runs out and the batch is handed out again
            _log.exception("batch.not_reported", batch_id=batch.batch_id)


def workplace(plane: Plane) -> Workplace:
    """Return how the batches of a serving process are run."""
    settings = plane.settings

    async def token(batch: ClaimedBatch) -> str:
        return plane.token_for_batch(BatchAttempt(batch.tenant_id, batch.batch_id, batch.fencing_token))

    handlers = {name: job.handler for name, job in settings.job_types.items()}
    return Workplace(handlers, local_url(settings.host, settings.port), token, plane.traces)


def _told(batch: ClaimedBatch) -> Mapping[str, str | int]:
    return {
        "jobengine.tenant": batch.tenant_id,
        "jobengine.backfill_id": batch.backfill_id,
        "jobengine.batch_id": batch.batch_id,
        "jobengine.job_type": batch.job_type,
        "jobengine.attempt": batch.attempt,
    }


async def _one(tenant_id: str, work: Awaitable[None]) -> None:
    """Let what goes wrong for one tenant be its own affair: the others come next."""
    try:
        await work
    except JobengineError as error:
        _log.warning("batches.failed", tenant_id=tenant_id, error=str(error))
    except Exception:  # noqa: BLE001 - one tenant's surprise must not keep the others from their turn
        _log.exception("batches.failed", tenant_id=tenant_id)
