"""The one place where leases are added and removed: a tenant's admissions under its lock."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from jobengine.errors import Conflict, NotFound
from jobengine.ids import new_id
from jobengine.quota.admission import (
    WHOLE_TENANT,
    Account,
    Admitted,
    Ask,
    Blocking,
    Denied,
    Holding,
    Kind,
    LimitKind,
    Outlook,
    Question,
    TooManySlots,
    decide,
    explain,
)
from jobengine.quota.model import effective_limits, limits_ahead
from jobengine.quota.policy import Policy, policy_of
from jobengine.storage.database import Asked, Transaction
from jobengine.storage.quota import limits_of_row, override_of

RELEASE_REMEMBERED = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Lease:
    """A granted admission: *slots* of *job_type* until *expires_at*, fenced by *fencing_token*."""

    lease_id: str
    quota_id: str | None
    job_type: str
    slots: int
    kind: Kind
    job_id: str | None
    fencing_token: int
    expires_at: datetime
    lease_seconds: int


@dataclass(frozen=True, slots=True)
class Repeated:
    """The job already has a live lease: the same one is the answer."""

    lease: Lease


Answer = Lease | Repeated | Denied | TooManySlots


class AdmissionDesk:
    """A tenant's admissions inside one transaction that holds the tenant's lock; make it with `open_desk`."""

    def __init__(self, tx: Transaction, now: datetime, policy: Policy) -> None:
        self._tx = tx
        self.now = now
        self.policy = policy
        self._accounts: dict[str, Account] = {}
        self._fencing: dict[str, int] = {}
        self._jobs: dict[str, Lease] = {}
        self._granted: Counter[str] = Counter()
        self._denied: Counter[tuple[str, str]] = Counter()
        self._leases: list[dict[str, Any]] = []
        # Leases that this transaction has ended (None) or moved, before it has stored so.
        self._touched: dict[str, datetime | None] = {}
        self._explained: dict[tuple[Kind, Denied], Denied] = {}

    async def ask(self, asks: Sequence[Ask], client_id: str, *, counted: bool = True) -> list[Answer]:
        """Decide *asks* in their order; each sees what the ones before it took.

        Denials show in the summary unless they are not *counted*: a dispatcher asks again and again.

        Raises Conflict `job_id_conflict` when a job's live lease was asked for with other words.
        """
        await self.open_jobs(asks)
        return [await self.answer(ask, client_id, counted=counted) for ask in asks]

    async def open_jobs(self, asks: Sequence[Ask]) -> None:
        """Load the live leases of the jobs that *asks* name."""
        job_ids = [ask.job_id for ask in asks if ask.job_id is not None]
        rows = await self._tx.all("admission_same_job", job_ids=job_ids) if job_ids else []
        self._jobs |= {str(row["job_id"]): lease_of(row) for row in rows}

    async def open_accounts(self, job_types: Iterable[str]) -> None:
        """Load what decisions about further *job_types* need."""
        if missing := sorted(set(job_types) - self._accounts.keys()):
            forgotten = self.fill(missing, await self._tx.together(*_account_reads(missing, self.now)))
            if forgotten:
                await self.settle()

    async def answer(self, ask: Ask, client_id: str, *, counted: bool = True) -> Answer:
        """Decide one ask whose job was opened; raises Conflict `job_id_conflict`."""
        if ask.job_id is not None and (lease := self._jobs.get(ask.job_id)):
            return _repeat(ask, lease)
        answer = await self._decide(ask, client_id, counted=counted)
        if isinstance(answer, Lease) and ask.job_id is not None:
            self._jobs[ask.job_id] = answer
        return answer

    def end(self, lease: Mapping[str, Any]) -> None:
        """Take a lease out of the sums, and let its job ask anew; the caller stores that it is over."""
        self.give_back([lease])
        self._touched[str(lease["lease_id"])] = None
        self._jobs.pop(lease["job_id"] or "", None)

    def move(self, lease: Lease) -> None:
        """Count with a lease's new end; the caller stores it."""
        self._explained.clear()
        self._touched[lease.lease_id] = lease.expires_at
        if lease.job_id in self._jobs:
            self._jobs[lease.job_id] = lease

    async def write(self) -> None:
        """Store what was decided; call it once, before the transaction ends."""
        writes: list[Asked] = [*self._account_rows()]
        if self._leases:
            columns = {name: [lease[name] for lease in self._leases] for name in self._leases[0]}
            writes.append(("admission_add_leases", columns | {"granted_at": self.now}))
        for name, granted in sorted(self._granted.items()):
            writes.append(("admission_add_grants", {"account": name, "granted": granted, "now": self.now}))
        for (job_type, limit), denied in sorted(self._denied.items()):
            counted = {"job_type": job_type, "limit_name": limit, "denied": denied, "now": self.now}
            writes.append(("admission_count_denials", counted))
        await self._tx.together(*writes)

    async def settle(self) -> None:
        """Store the sums; whoever ends leases without granting any need do no more."""
        await self._tx.together(*self._account_rows())

    def give_back(self, ended: Iterable[Mapping[str, Any]]) -> None:
        """Take ended leases out of the sums."""
        self._explained.clear()
        for row in ended:
            backfill = row["slots"] if row["kind"] == "backfill" else 0
            for name in (WHOLE_TENANT, row["job_type"]):
                account = self._accounts[name]
                self._accounts[name] = replace(
                    account, active=account.active - row["slots"], active_backfill=account.active_backfill - backfill
                )

    async def _decide(self, ask: Ask, client_id: str, *, counted: bool) -> Lease | Denied | TooManySlots:
        concerned = self._concerned(ask.job_type)
        match decide(ask, concerned, backfill_share=self.policy.backfill_share, now=self.now):
            case Admitted(accounts):
                return self._grant(ask, accounts, client_id)
            case Denied() as denied:
                if counted:
                    self._denied.update({(ask.job_type, found.limit.value): 1 for found in denied.blocking})
                return await self._explain(denied, ask, concerned)
            case TooManySlots() as refused:
                return refused

    def _concerned(self, job_type: str) -> list[Account]:
        # No tenant-wide quota means no tenant-wide limit; its account is kept all the same, for the day it gets one.
        whole = self._accounts[WHOLE_TENANT]
        return [*([whole] if whole.quota_id else []), self._accounts[job_type]]

    def _grant(self, ask: Ask, accounts: Iterable[Account], client_id: str) -> Lease:
        self._explained.clear()
        for account in accounts:
            self._accounts[account.name] = account
        if self._accounts[WHOLE_TENANT].quota_id is None:
            self._count_in_tenant(ask)
        self._granted.update((WHOLE_TENANT, ask.job_type))
        self._fencing[ask.job_type] += 1
        lease = Lease(
            lease_id=new_id(),
            quota_id=self._accounts[ask.job_type].quota_id,
            job_type=ask.job_type,
            slots=ask.slots,
            kind=ask.kind,
            job_id=ask.job_id,
            fencing_token=self._fencing[ask.job_type],
            expires_at=self.now + timedelta(seconds=ask.lease_seconds),
            lease_seconds=ask.lease_seconds,
        )
        self._leases.append(asdict(lease) | {"client_id": client_id})
        return lease

    def _count_in_tenant(self, ask: Ask) -> None:
        whole = self._accounts[WHOLE_TENANT]
        self._accounts[WHOLE_TENANT] = replace(
            whole,
            active=whole.active + ask.slots,
            active_backfill=whole.active_backfill + (ask.slots if ask.kind == "backfill" else 0),
            granted_hour=whole.granted_hour + 1,
        )

    async def _explain(self, denied: Denied, ask: Ask, concerned: Sequence[Account]) -> Denied:
        # A batch of a thousand equal questions must not read the leases a thousand times, under the tenant's lock.
        if (ask.kind, denied) not in self._explained:
            outlooks = {account.name: await self._outlook(account, denied.blocking) for account in concerned}
            question = Question(ask, self.policy.backfill_share, self.now)
            self._explained[ask.kind, denied] = explain(denied, question, concerned, outlooks)
        return self._explained[ask.kind, denied]

    async def _outlook(self, account: Account, blocking: Iterable[Blocking]) -> Outlook:
        holdings: list[Holding] = []
        backfills: list[Holding] = []
        grants: list[tuple[datetime, int]] = []
        for found in blocking:
            if found.job_type != account.job_type:
                continue
            # Where an override ends during the wait, more has to go.
            last = account.ahead[-1][1] if account.ahead else account.limits
            if found.limit is LimitKind.MAX_PER_HOUR:
                most = found.surplus + account.limits.max_per_hour - last.max_per_hour
                grants = await self._hour(account.name, most)
            elif found.limit is LimitKind.MAX_ACTIVE:
                most = found.surplus + account.limits.max_active - last.max_active
                kind: Kind | None = "backfill" if found.by_share else None
                (backfills if kind else holdings).extend(await self._holdings(account.name, kind, most))
        return Outlook(holdings, backfills, grants)

    async def _holdings(self, account: str, kind: Kind | None, slots: int) -> list[Holding]:
        # Every lease holds a slot or more, so no more leases than slots are needed. What this very transaction did is
        # not stored yet; it counts like the rest.
        most = slots + len(self._touched)
        stored = await self._tx.all("admission_holdings", account=account, kind=kind, now=self.now, most=most)
        fresh = [
            lease
            for lease in self._leases
            if account in (WHOLE_TENANT, lease["job_type"]) and kind in (None, lease["kind"])
        ]
        ends = ((self._touched.get(str(row["lease_id"]), row["expires_at"]), row["slots"]) for row in (*stored, *fresh))
        return [Holding(expires_at, held) for expires_at, held in ends if expires_at is not None]

    async def _hour(self, account: str, admissions: int) -> list[tuple[datetime, int]]:
        rows = await self._tx.all("admission_hour", account=account, most=admissions)
        return [*((row["at"], row["granted"]) for row in rows), (self.now, self._granted[account])]

    def _account_rows(self) -> Iterable[Asked]:
        for name, account in sorted(self._accounts.items()):
            yield (
                "admission_save_account",
                {
                    "account": name,
                    "fencing": self._fencing[name],
                    "active": account.active,
                    "active_backfill": account.active_backfill,
                    "granted_hour": account.granted_hour,
                    "bucket_pico": account.bucket_pico,
                    "bucket_at": account.bucket_at,
                    "now": self.now,
                },
            )

    def fill(self, names: Sequence[str], answers: Sequence[Sequence[Mapping[str, Any]]]) -> bool:
        """Take in the answers to `_account_reads`; tell whether admissions left the hour: sums to be stored."""
        limits, overrides, waiting, kept, forgotten = answers
        accounts = _limited(names, self.policy, limits, overrides, waiting, now=self.now)
        left: Counter[str] = Counter()
        for row in forgotten:
            left[row["account"]] += row["granted"]
        rows = {row["account"]: row for row in kept}
        for name in names:
            self._fencing[name] = int(rows[name]["fencing"]) if name in rows else 0
            account = accounts[name]
            self._accounts[name] = _kept(account, rows[name], left[name]) if name in rows else account
        return bool(left)


