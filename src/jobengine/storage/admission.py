"""The one place where leases are added and removed: a tenant's admissions under its lock."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec

from jobengine.errors import Conflict, NotFound
from jobengine.ids import new_ids
from jobengine.quota.admission import (
    WHOLE_TENANT,
    Account,
    Ask,
    Books,
    Denied,
    Kind,
    TooManySlots,
)
from jobengine.quota.waiting import Question, foreseen
from jobengine.quota.waiting import explain as explain_denial
from jobengine.storage.admission_outlook import Outlooks
from jobengine.storage.admission_reads import Accounts, Row, count_slots, read_accounts
from jobengine.storage.arrays import number_array, plain_array, text_array
from jobengine.storage.asks import AskLog
from jobengine.storage.database import Asked, Transaction

RELEASE_REMEMBERED = timedelta(hours=1)


class Lease(msgspec.Struct, frozen=True):
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


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a desk stood, so that it can go back to there."""

    accounts: dict[str, Account]
    fencing: dict[str, int]
    jobs: dict[str, Lease]
    granted: Counter[str]
    denied: Counter[tuple[str, str]]
    leases: int
    asked: int


class AdmissionDesk:
    """A tenant's admissions inside one transaction that holds the tenant's lock; make it with `open_desk`.

    What it decides is stored with the transaction's commit at the latest.
    """

    def __init__(self, tx: Transaction, now: datetime, accounts: Accounts, same_job: Iterable[Row] = ()) -> None:
        self._tx = tx
        self.now = now
        self.policy = accounts.policy
        self._books = self._open(accounts.by_name)
        self._quota_ids = {name: account.quota_id for name, account in accounts.by_name.items()}
        self._fencing = accounts.fencing
        self._jobs = {str(row["job_id"]): lease_of(row) for row in same_job}
        self._granted: Counter[str] = Counter()
        self._denied: Counter[tuple[str, str]] = Counter()
        self._leases: list[tuple[Lease, str]] = []
        self._ids = new_ids()
        self._returned: list[Row] = []
        self._log = AskLog(now, self.policy.backfill_share, accounts.by_name)
        self._outlooks = Outlooks(tx, now)
        self._explained: dict[tuple[Kind, Denied], Denied] = {}
        # As they are stored: what is the same need not be stored again.
        self._stored = {} if accounts.forgot else accounts.by_name

    async def ask(self, asks: Sequence[Ask], client_id: str, *, counted: bool = True) -> list[Answer]:
        """Decide *asks* in their order; each sees what the ones before it took.

        Denials show in the summary unless they are not *counted*: a dispatcher asks again and again.

        Raises Conflict `job_id_conflict` when a job's live lease was asked for with other words.
        """
        job_ids = [ask.job_id for ask in asks if ask.job_id is not None]
        rows = await self._tx.all("admission_same_job", job_ids=job_ids) if job_ids else []
        self._jobs |= {str(row["job_id"]): lease_of(row) for row in rows}
        return [await self.answer(ask, client_id, counted=counted) for ask in asks]

    async def answer(self, ask: Ask, client_id: str, *, counted: bool = True) -> Answer:
        """Decide one ask whose job and account were opened; raises Conflict `job_id_conflict`."""
        if ask.job_id is not None and (lease := self._jobs.get(ask.job_id)):
            return _repeat(ask, lease)
        refused = self._books.decide(ask)
        if refused is None:
            return self._grant(ask, client_id)
        if counted:
            self._log.asked(ask, 0)
        if isinstance(refused, TooManySlots):
            return refused
        if counted:
            self._denied.update((ask.job_type, found.limit.value) for found in refused.blocking)
        return await self._explain(refused, ask)

    def end(self, lease: Row) -> None:
        """Take a lease out of the sums, and let its job ask anew; the caller stores that it is over."""
        self.give_back([lease])
        self._outlooks.ended(str(lease["lease_id"]))
        self._jobs.pop(lease["job_id"] or "", None)

    def move(self, lease: Lease) -> None:
        """Count with a lease's new end; the caller stores it."""
        self._explained.clear()
        self._outlooks.moved(lease.lease_id, lease.expires_at)
        if lease.job_id in self._jobs:
            self._jobs[lease.job_id] = lease

    def give_back(self, ended: Iterable[Row]) -> None:
        """Take ended leases out of the sums."""
        self._explained.clear()
        for row in ended:
            self._log.ended(row)
            for name in (WHOLE_TENANT, row["job_type"]):
                if name in self._books:
                    self._books.give_back(name, row["slots"], row["kind"])
                else:
                    self._returned.append(row)

    def mark(self) -> Mark:
        """Remember where the desk stands."""
        return Mark(
            self._books.accounts(), dict(self._fencing), dict(self._jobs), self._granted.copy(), self._denied.copy(),
            len(self._leases), len(self._log),
        )  # fmt: skip

    def go_back(self, mark: Mark) -> None:
        """Undo every grant and denial since *mark*."""
        self._books, self._fencing, self._jobs = self._open(mark.accounts), mark.fencing, mark.jobs
        self._granted, self._denied = mark.granted, mark.denied
        for lease, _ in self._leases[mark.leases :]:
            self._outlooks.ended(lease.lease_id)
        del self._leases[mark.leases :]
        self._log.go_back(mark.asked)
        self._explained.clear()

    async def write(self) -> None:
        """Store at once what was decided: for whoever reads it in the same transaction."""
        await self._tx.together(*self.pending())

    def pending(self) -> list[Asked]:
        """Return what is to be stored, and count it as stored."""
        accounts = self._books.accounts()
        changed = {name: account for name, account in accounts.items() if self._stored.get(name) != account}
        writes: list[Asked] = []
        if changed or self._leases or len(self._log):
            left = {**self._columns(changed), **_leases(self._leases), **_hour(self._granted)}
            writes.append(("admission_store", {**left, **self._log.columns(accounts), "now": self.now}))
        if self._returned:
            writes.append(_returned(self._returned, accounts))
        if self._denied:
            writes.append(("admission_count_denials", _denials(self._denied) | {"now": self.now}))
        self._outlooks.stored()
        self._stored = accounts
        self._returned, self._leases = [], []
        self._granted, self._denied = Counter(), Counter()
        return writes

    def _open(self, accounts: Mapping[str, Account]) -> Books:
        return Books(accounts.values(), backfill_share=self.policy.backfill_share, now=self.now)

    def _grant(self, ask: Ask, client_id: str) -> Lease:
        if self._explained:
            self._explained.clear()
        self._granted[WHOLE_TENANT] += 1
        self._granted[ask.job_type] += 1
        self._fencing[ask.job_type] = token = self._fencing[ask.job_type] + 1
        expires_at = self.now + timedelta(seconds=ask.lease_seconds)
        lease = Lease(
            next(self._ids), self._quota_ids[ask.job_type], ask.job_type, ask.slots, ask.kind, ask.job_id, token,
            expires_at, ask.lease_seconds,
        )  # fmt: skip
        self._leases.append((lease, client_id))
        self._log.asked(ask, token)
        self._outlooks.granted(lease.lease_id, ask, expires_at)
        if ask.job_id is not None:
            self._jobs[ask.job_id] = lease
        return lease

    async def _explain(self, denied: Denied, ask: Ask) -> Denied:
        # A batch of a thousand equal questions must not look at the leases a thousand times, under the tenant's lock.
        if (ask.kind, denied) not in self._explained:
            question, concerned = Question(ask, self.policy.backfill_share, self.now), self._books.concerned(ask)
            outlooks = {
                account.name: await self._outlooks.of(
                    account, [*denied.blocking, *foreseen(question, account)], self._granted[account.name]
                )
                for account in concerned
            }
            self._explained[ask.kind, denied] = explain_denial(denied, question, concerned, outlooks)
        return self._explained[ask.kind, denied]

    def _columns(self, changed: Mapping[str, Account]) -> dict[str, object]:
        names = sorted(changed)
        kept = [changed[name] for name in names]
        return {
            "account": text_array(names),
            "fencing": number_array(self._fencing[name] for name in names),
            "active": number_array(account.active for account in kept),
            "active_backfill": number_array(account.active_backfill for account in kept),
            "granted_hour": number_array(account.granted_hour for account in kept),
            "bucket_pico": number_array(account.bucket_pico for account in kept),
            "bucket_at": plain_array(account.bucket_at for account in kept),
        }


