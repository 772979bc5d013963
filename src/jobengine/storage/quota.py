"""Quotas and the policy: rows ↔ values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from psycopg.types.json import Jsonb

from jobengine.errors import Conflict, NotFound
from jobengine.quota.model import LIMIT_NAMES, AllocationShare, Limits, Number, Override, Quota, limits_json
from jobengine.quota.policy import Policy, policy_of
from jobengine.storage.database import Transaction

_MOST_OVERRIDES = 1_000


@dataclass(frozen=True, slots=True)
class PostgresQuotas:
    """The QuotaRepository of one tenant's transaction."""

    tx: Transaction

    async def policy(self) -> Policy:
        """Return the platform's policy."""
        return await find_policy(self.tx)

    async def lock(self, quota_id: str) -> Quota:
        """Return the quota and keep others from changing it; raises NotFound."""
        row = await self.tx.find("quota_lock", quota_id=quota_id)
        if row is None:
            message = "there is no such quota"
            raise NotFound(message)
        return quota_of(row)

    async def find(self, job_type: str | None) -> Quota | None:
        """Return the quota for *job_type*, locked, None where there is none."""
        row = await self.tx.find("quota_find_by_job_type", job_type=job_type)
        return None if row is None else await self.lock(str(row["quota_id"]))

    async def has(self, job_type: str | None) -> bool:
        """Tell whether there is a quota for *job_type*."""
        return await self.tx.find("quota_find_by_job_type", job_type=job_type) is not None

    async def deleted_limits(self, job_type: str | None, since: datetime) -> Limits | None:
        """Return the last limits of a quota for *job_type* that was deleted after *since*."""
        row = await self.tx.find("quota_deleted_limits", job_type=job_type, since=since)
        return None if row is None else limits_of_row(row)

    async def share(self, job_type: str | None) -> AllocationShare | None:
        """Return the tenant's part in the pool of *job_type*, None where no pool names it."""
        return None if job_type is None else (await find_shares(self.tx, [job_type])).get(job_type)

    async def add(self, quota: Quota) -> None:
        """Store a new quota; raises Conflict `quota_exists` when another came first."""
        if await self.tx.find("quota_add", **_columns(quota)) is None:
            message = "there is already a quota for this job type"
            raise Conflict(message, code="quota_exists")

    async def save(self, quota: Quota) -> None:
        """Store the new state of a locked quota."""
        await self.tx.run("quota_save", **_columns(quota))

    async def delete(self, quota: Quota) -> None:
        """Take a locked quota out of force; its history stays."""
        await self.tx.run("quota_delete", **_columns(quota))

    async def remember(self, before: Quota | None, after: Quota, *, deleted: bool = False) -> None:
        """Add one change to the quota's history."""
        await self.tx.run(
            "quota_remember",
            quota_id=after.quota_id,
            version=after.version,
            at=after.updated_at,
            action=after.last_action,
            before=None if before is None else Jsonb(before.as_json()),
            after=None if deleted else Jsonb(after.as_json()),
            changed_by=after.updated_by,
            entry_id=after.last_entry_id,
        )

    async def overrides(self, quota_id: str) -> Sequence[Override]:
        """Return the overrides that were neither removed nor are over."""
        rows = await self.tx.all("override_list", quota_id=quota_id, after=None, most=_MOST_OVERRIDES)
        return [override_of(row) for row in rows]

    async def add_override(self, override: Override) -> None:
        """Store an override."""
        await self.tx.run(
            "override_add",
            override_id=override.override_id,
            quota_id=override.quota_id,
            limits=Jsonb(limits_json(override.limits)),
            starts_at=override.starts_at,
            until=override.until,
            created_at=override.created_at,
            created_by=override.created_by,
            entry_id=override.entry_id,
        )

    async def remove_override(self, quota_id: str, override_id: str) -> Override:
        """End an override now; raises NotFound."""
        row = await self.tx.find("override_remove", quota_id=quota_id, override_id=override_id)
        if row is None:
            message = "there is no such override"
            raise NotFound(message)
        return override_of(row)


async def find_shares(tx: Transaction, job_types: Sequence[str]) -> dict[str, AllocationShare]:
    """Return the tenant's parts in the pools of *job_types*, by job type."""
    names = ("capacity", "strategy", "weight", "priority", "reserved", "max_limit")
    rows = await tx.all("allocation_shares", job_types=list(job_types)) if job_types else []
    return {row["job_type"]: AllocationShare(**{name: row[name] for name in names}) for row in rows}


async def find_policy(tx: Transaction) -> Policy:
    """Return the platform's policy."""
    row = await tx.one("get_policy")
    return policy_of(row["document"], row["version"])


async def lock_policy(tx: Transaction) -> Policy:
    """Return the platform's policy and keep others from changing it; *tx* is the platform's own."""
    row = await tx.one("lock_policy")
    return policy_of(row["document"], row["version"])


async def save_policy(tx: Transaction, policy: Policy) -> Policy:
    """Put *policy* in the place of the locked one, and return it at its version."""
    row = await tx.one("set_policy", document=Jsonb(policy.as_json()))
    return replace(policy, version=row["version"])


async def overrides_in_force(tx: Transaction, quota_ids: Sequence[str], now: datetime) -> dict[str, list[Override]]:
    """Return the overrides that hold at *now*, by quota."""
    found: dict[str, list[Override]] = {}
    if quota_ids:
        for row in await tx.all("overrides_in_force", quota_ids=list(quota_ids), now=now):
            override = override_of(row)
            found.setdefault(override.quota_id, []).append(override)
    return found


def limits_of_row(row: Mapping[str, Any]) -> Limits:
    """Read the limits of a quota's row."""
    return Limits(row["max_active"], row["max_per_hour"], row["burst"], Decimal(row["refill_per_second"]))


def quota_of(row: Mapping[str, Any]) -> Quota:
    """Read a quota's row."""
    return Quota(
        quota_id=str(row["quota_id"]),
        tenant_id=row["tenant_id"],
        job_type=row["job_type"],
        limits=limits_of_row(row),
        paused=row["paused"],
        pause_reason=row["pause_reason"],
        version=row["version"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        updated_by=row["updated_by"],
        last_action=row["last_action"],
        last_entry_id=str(row["last_entry_id"]),
        drain_after=row["drain_after"],
    )


def some_limits_of(document: Mapping[str, Any]) -> dict[str, Number]:
    """Read some limits from JSON numbers, exactly to the sixth decimal."""
    return {
        name: Decimal(str(value)) if name == "refill_per_second" else int(value) for name, value in document.items()
    }


def override_of(row: Mapping[str, Any]) -> Override:
    """Read an override's row."""
    return Override(
        override_id=str(row["override_id"]),
        quota_id=str(row["quota_id"]),
        limits=some_limits_of(row["limits"]),
        starts_at=row["starts_at"],
        until=row["until"],
        created_at=row["created_at"],
        created_by=row["created_by"],
        entry_id=str(row["entry_id"]),
    )


def _columns(quota: Quota) -> dict[str, Any]:
    limits = {name: quota.limits.value(name) for name in LIMIT_NAMES}
    return limits | {
        "quota_id": quota.quota_id,
        "job_type": quota.job_type,
        "paused": quota.paused,
        "pause_reason": quota.pause_reason,
        "version": quota.version,
        "created_at": quota.created_at,
        "updated_at": quota.updated_at,
        "updated_by": quota.updated_by,
        "last_action": quota.last_action,
        "last_entry_id": quota.last_entry_id,
        "drain_after": quota.drain_after,
    }
