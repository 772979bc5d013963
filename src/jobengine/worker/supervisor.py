"""The embedded workers of a serving process: claim due batches tenant by tenant, and take back what is overdue."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Final, cast

import structlog

from jobengine.authority.tokens import EMBEDDED_WORKER, BatchAttempt
from jobengine.backfill.attempts import ClaimedBatch
from jobengine.bootstrap import Plane
from jobengine.errors import JobengineError
from jobengine.storage.batch_words import Claim
from jobengine.storage.batches import sweep
from jobengine.worker.command_handler import local_url
from jobengine.worker.link import Link
from jobengine.worker.ports import Workplace
from jobengine.worker.runner import BatchRunner

LOOK_EVERY: Final = timedelta(milliseconds=200)
GATHER: Final = timedelta(milliseconds=4)
AT_ONCE: Final = 4
"""Transactions of several tenants side by side."""
DENIED_FOR: Final = timedelta(milliseconds=500)
"""How long a tenant that got nothing, for its quota denies it, is not asked for; every question takes its lock."""

_log = structlog.get_logger()


class Supervisor:
    """Keeps up to *slots* handlers running in this process."""

    def __init__(self, plane: Plane, slots: int) -> None:
        self._plane = plane
        self._slots = slots
        self._runner = BatchRunner(workplace(plane))
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy: dict[str, str] = {}
        """The tenants of the batches whose handlers run; one that is only being reported holds no slot."""
        self._embedded = [name for name, job in plane.settings.job_types.items() if not job.is_external]
        self._last_tenant = ""
        self._due: list[str] = []
        self._look_at = 0.0
        self._denied_until: dict[str, float] = {}
        self._freed = asyncio.Event()
        self._looking = asyncio.Lock()
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._closed = False

    async def step(self) -> None:
        """Look once, when a slot is free or after a while: take back overdue batches, then hand out due ones."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._freed.wait(), LOOK_EVERY.total_seconds())
            # Batches that take no time end by the handful: one transaction for all of them, not one each.
            await asyncio.sleep(GATHER.total_seconds())
        self._freed.clear()
        async with self._looking:
            if not self._closed:
                await self._look()

    async def close(self) -> None:
        """Give the running batches back, which are tried again elsewhere, and end the waiting processes."""
        self._closed = True
        async with self._looking:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._runner.close()

    async def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        # Whose batches wait is asked of the database now and then, and not whenever one of thousands ends.
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY.total_seconds()
            await self._look_around()
        self._denied_until = {tenant: until for tenant, until in self._denied_until.items() if until > now}
        room = self._slots - len(self._busy)
        due = self._in_turn(tenant for tenant in self._due if tenant not in self._denied_until)[: max(room, 0)]
        if due:
            await asyncio.gather(*(_one(tenant, self._claim(tenant, room // len(due))) for tenant in due))

    async def _look_around(self) -> None:
        async with self._plane.database.system() as tx:
            found = await tx.all("system_find_batch_work", job_types=self._embedded)
        self._due = [row["tenant_id"] for row in found if row["due"]]
        await asyncio.gather(
            *(_one(row["tenant_id"], self._sweep(row["tenant_id"])) for row in found if row["overdue"])
        )

    def _in_turn(self, tenants: Iterable[str]) -> list[str]:
        # Whoever has the least here comes first; of equals, the tenant after the one served last.
        busy = Counter(self._busy.values())
        return sorted(tenants, key=lambda tenant: (busy[tenant], tenant <= self._last_tenant, tenant))

    async def _sweep(self, tenant_id: str) -> None:
        async with self._at_once, self._plane.database.transaction(tenant_id) as tx:
            await sweep(tx)

    async def _claim(self, tenant_id: str, most: int) -> None:
        asked = Claim("embedded", self._embedded, most, EMBEDDED_WORKER)
        async with self._at_once:
            batches = cast("list[ClaimedBatch]", await self._plane.batches.carry_out(tenant_id, asked))
        for batch in batches:
            self._busy[batch.batch_id] = tenant_id
            task = asyncio.create_task(self._run(batch), name=f"batch {batch.batch_id}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if batches:
            self._last_tenant = tenant_id
        if len(batches) == most:
            # Perhaps there is more, and what others left of their share is free.
            self._freed.set()
        if not batches:
            self._denied_until[tenant_id] = asyncio.get_running_loop().time() + DENIED_FOR.total_seconds()

    def _free(self, batch: ClaimedBatch) -> None:
        # Its tenant may have the next one at once: that is handed out after this one is reported, and together with it.
        if tenant_id := self._busy.pop(batch.batch_id, None):
            self._denied_until.pop(tenant_id, None)
            self._freed.set()

    async def _run(self, batch: ClaimedBatch) -> None:
        try:
            with self._plane.traces.working("batch.run", _told(batch)):
                line = Link(self._plane.database, self._plane.batches, batch)
                await self._runner.run(line, lambda: self._free(batch))
        except Exception:  # noqa: BLE001 - the lease runs out and the batch is handed out again
            _log.exception("batch.not_reported", batch_id=batch.batch_id)
        finally:
            self._free(batch)


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
