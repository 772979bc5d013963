"""What a decision needs to know, read in one round trip behind the tenant's lock: rows → accounts."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from jobengine.quota.admission import WHOLE_TENANT, Account
from jobengine.quota.model import Limits, effective_limits, limits_ahead, limits_of
from jobengine.quota.policy import Policy, policy_of
from jobengine.quota.timeline import Steps, Timeline
from jobengine.storage.arrays import text_array
from jobengine.storage.database import Transaction
from jobengine.storage.quota import limits_of_row, override_of

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Accounts:
    """Accounts as they are at the decision's time; *forgot* tells whether admissions left an hour just now."""

    policy: Policy
    by_name: dict[str, Account]
    fencing: dict[str, int]
    forgot: bool


async def look_at_accounts(tx: Transaction, names: Iterable[str], now: datetime) -> dict[str, Account]:
    """Return accounts, and the tenant's own, as they stand at *now*: no lock is taken and nothing is changed."""
    accounts = {"accounts": text_array(sorted({WHOLE_TENANT, *names}))}
    _, rows = await tx.together(("admission_look", {"now": now}), ("admission_accounts", accounts))
    return (await read_accounts(tx, now, rows, {})).by_name


async def read_accounts(tx: Transaction, now: datetime, rows: Sequence[Row], gone: Mapping[str, int]) -> Accounts:
    """Take in the rows of accounts, the tenant's own among them, without the admissions that are *gone* from the hour.

    The buckets of those whose limits have changed are counted up to the change.
    """
    policy = next(policy_of(row["policy"], row["policy_version"]) for row in rows if row["account"] == WHOLE_TENANT)
    found: dict[str, Account] = {}
    for row in rows:
        name = row["account"]
        overrides = [override_of(_timed(item)) for item in row["overrides"] or ()]
        timeline = Timeline(Steps(_base(row)), Steps(policy.default_limits), overrides)
        account = _account(row, timeline, now, left=gone.get(name, 0))
        found[name] = await _settled(tx, account, timeline, now, changed=row["changed"])
    fencing = {row["account"]: row["fencing"] or 0 for row in rows}
    return Accounts(policy, found, fencing, bool(gone))


def _timed(override: Mapping[str, Any]) -> Row:
    times = {name: datetime.fromisoformat(override[name]) for name in ("starts_at", "until", "created_at")}
    return {**override, **times}


def _base(row: Row) -> Limits | None:
    return None if row["quota_id"] is None else limits_of_row(row)


def _account(row: Row, timeline: Timeline, now: datetime, *, left: int) -> Account:
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
        batch_waits=row["batch_waits"],
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