def desk_reads(job_types: Iterable[str], *, job_ids: Sequence[str] = (), lease_ids: Sequence[str] = ()) -> list[Asked]:
    """Return what a desk asks first, the lock before all; a transaction may ask it while it begins."""
    accounts = {"accounts": text_array(sorted({WHOLE_TENANT, *job_types}))}
    reads: list[Asked] = [("admission_lock", {}), ("admission_let_go", accounts), ("admission_accounts", accounts)]
    reads += [("admission_same_job", {"job_ids": list(job_ids)})] if job_ids else []
    reads += [("lease_get_many", {"lease_ids": list(lease_ids)})] if lease_ids else []
    return reads


async def open_desk(tx: Transaction, job_types: Iterable[str]) -> AdmissionDesk:
    """Take the tenant's lock, let expired leases leave, and load what decisions about *job_types* need."""
    desk, _ = await open_desk_with(tx, desk_reads(job_types))
    return desk


async def open_desk_with(tx: Transaction, reads: Sequence[Asked]) -> tuple[AdmissionDesk, Sequence[Row]]:
    """Open a desk by these `desk_reads`; returns with it the rows of the leases that they name."""
    if not (answers := tx.opened(reads)):
        # What another desk of this transaction has decided is not stored yet.
        await tx.together(*tx.pending())
        answers = await tx.together(*reads)
    if not answers[0]:
        # The tenant's first admission: there was no row to lock.
        await tx.run("admission_start")
        answers = await tx.together(*reads)
    [lock], over, about, *rest = answers
    named = dict(zip((name for name, _ in reads[3:]), rest, strict=True))
    now = lock["now"]
    gone = {row["job_type"]: row["granted"] for row in over if row["lease_id"] is None}
    accounts = await read_accounts(tx, now, about, gone)
    desk = AdmissionDesk(tx, now, accounts, named.get("admission_same_job", ()))
    # At the commit at the latest: whatever the caller does next, the sums must not part from the leases.
    desk.give_back(row for row in over if row["lease_id"] is not None)
    tx.with_commit(desk.pending)
    return desk, named.get("lease_get_many", ())


