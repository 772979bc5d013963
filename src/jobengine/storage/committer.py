"""Group commit: what arrives while a tenant's transaction runs goes into its next one; durable before the answer.

Tenants take turns: each has at most one transaction at a time, a group of bounded size, and goes behind all others
that wait once its group is done. Who floods the service waits for himself.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import psycopg

from jobengine.errors import JobengineError, LostRace, Unavailable
from jobengine.metrics import GROUP_SIZE
from jobengine.storage.admission_group import Operation, Outcome, decide_group, group_reads, weight
from jobengine.storage.database import Database

MOST_AT_ONCE: Final = 6
"""Transactions at a time, of all tenants: half of the connections, so that other requests find one too."""
MOST_IN_A_GROUP: Final = 256
"""Decisions of a group; a single call that asks for more is a group of its own."""
ANSWERS_IN_A_ROW: Final = 8
"""Answers written before the loop looks after others again: a group's answers bring as many new questions at once."""
MOST_WAITING: Final = 16_384
MOST_WAITING_OF_A_TENANT: Final = 8_192


@dataclass(frozen=True, slots=True)
class _Waiting:
    operation: Operation
    outcome: asyncio.Future[Outcome]
    weight: int


@dataclass(slots=True)
class _Line:
    """The operations of one tenant that wait, and the decisions they ask for."""

    waiting: deque[_Waiting] = field(default_factory=deque[_Waiting])
    weight: int = 0

    def take(self) -> list[_Waiting]:
        """Take the next group out: as many as fit, and one in any case."""
        group: list[_Waiting] = []
        room = MOST_IN_A_GROUP
        while self.waiting and (not group or self.waiting[0].weight <= room):
            group.append(self.waiting.popleft())
            room -= group[-1].weight
        self.weight -= sum(item.weight for item in group)
        return group


class AdmissionCommitter:
    """Carries out admissions of all tenants: one transaction of a tenant at a time, several tenants side by side."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lines: dict[str, _Line] = {}
        # Tenants whose line waits for a transaction, in the order of their turns.
        self._turns: deque[str] = deque()
        self._serving: set[asyncio.Task[None]] = set()
        self._weight = 0

    async def carry_out(self, tenant_id: str, operation: Operation) -> Outcome:
        """Return the outcome once it is durable; raises what the operation was refused with, and Unavailable.

        A full queue is refused with the code ``overloaded`` and costs nothing.
        """
        line, heavy = self._lines.get(tenant_id), weight(operation)
        ahead = line.weight if line else 0
        if self._weight + heavy > MOST_WAITING or ahead + heavy > MOST_WAITING_OF_A_TENANT:
            raise Unavailable("too many admissions wait", code="overloaded", retry_after_seconds=1)
        waiting = _Waiting(operation, asyncio.get_running_loop().create_future(), heavy)
        if line is None:
            line = self._lines[tenant_id] = _Line()
            self._turns.append(tenant_id)
            self._serve_more()
        line.waiting.append(waiting)
        line.weight += heavy
        self._weight += heavy
        outcome = await waiting.outcome
        if isinstance(outcome, JobengineError):
            raise outcome
        return outcome

    async def close(self) -> None:
        """Finish what waits."""
        while self._serving:
            await asyncio.gather(*self._serving, return_exceptions=True)

    def _serve_more(self) -> None:
        if len(self._serving) < MOST_AT_ONCE:
            task = asyncio.create_task(self._serve(), name="admissions")
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _serve(self) -> None:
        # Let requests that arrived in the same turn of the loop into the first group.
        await asyncio.sleep(0)
        while self._turns:
            tenant_id = self._turns.popleft()
            line = self._lines[tenant_id]
            group = line.take()
            self._weight -= sum(item.weight for item in group)
            # Nobody waits any more for the answer to a request whose caller has gone: it takes nothing.
            if present := [item for item in group if not item.outcome.done()]:
                GROUP_SIZE.observe(sum(item.weight for item in present))
                await self._commit(tenant_id, present)
            if line.waiting:
                self._turns.append(tenant_id)
            else:
                del self._lines[tenant_id]

    async def _commit(self, tenant_id: str, group: Sequence[_Waiting], *, again: bool = True) -> None:
        operations = [item.operation for item in group]
        try:
            async with self._database.transaction(tenant_id, *group_reads(operations)) as tx:
                outcomes = await decide_group(tx, operations)
        except LostRace as error:
            # Two transactions stood in each other's way; the second time this one waits for the other.
            await (self._commit(tenant_id, group, again=False) if again else self._in_halves(tenant_id, group, error))
            return
        except Exception as error:  # noqa: BLE001 - one poisoned request must not fail its neighbours
            await self._in_halves(tenant_id, group, error)
            return
        for told, (item, outcome) in enumerate(zip(group, outcomes, strict=True), 1):
            if not item.outcome.done():
                item.outcome.set_result(outcome)
            if told % ANSWERS_IN_A_ROW == 0:
                await asyncio.sleep(0)

    async def _in_halves(self, tenant_id: str, group: Sequence[_Waiting], error: Exception) -> None:
        if len(group) == 1 or isinstance(error, Unavailable | psycopg.OperationalError):
            for item in group:
                if not item.outcome.done():
                    item.outcome.set_exception(error)
            return
        middle = len(group) // 2
        await self._commit(tenant_id, group[:middle])
        await self._commit(tenant_id, group[middle:])
