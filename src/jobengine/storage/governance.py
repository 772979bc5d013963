"""Pools and waiting changes: rows ↔ values."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from jobengine.audit.act import Act
from jobengine.errors import NotFound
from jobengine.governance.apply import Step
from jobengine.governance.change import ChangeStatus, QuotaChange
from jobengine.governance.model import Allocation, AllocationStatus, Apply, Member, Pool, StrategyName
from jobengine.governance.ports import Standing
from jobengine.quota.model import limits_json, limits_of
from jobengine.quota.policy import Policy
from jobengine.storage.database import Database, Transaction
from jobengine.storage.quota import find_policy, some_limits_of


@dataclass(frozen=True, slots=True)
class SystemStandings:
    """The Standings of all tenants, read in a transaction of its own."""

    database: Database

    async def read(self, job_type: str, tenant_ids: Sequence[str]) -> list[Standing]:
        """Return what each of them has, in no particular order."""
        async with self.database.system() as tx:
            rows = await tx.all("system_read_standings", job_type=job_type, tenants=list(tenant_ids))
        return [
            Standing(
                row["tenant_id"],
                row["known"],
                None if row["quota_id"] is None else str(row["quota_id"]),
                row["max_active"],
                row["version"],
                row["active"],
                row["overridden"],
            )
            for row in rows
        ]


@dataclass(frozen=True, slots=True)
class PostgresAllocations:
    """The AllocationRepository of one transaction of the platform, in which *act* is done."""

    tx: Transaction
    act: Act

    async def policy(self) -> Policy:
        """Return the platform's policy."""
        return await find_policy(self.tx)

    async def find(self, job_type: str) -> Allocation | None:
        """Return the pool of *job_type*, locked."""
        row = await self.tx.find("allocation_lock", job_type=job_type)
        return None if row is None else (await _allocations(self.tx, [row]))[0]

    async def save(self, allocation: Allocation) -> None:
        """Store a pool in the place of the one before it."""
        pool = allocation.pool
        shared: dict[str, Any] = {
            "job_type": pool.job_type,
            "capacity": pool.capacity,
            "strategy": pool.strategy.value,
        }
        await self.tx.run(
            "allocation_save",
            **shared,
            status=allocation.status.value,
            version=allocation.version,
            created_at=allocation.created_at,
            updated_at=allocation.updated_at,
            updated_by=allocation.updated_by,
            entry_id=allocation.entry_id,
        )
        members = [member.as_json() for member in pool.members]
        columns = {name: [member[name] for member in members] for name in members[0]}
        await self.tx.run("allocation_drop_members", job_type=pool.job_type)
        await self.tx.run("allocation_add_members", **shared, member=columns.pop("tenant_id"), **columns)

    async def delete(self, job_type: str) -> None:
        """Take a pool away."""
        await self.tx.run("allocation_delete", job_type=job_type)

    async def start(self, allocation: Allocation, apply: Apply, steps: Sequence[Step]) -> Apply:
        """Store what is to be done, and return it with its epoch."""
        job_type, principal = allocation.pool.job_type, self.act.principal
        row = await self.tx.one(
            "allocation_start",
            job_type=job_type,
            plan_token=apply.plan_token,
            started_at=apply.started_at,
            started_by=apply.started_by,
            client_id=principal.client_id,
            token_id=principal.token_id,
            trace_id=self.act.trace_id,
            entry_id=apply.entry_id,
        )
        await self.tx.run("allocation_drop_steps", job_type=job_type)
        await self.tx.run(
            "allocation_add_steps",
            job_type=job_type,
            epoch=row["epoch"],
            member=[step.tenant_id for step in steps],
            quota_id=[step.quota_id for step in steps],
            from_active=[step.from_active for step in steps],
            to_active=[step.to_active for step in steps],
        )
        return replace(apply, epoch=row["epoch"])


async def read_allocations(
    tx: Transaction, *, job_type: str | None = None, after: str | None = None, most: int = 1
) -> list[Allocation]:
    """Return pools by job type, after the job type *after*; *tx* is the platform's."""
    return await _allocations(tx, await tx.all("allocation_list", job_type=job_type, after=after, most=most))


