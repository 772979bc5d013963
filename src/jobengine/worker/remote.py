"""A worker without a database: claims batches over HTTP, by itself or when it is woken, and runs them here."""

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from jobengine.backfill.attempts import ClaimedBatch
from jobengine.errors import JobengineError
from jobengine.worker.calls import Calls
from jobengine.worker.errand import Errand
from jobengine.worker.http_line import HttpLine, batch_of
from jobengine.worker.ports import Workplace
from jobengine.worker.runner import BatchRunner

LOOK_EVERY_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 10.0
GO_ON_SECONDS: Final = 5.0
"""For how long one wake-up may go on to the next batch; then other tenants' wake-ups get their turn."""
MOST_AT_ONCE: Final = 64
FINISH_SECONDS: Final = 10.0
"""How long a worker that leaves lets its batches come to their ends before it gives them back."""

_log = structlog.get_logger()


class RemoteWorker:
    """Runs batches of *errand*; made and used inside one event loop."""

    def __init__(self, errand: Errand) -> None:
        self._errand = errand
        self._calls = Calls(errand.url, errand.client_id, errand.secret)
        self._runner = BatchRunner(Workplace(errand.handlers, errand.url, self._token))
        self._running: set[asyncio.Task[None]] = set()
        self._leaving = asyncio.Event()

    async def wake(self, tenant_id: str, job_type: str) -> None:
        """Run what there is of *job_type* for a tenant, one batch after the other, for a while; often that is nothing.

        Raises Forbidden for a tenant that is not the client's.
        """
        if job_type not in self._errand.handlers or self._errand.tenant_id not in {"", tenant_id}:
            _log.warning("wake_up.not_ours", tenant_id=tenant_id, job_type=job_type)
            return
        clock = asyncio.get_running_loop().time
        until = clock() + GO_ON_SECONDS
        while not self._leaving.is_set() and clock() < until:
            batches = await self._claim(tenant_id, [job_type], 1)
            if not batches:
                return
            await asyncio.wait({self._start(batch) for batch in batches})

    async def poll(self, slots: int) -> None:
        """Keep up to *slots* batches running, until somebody calls `leave`."""
        pause = LOOK_EVERY_SECONDS
        while not self._leaving.is_set():
            try:
                free = min(slots - len(self._running), MOST_AT_ONCE)
                found = await self._claim(self._errand.tenant_id, list(self._errand.handlers), free) if free else []
                pause = LOOK_EVERY_SECONDS
            except JobengineError as error:
                _log.warning("worker.not_answered", error=error.detail)
                found, pause = list[ClaimedBatch](), min(2 * pause, LONGEST_PAUSE_SECONDS)
            for batch in found:
                self._start(batch)
            if not found:
                await self._anything(pause)

    async def leave(self) -> None:
        """Take no more batches; those that do not end within 10 s are given back. Nothing is left behind."""
        self._leaving.set()
        if self._running:
            await asyncio.wait(self._running, timeout=FINISH_SECONDS)
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._runner.close()
        await self._calls.close()

    async def _anything(self, seconds: float) -> None:
        left = asyncio.create_task(self._leaving.wait())
        await asyncio.wait({left, *self._running}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        left.cancel()

    async def _claim(self, tenant_id: str, job_types: Sequence[str], most: int) -> list[ClaimedBatch]:
        answer = await self._calls.post(tenant_id, "/batches/claim", {"job_types": job_types, "max": most})
        seconds = self._errand.lease_seconds
        return [batch_of(claimed, tenant_id, seconds[claimed["job_type"]]) for claimed in answer["batches"]]

    def _start(self, batch: ClaimedBatch) -> "asyncio.Task[None]":
        task = asyncio.create_task(self._run(batch), name=f"batch {batch.batch_id}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _run(self, batch: ClaimedBatch) -> None:
        try:
            await self._runner.run(HttpLine(self._calls, batch))
        except Exception:  # noqa: BLE001 - the lease runs out and the batch is handed out again
            _log.exception("batch.not_reported", batch_id=batch.batch_id)

    async def _token(self, batch: ClaimedBatch) -> str:
        return await HttpLine(self._calls, batch).token()