async def open_desk(tx: Transaction, job_types: Iterable[str]) -> AdmissionDesk:
    """Take the tenant's lock, let expired leases leave, and load what decisions about *job_types* need."""
    now = await _lock(tx)
    names = sorted({WHOLE_TENANT, *job_types})
    [policy], ended, *answers = await tx.together(
        ("get_policy", {}), ("admission_expire", {"now": now}), *_account_reads(names, now)
    )
    desk = AdmissionDesk(tx, now, policy_of(policy["document"], policy["version"]))
    forgotten = desk.fill(names, answers)
    await desk.open_accounts({row["job_type"] for row in ended})
    desk.give_back(ended)
    if ended or forgotten:
        # At once: whatever the caller does next, the sums must not part from the leases.
        await desk.settle()
    return desk


async def _lock(tx: Transaction) -> datetime:
    # The clock is read after the lock is held: statements of one round trip run one after the other.
    held, [*moment] = await tx.together(("admission_lock", {}), ("admission_now", {}))
    if held and moment:
        return moment[0]["now"]
    await tx.run("admission_start")
    await tx.one("admission_lock")
    return (await tx.one("admission_now"))["now"]


def _account_reads(names: Sequence[str], now: datetime) -> list[Asked]:
    accounts = {"accounts": list(names)}
    return [
        ("admission_limits", accounts),
        ("admission_overrides", accounts | {"now": now}),
        ("admission_waiting", {"now": now}),
        ("admission_accounts", accounts),
        ("admission_forget_hour", accounts | {"now": now}),
    ]


