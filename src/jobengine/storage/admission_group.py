"""Many admissions of one tenant decided in one transaction, in their order, as if each came alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from jobengine.errors import JobengineError, LeaseLost, NotFound
from jobengine.quota.admission import Ask
from jobengine.storage.admission import RELEASE_REMEMBERED, AdmissionDesk, Answer, Lease, lease_of, open_desk
from jobengine.storage.database import Transaction


@dataclass(frozen=True, slots=True)
class Acquire:
    """Ask for slots."""

    ask: Ask
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


Operation: TypeAlias = Acquire | Renew | Release
Outcome: TypeAlias = Answer | Released | JobengineError


async def decide_group(tx: Transaction, operations: Sequence[Operation]) -> list[Outcome]:
    """Carry out *operations* in their order and return an outcome for each; one that is refused harms no other."""
    desk = await open_desk(tx, {item.ask.job_type for item in operations if isinstance(item, Acquire)})
    group = _Group(tx, desk)
    await group.load(operations)
    outcomes = [await group.carry_out(item) for item in operations]
    await group.write()
    return outcomes


class _Group:
    """The leases that a group names, as its operations leave them."""

    def __init__(self, tx: Transaction, desk: AdmissionDesk) -> None:
        self._tx = tx
        self._desk = desk
        self._leases: dict[str, dict[str, Any]] = {}
        self._extended: dict[str, Mapping[str, Any]] = {}
        self._ended: list[str] = []

    async def load(self, operations: Sequence[Operation]) -> None:
        named = {item.lease_id for item in operations if isinstance(item, Renew | Release)}
        if named:
            rows = await self._tx.all("lease_get_many", lease_ids=sorted(named))
            self._leases = {str(row["lease_id"]): dict(row) for row in rows}
            await self._desk.open_accounts({row["job_type"] for row in rows})
        await self._desk.open_jobs([item.ask for item in operations if isinstance(item, Acquire)])

    async def carry_out(self, item: Operation) -> Outcome:
        try:
            match item:
                case Acquire(ask, client_id):
                    return await self._desk.answer(ask, client_id)
                case Renew():
                    return self._renew(item)
                case Release():
                    return self._release(item)
        except JobengineError as error:
            return error

    async def write(self) -> None:
        if self._extended:
            rows = self._extended
            await self._tx.run(
                "lease_extend_many",
                lease_ids=list(rows),
                ends=[row["expires_at"] for row in rows.values()],
                seconds=[row["lease_seconds"] for row in rows.values()],
            )
        if self._ended:
            await self._tx.run("lease_end_many", lease_ids=self._ended, now=self._desk.now)
        await self._desk.write()

    def _renew(self, item: Renew) -> Lease:
        row = self._held(item.lease_id, item.fencing_token)
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