async def _allocations(tx: Transaction, rows: Sequence[Mapping[str, Any]]) -> list[Allocation]:
    names = [row["job_type"] for row in rows]
    members: defaultdict[str, list[Member]] = defaultdict(list)
    for row in await tx.all("allocation_members", job_types=names) if names else []:
        found = {name: row[name] for name in ("weight", "priority", "reserved", "max_limit", "demand")}
        members[row["job_type"]].append(Member(row["member"], **found))
    counted = {row["job_type"]: row for row in await tx.all("allocation_progress", job_types=names)} if names else {}
    return [_allocation(row, members[row["job_type"]], counted.get(row["job_type"])) for row in rows]


def _allocation(row: Mapping[str, Any], members: Sequence[Member], counted: Mapping[str, Any] | None) -> Allocation:
    return Allocation(
        pool=Pool(row["job_type"], row["capacity"], StrategyName(row["strategy"]), tuple(members)),
        status=AllocationStatus(row["status"]),
        version=row["version"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        updated_by=row["updated_by"],
        entry_id=str(row["entry_id"]),
        apply=None if counted is None else _apply(row, counted),
    )


def _apply(row: Mapping[str, Any], counted: Mapping[str, Any]) -> Apply:
    return Apply(
        row["epoch"],
        row["plan_token"],
        row["started_at"],
        row["started_by"],
        str(row["apply_entry_id"]),
        counted["total"],
        counted["done"],
        row["ended_at"],
        row["stopped_by"],
    )


@dataclass(frozen=True, slots=True)
class PostgresChanges:
    """The ChangeRepository of one tenant's transaction."""

    tx: Transaction

    async def lock(self, change_id: str) -> QuotaChange:
        """Return a change and keep others from deciding it; raises NotFound."""
        row = await self.tx.find("change_lock", change_id=change_id)
        if row is None:
            message = "there is no such change"
            raise NotFound(message)
        return change_of(row)

    async def add(self, change: QuotaChange) -> None:
        """Store a change."""
        columns = asdict(change) | {
            "status": change.status.value,
            "before": None if change.before is None else Jsonb(change.before.as_json()),
            "wanted": Jsonb(limits_json(change.wanted)),
        }
        await self.tx.run("change_add", **columns)

    async def settle(self, change: QuotaChange) -> None:
        """Store what became of a locked change."""
        await self.tx.run(
            "change_settle",
            change_id=change.change_id,
            status=change.status.value,
            decided_by=change.decided_by,
            decided_at=change.decided_at,
            decision_entry_id=change.decision_entry_id,
        )

    async def count_waiting(self, now: datetime) -> int:
        """Return how many changes wait at *now*."""
        return (await self.tx.one("change_count_waiting", now=now))["waiting"]


@dataclass(frozen=True, slots=True)
class ChangeReading:
    """A change with the words of the two people; an erased word is None."""

    change: QuotaChange
    reason: str | None
    ticket: str | None
    comment: str | None


async def read_changes(
    tx: Transaction,
    *,
    change_id: str | None = None,
    origin: str | None = None,
    status: str | None = None,
    after: str | None = None,
    most: int = 1,
) -> list[ChangeReading]:
    """Return changes in the order they were asked for, after the id *after*."""
    rows = await tx.all(
        "change_list", change_id=change_id, origin=origin, status=status, after=after, most=most, now=tx.now
    )
    return [ChangeReading(change_of(row), row["reason"], row["ticket"], row["comment"]) for row in rows]


def change_of(row: Mapping[str, Any]) -> QuotaChange:
    """Read a change's row."""

    def text(name: str) -> str | None:
        return None if row[name] is None else str(row[name])

    return QuotaChange(
        change_id=str(row["change_id"]),
        kind=row["kind"],
        origin=row["origin"],
        status=ChangeStatus(row["status"]),
        quota_id=text("quota_id"),
        job_type=row["job_type"],
        before=None if row["before"] is None else limits_of(row["before"]),
        wanted=some_limits_of(row["wanted"]),
        requested_by=row["requested_by"],
        client_id=row["client_id"],
        requested_at=row["requested_at"],
        expires_at=row["expires_at"],
        starts_at=row["starts_at"],
        until=row["until"],
        entry_id=str(row["entry_id"]),
        decided_by=row["decided_by"],
        decided_at=row["decided_at"],
        decision_entry_id=text("decision_entry_id"),
    )
