"""The standing work of governance: carry on what is being applied, and say which changes nobody decided on in time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobengine.audit.act import Act
from jobengine.audit.actions import Action, Outcome
from jobengine.audit.model import Actor, AuditEntry, Resource
from jobengine.governance.apply import STAGES, Broken, Done, Found, Give, Mark, Stage, Step, decide
from jobengine.governance.change import ChangeStatus
from jobengine.governance.changes import expire
from jobengine.governance.model import AllocationStatus
from jobengine.ids import new_id
from jobengine.quota.manager import QuotaManager
from jobengine.quota.model import Quota
from jobengine.storage.audit import PostgresAudit
from jobengine.storage.database import Database, Transaction
from jobengine.storage.governance import PostgresChanges
from jobengine.storage.quota import PostgresQuotas
from jobengine.tenancy.model import GOVERN, PLATFORM, Principal

CHUNK = 20
CLAIM_SECONDS = 5
EXPIRED_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class GovernanceWork:
    """One process's part of it, under its *name*; any number of processes may do it side by side."""

    database: Database
    name: str

    async def step(self) -> None:
        """Carry one apply to its end, if there is one, and settle changes that are too old."""
        await self._expire_changes()
        async with self.database.transaction(PLATFORM) as tx:
            row = await tx.find("allocation_claim", worker=self.name, seconds=CLAIM_SECONDS)
            words = [] if row is None else await tx.all("allocation_words", entry_id=row["apply_entry_id"])
        if row is not None:
            await self._carry_on(row, {f"quota_{found['field']}": found["text"] for found in words})

    async def _carry_on(self, row: Mapping[str, Any], intents: Mapping[str, str]) -> None:
        principal = Principal(
            row["client_id"], row["started_by"], None, frozenset({GOVERN}), (), row["token_id"], intents,
            expires_at=row["started_at"],
        )  # fmt: skip
        running = _Running(self.database, self.name, row["job_type"], row["epoch"], principal, row)
        for stage in STAGES:
            while steps := await running.open_steps(stage):
                if stopped_by := await running.go(steps, stage):
                    await running.end(AllocationStatus.STOPPED, stopped_by)
                    return
        await running.end(AllocationStatus.APPLIED, None)

    async def _expire_changes(self) -> None:
        async with self.database.system() as tx:
            rows = await tx.all("system_find_expired_changes", most=EXPIRED_AT_ONCE)
        for row in rows:
            async with self.database.transaction(row["tenant_id"]) as tx:
                changes = PostgresChanges(tx)
                change = await changes.lock(str(row["change_id"]))
                if change.status is ChangeStatus.PENDING and change.status_at(tx.now) is ChangeStatus.EXPIRED:
                    await expire(changes, PostgresAudit(tx), change, tx.tenant_id)


@dataclass(frozen=True, slots=True)
class _Running:
    """One apply; *row* says who asked for it."""

    database: Database
    worker: str
    job_type: str
    epoch: int
    principal: Principal
    row: Mapping[str, Any]

    async def open_steps(self, stage: Stage) -> list[Step]:
        where = {"job_type": self.job_type, "epoch": self.epoch}
        async with self.database.transaction(PLATFORM) as tx:
            await tx.run("allocation_renew", **where, worker=self.worker, seconds=CLAIM_SECONDS)
            rows = await tx.all("allocation_open_steps", **where, stage=stage, most=CHUNK)
        return [
            Step(r["member"], None if r["quota_id"] is None else str(r["quota_id"]), r["from_active"], r["to_active"])
            for r in rows
        ]

    async def go(self, steps: Sequence[Step], stage: Stage) -> str | None:
        """Take *steps*, each in its tenant's own transaction; return the tenant that is not as planned."""
        gone: list[str] = []
        broken = None
        for step in steps:
            async with self.database.transaction(step.tenant_id) as tx:
                if not await self._take(tx, step, stage):
                    broken = step.tenant_id
                    break
            gone.append(step.tenant_id)
        async with self.database.transaction(PLATFORM) as tx:
            await tx.run("allocation_close_steps", job_type=self.job_type, epoch=self.epoch, stage=stage, members=gone)
        return broken

    async def end(self, status: AllocationStatus, stopped_by: str | None) -> None:
        async with self.database.transaction(PLATFORM) as tx:
            ended = await tx.find(
                "allocation_end", job_type=self.job_type, epoch=self.epoch, status=status.value, stopped_by=stopped_by
            )
            if ended is not None and stopped_by is not None:
                await PostgresAudit(tx).record(self._broken_off(tx, stopped_by))

    async def _take(self, tx: Transaction, step: Step, stage: Stage) -> bool:
        await tx.run("allocation_mark_start", job_type=self.job_type)
        mark = await tx.one("allocation_mark_lock", job_type=self.job_type)
        quotas = PostgresQuotas(tx)
        quota = await quotas.find(self.job_type)
        found = None if quota is None else await _found(quotas, quota)
        match decide(step, stage, self.epoch, Mark(mark["epoch"], mark["stage"]), found):
            case Done():
                return True
            case Broken():
                return False
            case Give(max_active):
                if quota is None or quota.limits.max_active != max_active:
                    await self._manager(tx, quotas).allocate(self.job_type, quota, max_active)
                await tx.run("allocation_mark_set", job_type=self.job_type, epoch=self.epoch, stage=stage)
                return True

    def _manager(self, tx: Transaction, quotas: PostgresQuotas) -> QuotaManager:
        act = Act(self.principal, tx.tenant_id, self.row["trace_id"], tx.now)
        cleared = {"allocation": self.job_type, "apply_entry_id": str(self.row["apply_entry_id"])}
        return QuotaManager(quotas, PostgresAudit(tx), act, cleared)

    def _broken_off(self, tx: Transaction, stopped_by: str) -> AuditEntry:
        return AuditEntry(
            entry_id=new_id(),
            tenant_id=None,
            occurred_at=tx.now,
            action=Action.ALLOCATION_APPLIED,
            actor=Actor("system", "governance"),
            outcome=Outcome.FAILURE,
            resource=Resource("allocation", self.job_type),
            properties={"apply_entry_id": str(self.row["apply_entry_id"]), "stopped_by": stopped_by},
            trace_id=self.row["trace_id"],
        )


async def _found(quotas: PostgresQuotas, quota: Quota) -> Found:
    overrides = await quotas.overrides(quota.quota_id)
    return Found(quota.quota_id, quota.limits.max_active, any("max_active" in held.limits for held in overrides))
