"""Group commit for batches: what workers of a tenant say and ask while a transaction runs goes into its next one."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from jobengine.errors import JobengineError, LostRace, Unavailable
from jobengine.storage.batch_words import Claim, Operation, Outcome, given_back
from jobengine.storage.batches import carry_out
from jobengine.storage.database import Database

MOST_IN_A_GROUP: Final = 128
MOST_WAITING_OF_A_TENANT: Final = 2_048


@dataclass(frozen=True, slots=True)
class _Waiting:
    operation: Operation
    outcome: asyncio.Future[Outcome]


def _nobody_waits(operation: Operation) -> _Waiting:
    return _Waiting(operation, asyncio.get_running_loop().create_future())


class BatchCommitter:
    """Carries out what all workers say: one transaction of a tenant at a time, several tenants side by side."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queues: dict[str, deque[_Waiting]] = {}
        self._serving: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Finish what waits."""
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def carry_out(self, tenant_id: str, operation: Operation) -> Outcome:
        """Return the outcome once it is durable; raises NotFound, LeaseLost, Unavailable.

        A full queue is refused with the code ``overloaded`` and costs nothing.
        """
        queue = self._queues.get(tenant_id)
        waiting = _Waiting(operation, asyncio.get_running_loop().create_future())
        if queue is None:
            self._queues[tenant_id] = deque([waiting])
            task = asyncio.create_task(self._serve(tenant_id), name=f"batches of {tenant_id}")
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)
        elif len(queue) < MOST_WAITING_OF_A_TENANT:
            queue.append(waiting)
        else:
            raise Unavailable("too many workers of this tenant wait", code="overloaded", retry_after_seconds=1)
        outcome = await waiting.outcome
        if isinstance(outcome, JobengineError):
            raise outcome
        return outcome

    async def _serve(self, tenant_id: str) -> None:
        queue = self._queues[tenant_id]
        # Let what was said in the same turn of the loop into the first group.
        await asyncio.sleep(0)
        while queue:
            group = [queue.popleft() for _ in range(min(len(queue), MOST_IN_A_GROUP))]
            # Whoever has gone away takes no batch with it, and need not be told that its own has ended.
            present = [item for item in group if not (isinstance(item.operation, Claim) and item.outcome.done())]
            if present:
                await self._commit(tenant_id, present)
        del self._queues[tenant_id]

    async def _commit(self, tenant_id: str, group: Sequence[_Waiting], *, again: bool = True) -> None:
        try:
            async with self._database.transaction(tenant_id) as tx:
                outcomes = await carry_out(tx, [waiting.operation for waiting in group])
        except LostRace as error:
            # Two transactions stood in each other's way; the second time this one waits for the other.
            await (self._commit(tenant_id, group, again=False) if again else self._one_by_one(tenant_id, group, error))
            return
        except Exception as error:  # noqa: BLE001 - one poisoned word must not fail its neighbours
            await self._one_by_one(tenant_id, group, error)
            return
        for waiting, outcome in zip(group, outcomes, strict=True):
            if not waiting.outcome.done():
                waiting.outcome.set_result(outcome)
            elif isinstance(outcome, list):
                # Whoever asked for them has gone meanwhile, and will not run them.
                words = [given_back(batch.batch_id, batch.fencing_token) for batch in outcome]
                self._queues[tenant_id].extend(map(_nobody_waits, words))

    async def _one_by_one(self, tenant_id: str, group: Sequence[_Waiting], error: Exception) -> None:
        if len(group) == 1 or isinstance(error, Unavailable):
            for waiting in group:
                if not waiting.outcome.done():
                    waiting.outcome.set_exception(error)
            return
        for waiting in group:
            await self._commit(tenant_id, [waiting])
