"""What a decision needs to know, read in one round trip behind the tenant's lock: rows → accounts."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from jobengine.quota.admission import WHOLE_TENANT, Account
from jobengine.quota.model import Limits, Override, effective_limits, limits_ahead, limits_of
from jobengine.quota.policy import Policy, policy_of
from jobengine.quota.timeline import Steps, Timeline
from jobengine.storage.database import Asked, Transaction
from jobengine.storage.quota import limits_of_row, override_of

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Accounts:
    """Accounts as they are at the decision's time; *forgot* tells whether admissions left an hour just now."""

    policy: Policy
    by_name: dict[str, Account]
    fencing: dict[str, int]
    forgot: bool


def account_reads(names: Sequence[str]) -> list[Asked]:
    """Return what is to be asked about the accounts of *names*, behind the lock and in this order."""
    accounts = {"accounts": list(names)}
    return [
        ("get_policy", {}),
        ("admission_accounts", accounts),
        ("admission_overrides", accounts),
        ("admission_waiting", {}),
        ("admission_forget_hour", accounts),
    ]


async def look_at_accounts(tx: Transaction, names: Iterable[str], now: datetime) -> dict[str, Account]:
    """Return accounts as they stand at *now*, for whoever decides nothing: no lock is taken and nothing is changed."""
    *reads, _ = account_reads(sorted(names))
    _, *answers = await tx.together(("admission_look", {"now": now}), *reads)
    return (await read_accounts(tx, now, [*answers, ()])).by_name


async def read_accounts(tx: Transaction, now: datetime, answers: Sequence[Sequence[Row]]) -> Accounts:
    """Take in the answers to `account_reads`, and count the buckets of those whose limits have changed."""
    [document], kept, overrides, waiting, forgotten = answers
    policy = policy_of(document["document"], document["version"])
    left = {row["account"]: row["granted"] for row in forgotten}
    waits = {row["job_type"]: not row["one_runs"] for row in waiting}
    waits[WHOLE_TENANT] = any(not row["any_runs"] for row in waiting)
    raises: dict[str, list[Override]] = {}
    for row in overrides:
        raises.setdefault(row["account"], []).append(override_of(row))
    found: dict[str, Account] = {}
    for row in kept:
        name = row["account"]
        timeline = Timeline(Steps(_base(row)), Steps(policy.default_limits), raises.get(name, ()))
        account = _account(row, timeline, now, batch_waits=waits.get(name, False), left=left.get(name, 0))
        found[name] = await _settled(tx, account, timeline, now, changed=row["changed"])
    fencing = {row["account"]: row["fencing"] or 0 for row in kept}
    return Accounts(policy, found, fencing, bool(left))


def _base(row: Row) -> Limits | None:
    return None if row["quota_id"] is None else limits_of_row(row)


def _account(row: Row, timeline: Timeline, now: datetime, *, batch_waits: bool, left: int) -> Account:
    base = timeline.quota.now or timeline.defaults.now
    return Account(
        name=row["account"],
        quota_id=None if row["quota_id"] is None else str(row["quota_id"]),
        limits=effective_limits(base, timeline.overrides, now) if timeline.overrides else base,
        paused=bool(row["paused"]),
        active=row["active"] or 0,
        active_backfill=row["active_backfill"] or 0,
        granted_hour=(row["granted_hour"] or 0) - left,
        bucket_pico=None if row["bucket_pico"] is None else int(row["bucket_pico"]),
        bucket_at=row["bucket_at"],
        batch_waits=batch_waits,
        ahead=limits_ahead(base, timeline.overrides, now) if timeline.overrides else (),
    )


async def _settled(tx: Transaction, account: Account, timeline: Timeline, now: datetime, *, changed: bool) -> Account:
    since = account.bucket_at
    if since is None:
        return account
    if changed:
        timeline = await _remembered(tx, account.name, timeline, since)
    elif not timeline.overrides:
        return account
    return account.settled(timeline.between(since, now))


async def _remembered(tx: Transaction, name: str, timeline: Timeline, since: datetime) -> Timeline:
    changes, defaults = await tx.together(
        ("admission_changes", {"account": name}), ("policy_changes", {"since": since})
    )
    quota = [(row["at"], row["before"] and limits_of(row["before"]["limits"])) for row in changes]
    default = [(row["replaced_at"], limits_of(row["document"]["default_limits"])) for row in defaults]
    return replace(timeline, quota=Steps(timeline.quota.now, quota), defaults=Steps(timeline.defaults.now, default))


def count_slots(ended: Iterable[Row]) -> tuple[Counter[str], Counter[str]]:
    """Return the slots of *ended* leases by account, and those of backfills among them."""
    slots, backfill = Counter[str](), Counter[str]()
    for row in ended:
        for name in (WHOLE_TENANT, row["job_type"]):
            slots[name] += row["slots"]
            backfill[name] += row["slots"] if row["kind"] == "backfill" else 0
    return slots, backfill