def _limited(
    names: Sequence[str],
    policy: Policy,
    limits: Sequence[Mapping[str, Any]],
    overrides: Sequence[Mapping[str, Any]],
    waiting: Sequence[Mapping[str, Any]],
    *,
    now: datetime,
) -> dict[str, Account]:
    quotas = {row["account"]: row for row in limits}
    raises = [override_of(row) for row in overrides]
    waits = {row["job_type"]: not row["one_runs"] for row in waiting}
    waits[WHOLE_TENANT] = any(not row["any_runs"] for row in waiting)
    accounts: dict[str, Account] = {}
    for name in names:
        row = quotas.get(name)
        base = policy.default_limits if row is None else limits_of_row(row)
        quota_id = None if row is None else str(row["quota_id"])
        own = [override for override in raises if override.quota_id == quota_id]
        accounts[name] = Account(
            name,
            quota_id,
            effective_limits(base, own, now),
            bool(row and row["paused"]),
            batch_waits=waits.get(name, False),
            ahead=limits_ahead(base, own, now),
        )
    return accounts


def _kept(account: Account, row: Mapping[str, Any], forgotten: int) -> Account:
    return replace(
        account,
        active=row["active"],
        active_backfill=row["active_backfill"],
        granted_hour=row["granted_hour"] - forgotten,
        bucket_pico=None if row["bucket_pico"] is None else int(row["bucket_pico"]),
        bucket_at=row["bucket_at"],
    )


def lease_of(row: Mapping[str, Any]) -> Lease:
    """Read a lease's row."""
    quota_id = None if row["quota_id"] is None else str(row["quota_id"])
    return Lease(
        str(row["lease_id"]), quota_id, row["job_type"], row["slots"], row["kind"], row["job_id"],
        row["fencing_token"], row["expires_at"], row["lease_seconds"],
    )  # fmt: skip


def _repeat(ask: Ask, lease: Lease) -> Repeated:
    if (ask.job_type, ask.slots, ask.kind) != (lease.job_type, lease.slots, lease.kind):
        message = "this job_id has a live lease that was asked for with another job_type, slots or kind"
        raise Conflict(message, code="job_id_conflict")
    return Repeated(lease)


async def force_out(tx: Transaction, lease_id: str) -> Lease:
    """End a live lease against its holder's will; raises NotFound when there is none."""
    lease = lease_of(await tx.one("lease_get", lease_id=lease_id))
    desk = await open_desk(tx, [lease.job_type])
    ended = await tx.all("lease_end", lease_id=lease_id, now=desk.now, ending="forced_out")
    if not ended:
        raise NotFound(_NO_LEASE)
    desk.give_back(ended)
    await desk.write()
    return lease


_NO_LEASE = "there is no such lease"