def _leases(granted: Sequence[tuple[Lease, str]]) -> dict[str, object]:
    return {
        "lease_id": plain_array(lease.lease_id for lease, _ in granted),
        "job_type": text_array(lease.job_type for lease, _ in granted),
        "quota_id": plain_array(lease.quota_id for lease, _ in granted),
        "kind": plain_array(lease.kind for lease, _ in granted),
        "slots": number_array(lease.slots for lease, _ in granted),
        "job_id": text_array(lease.job_id for lease, _ in granted),
        "fencing_token": number_array(lease.fencing_token for lease, _ in granted),
        "lease_seconds": number_array(lease.lease_seconds for lease, _ in granted),
        "client_id": text_array(client_id for _, client_id in granted),
    }


def _hour(granted: Mapping[str, int]) -> dict[str, object]:
    names = sorted(granted)
    return {"hour_account": text_array(names), "hour_granted": number_array(granted[name] for name in names)}


def _returned(ended: Sequence[Row], opened: Mapping[str, Account]) -> Asked:
    slots, backfill = count_slots(ended)
    names = sorted(slots.keys() - opened.keys())
    return (
        "admission_return_slots",
        {
            "account": names,
            "active": [slots[name] for name in names],
            "active_backfill": [backfill[name] for name in names],
        },
    )


def _denials(denied: Counter[tuple[str, str]]) -> dict[str, object]:
    found = sorted(denied.items())
    return {
        "job_type": [job_type for (job_type, _), _ in found],
        "limit_name": [limit for (_, limit), _ in found],
        "denied": [count for _, count in found],
    }


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
        message = "there is no such lease"
        raise NotFound(message)
    desk.give_back(ended)
    await desk.write()
    return lease
