"""Group commit: what arrives while a tenant's transaction runs goes into its next one; durable before the answer."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import psycopg

from jobengine.errors import JobengineError, LostRace, Unavailable
from jobengine.metrics import GROUP_SIZE
from jobengine.storage.admission_group import Operation, Outcome, decide_group
from jobengine.storage.database import Database

MOST_IN_A_GROUP: Final = 256
MOST_WAITING: Final = 4_096
MOST_WAITING_OF_A_TENANT: Final = 2_048


@dataclass(frozen=True, slots=True)
class _Waiting:
    operation: Operation
    outcome: asyncio.Future[Outcome]


class AdmissionCommitter:
    """Carries out admissions of all tenants: one transaction of a tenant at a time, several tenants side by side."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queues: dict[str, deque[_Waiting]] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._waiting = 0

    async def carry_out(self, tenant_id: str, operation: Operation) -> Outcome:
        """Return the outcome once it is durable; raises what the operation was refused with, and Unavailable.

        A full queue is refused with the code ``overloaded`` and costs nothing.
        """
        queue = self._queues.get(tenant_id)
        if self._waiting >= MOST_WAITING or (queue is not None and len(queue) >= MOST_WAITING_OF_A_TENANT):
            raise Unavailable("too many admissions wait", code="overloaded", retry_after_seconds=1)
        waiting = _Waiting(operation, asyncio.get_running_loop().create_future())
        self._waiting += 1
        if queue is None:
            self._queues[tenant_id] = deque([waiting])
            task = asyncio.create_task(self._serve(tenant_id), name=f"admissions of {tenant_id}")
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)
        else:
            queue.append(waiting)
        outcome = await waiting.outcome
        if isinstance(outcome, JobengineError):
            raise outcome
        return outcome

    async def close(self) -> None:
        """Finish what waits."""
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, tenant_id: str) -> None:
        queue = self._queues[tenant_id]
        # Let requests that arrived in the same turn of the loop into the first group.
        await asyncio.sleep(0)
        while queue:
            group = [queue.popleft() for _ in range(min(len(queue), MOST_IN_A_GROUP))]
            self._waiting -= len(group)
            # Nobody waits any more for the answer to a request whose caller has gone: it takes nothing.
            if present := [waiting for waiting in group if not waiting.outcome.done()]:
                GROUP_SIZE.observe(len(present))
                await self._commit(tenant_id, present)
        del self._queues[tenant_id]

    async def _commit(self, tenant_id: str, group: Sequence[_Waiting], *, again: bool = True) -> None:
        try:
            async with self._database.transaction(tenant_id) as tx:
                outcomes = await decide_group(tx, [waiting.operation for waiting in group])
        except LostRace as error:
            # Two transactions stood in each other's way; the second time this one waits for the other.
            await (self._commit(tenant_id, group, again=False) if again else self._one_by_one(tenant_id, group, error))
            return
        except Exception as error:  # noqa: BLE001 - one poisoned request must not fail its neighbours
            await self._one_by_one(tenant_id, group, error)
            return
        for waiting, outcome in zip(group, outcomes, strict=True):
            if not waiting.outcome.done():
                waiting.outcome.set_result(outcome)

    async def _one_by_one(self, tenant_id: str, group: Sequence[_Waiting], error: Exception) -> None:
        if len(group) == 1 or isinstance(error, Unavailable | psycopg.OperationalError):
            for waiting in group:
                if not waiting.outcome.done():
                    waiting.outcome.set_exception(error)
            return
        for waiting in group:
            await self._commit(tenant_id, [waiting])
