"""Quotas as people look at them: with effective limits, use, and the words of the last change."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from jobengine.quota.admission import TOKEN, WHOLE_TENANT
from jobengine.quota.model import AllocationShare, Limits, Quota, Usage, effective_limits, limits_of
from jobengine.storage.admission_reads import look_at_accounts
from jobengine.storage.database import Transaction
from jobengine.storage.quota import find_policy, find_shares, overrides_in_force, quota_of


@dataclass(frozen=True, slots=True)
class QuotaReading:
    """A quota with what is in force and in use at one moment."""

    quota: Quota
    effective: Limits
    usage: Usage
    reason: str | None
    ticket: str | None
    share: AllocationShare | None = None


@dataclass(frozen=True, slots=True)
class Drift:
    """What an account keeps and what its leases and admissions say: slots, backfill slots, admissions of the hour."""

    job_type: str | None
    kept: tuple[int, int, int]
    recomputed: tuple[int, int, int]

    @property
    def amount(self) -> int:
        """How far the two are apart; always 0, or something is broken."""
        return sum(abs(left - right) for left, right in zip(self.kept, self.recomputed, strict=True))


async def read_quotas(
    tx: Transaction,
    *,
    quota_id: str | None = None,
    job_type: str | None = None,
    paused: bool | None = None,
    after: str | None = None,
    most: int = 1,
) -> list[QuotaReading]:
    """Return stored quotas in the order they were made, after the id *after*."""
    rows = await tx.all("quota_list", quota_id=quota_id, job_type=job_type, paused=paused, after=after, most=most)
    quotas = [quota_of(row) for row in rows]
    overrides = await overrides_in_force(tx, [quota.quota_id for quota in quotas], tx.now)
    effective = [effective_limits(quota.limits, overrides.get(quota.quota_id, ()), tx.now) for quota in quotas]
    uses = await _usage(tx, [quota.job_type or WHOLE_TENANT for quota in quotas])
    shares = await find_shares(tx, [quota.job_type for quota in quotas if quota.job_type is not None])
    return [
        QuotaReading(
            quota,
            limits,
            uses[quota.job_type or WHOLE_TENANT],
            row["reason"],
            row["ticket"],
            None if quota.job_type is None else shares.get(quota.job_type),
        )
        for quota, limits, row in zip(quotas, effective, rows, strict=True)
    ]


async def _usage(tx: Transaction, names: Iterable[str]) -> dict[str, Usage]:
    accounts = await look_at_accounts(tx, names, tx.now)
    return {
        row["account"]: Usage(
            row["active"],
            row["active_backfill"],
            row["granted_hour"],
            Decimal(accounts[row["account"]].level_pico(tx.now)) / TOKEN,
        )
        for row in await tx.all("usage", accounts=list(accounts), now=tx.now)
    }


async def read_drift(tx: Transaction, now: datetime) -> list[Drift]:
    """Compare what every account keeps with its leases, as of the decision at *now* whose lock the caller holds."""
    accounts = [row["account"] for row in await tx.all("account_names")]
    return [
        Drift(
            row["account"] or None,
            (row["kept_active"], row["kept_backfill"], row["kept_hour"]),
            (row["active"], row["active_backfill"], row["granted_hour"]),
        )
        for row in await tx.all("usage", accounts=accounts, now=now)
    ]


@dataclass(frozen=True, slots=True)
class SummaryItem:
    """One job type in the summary; *denials* of the last hour by limit."""

    job_type: str | None
    quota_id: str | None
    limits: Limits
    active: int
    paused: bool
    denials: Mapping[str, int]


async def summarize(tx: Transaction) -> Sequence[SummaryItem]:
    """Return every job type that has a quota, or was used or denied lately."""
    quotas = {reading.quota.job_type or WHOLE_TENANT: reading for reading in await read_quotas(tx, most=100_000)}
    denials: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for row in await tx.all("denials_last_hour"):
        denials[row["job_type"]][row["limit_name"]] = row["denied"]
    default = (await find_policy(tx)).default_limits
    others = [row["account"] for row in await tx.all("account_names") if row["account"]]
    unlimited = dict.fromkeys(sorted({*others, *denials} - quotas.keys()), default)
    uses = await _usage(tx, unlimited)
    named = [
        SummaryItem(r.quota.job_type, r.quota.quota_id, r.effective, r.usage.active, r.quota.paused, denials[name])
        for name, r in quotas.items()
    ]
    return named + [
        SummaryItem(name, None, default, uses[name].active, paused=False, denials=denials[name]) for name in unlimited
    ]


async def read_history(tx: Transaction, quota_id: str, *, after: int, most: int) -> list[dict[str, Any]]:
    """Return the changes of a quota, oldest first, after a version."""
    return list(await tx.all("quota_history", quota_id=quota_id, after=after, most=most))


async def limits_as_of(tx: Transaction, quota_id: str, at: datetime) -> tuple[int, Limits, Limits] | None:
    """Return (version, limits, effective limits) as they were at *at*; None before the quota existed."""
    row = await tx.find("quota_as_of", quota_id=quota_id, at=at)
    if row is None or row["after"] is None:
        return None
    base = limits_of(row["after"]["limits"])
    overrides = await tx.all("overrides_as_of", quota_id=quota_id, at=at)
    best = {name: base.value(name) for name in ("max_active", "max_per_hour", "burst", "refill_per_second")}
    for override in overrides:
        for name, value in override["limits"].items():
            best[name] = max(best[name], Decimal(str(value)) if name == "refill_per_second" else int(value))
    return row["version"], base, base.changed(best)
