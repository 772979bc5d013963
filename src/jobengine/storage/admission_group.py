"""Many admissions of one tenant decided in one transaction, in their order, as if each came alone."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias

from jobengine.errors import Conflict, JobengineError, LeaseLost, NotFound
from jobengine.quota.admission import Ask
from jobengine.storage.admission import (
    RELEASE_REMEMBERED,
    AdmissionDesk,
    Answer,
    Lease,
    desk_reads,
    lease_of,
    open_desk_with,
)
from jobengine.storage.arrays import number_array, plain_array
from jobengine.storage.database import Asked, Transaction

# So many decisions take about a millisecond; then the other tenants' requests have their turn.
DECISIONS_IN_A_ROW: Final = 64


@dataclass(frozen=True, slots=True)
class Acquire:
    """Ask for slots."""

    ask: Ask
    client_id: str


@dataclass(frozen=True, slots=True)
class AcquireMany:
    """Ask for slots many times over: all is decided, or nothing where one ask contradicts its job's lease."""

    asks: tuple[Ask, ...]
    client_id: str


@dataclass(frozen=True, slots=True)
class Renew:
    """Keep a lease for *lease_seconds* from now, None for as long as it was asked for."""

    lease_id: str
    fencing_token: int
    lease_seconds: int | None


@dataclass(frozen=True, slots=True)
class Release:
    """Give a lease back."""

    lease_id: str
    fencing_token: int


@dataclass(frozen=True, slots=True)
class Released:
    """The lease is over, by this release or by the same one before."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers to many asks, in their order."""

    items: Sequence[Answer]


Operation: TypeAlias = Acquire | AcquireMany | Renew | Release
Outcome: TypeAlias = Answer | Answers | Released | JobengineError


def weight(operation: Operation) -> int:
    """Return how many decisions *operation* asks for."""
    return max(1, len(operation.asks)) if isinstance(operation, AcquireMany) else 1


def group_reads(operations: Sequence[Operation]) -> list[Asked]:
    """Return what `decide_group` asks first; the transaction may begin with it."""
    asks = [ask for item in operations for ask in _asks(item)]
    job_ids = [ask.job_id for ask in asks if ask.job_id is not None]
    leases = sorted({item.lease_id for item in operations if isinstance(item, Renew | Release)})
    return desk_reads({ask.job_type for ask in asks}, job_ids=job_ids, lease_ids=leases)


async def decide_group(tx: Transaction, operations: Sequence[Operation]) -> list[Outcome]:
    """Carry out *operations* in their order and return an outcome for each; one that is refused harms no other.

    What they change is stored with the commit.
    """
    desk, leases = await open_desk_with(tx, group_reads(operations))
    group = _Group(desk, leases)
    tx.with_commit(group.pending)
    return [await group.carry_out(item) for item in operations]


def _asks(operation: Operation) -> tuple[Ask, ...]:
    match operation:
        case Acquire(ask):
            return (ask,)
        case AcquireMany(asks):
            return asks
        case Renew() | Release():
            return ()


class _Group:
    """The leases that a group names, as its operations leave them."""

    def __init__(self, desk: AdmissionDesk, leases: Sequence[Mapping[str, Any]]) -> None:
        self._desk = desk
        self._leases = {str(row["lease_id"]): dict(row) for row in leases}
        self._extended: dict[str, Mapping[str, Any]] = {}
        self._ended: list[str] = []
        self._decided = 0

    async def carry_out(self, item: Operation) -> Outcome:
        try:
            match item:
                case Acquire(ask, client_id):
                    return await self._answer(ask, client_id)
                case AcquireMany():
                    return await self._answer_all(item)
                case Renew():
                    return self._renew(item)
                case Release():
                    return self._release(item)
        except JobengineError as error:
            return error

    def pending(self) -> list[Asked]:
        writes: list[Asked] = []
        if self._extended:
            rows = list(self._extended.values())
            moved = {
                "lease_ids": plain_array(self._extended),
                "ends": [row["expires_at"] for row in rows],
                "seconds": number_array(row["lease_seconds"] for row in rows),
            }
            writes.append(("lease_extend_many", moved))
        if self._ended:
            writes.append(("lease_end_many", {"lease_ids": plain_array(self._ended), "now": self._desk.now}))
        self._extended, self._ended = {}, []
        return writes

    async def _answer(self, ask: Ask, client_id: str) -> Answer:
        self._decided += 1
        if self._decided % DECISIONS_IN_A_ROW == 0:
            await asyncio.sleep(0)
        return await self._desk.answer(ask, client_id)

    async def _answer_all(self, item: AcquireMany) -> Answers:
        mark = self._desk.mark()
        answers: list[Answer] = []
        for index, ask in enumerate(item.asks):
            try:
                answers.append(await self._answer(ask, item.client_id))
            except Conflict as error:
                self._desk.go_back(mark)
                raise Conflict(f"requests[{index}]: {error.detail}", code=error.problem_code) from None
        return Answers(answers)

    def _renew(self, item: Renew) -> Lease:
        row = self._held(item.lease_id, item.fencing_token)
        if row["drained"]:
            raise LeaseLost("the limit drains: leases above it are not renewed")
        seconds = item.lease_seconds or row["lease_seconds"]
        row |= {"lease_seconds": seconds, "expires_at": self._desk.now + timedelta(seconds=seconds)}
        self._extended[item.lease_id] = row
        lease = lease_of(row)
        self._desk.move(lease)
        return lease

    def _release(self, item: Release) -> Released:
        row = self._known(item.lease_id)
        if row["ending"] == "released" and row["fencing_token"] == item.fencing_token:
            return self._released_before(row["ended_at"])
        row = self._held(item.lease_id, item.fencing_token)
        row |= {"ended_at": self._desk.now, "ending": "released"}
        self._ended.append(item.lease_id)
        self._desk.end(row)
        return Released()

    def _released_before(self, ended_at: datetime) -> Released:
        if ended_at <= self._desk.now - RELEASE_REMEMBERED:
            raise NotFound("there is no such lease")
        return Released()

    def _held(self, lease_id: str, fencing_token: int) -> dict[str, Any]:
        row = self._known(lease_id)
        if row["ended_at"] is not None or row["fencing_token"] != fencing_token:
            raise LeaseLost("the lease is over, or this fencing token is not its own")
        return row

    def _known(self, lease_id: str) -> dict[str, Any]:
        if lease_id not in self._leases:
            raise NotFound("there is no such lease")
        return self._leases[lease_id]
