"""What the future holds for denied askers: read once a transaction, and kept in step with what it decides."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from jobengine.quota.admission import WHOLE_TENANT, Account, Ask, Blocking, Kind, LimitKind
from jobengine.quota.waiting import Holding, Outlook
from jobengine.storage.admission_reads import Row
from jobengine.storage.database import Transaction


class Outlooks:
    """Leases and admissions of one tenant as far as waits hang on them."""

    def __init__(self, tx: Transaction, now: datetime) -> None:
        self._tx = tx
        self._now = now
        # As it is stored, by account and kind, with how many rows were asked for.
        self._read: dict[tuple[str, str | None], tuple[int, Sequence[Row]]] = {}
        # What this very transaction granted, and the leases that it has ended (None) or moved: not stored yet.
        self._fresh: dict[str, tuple[Ask, datetime]] = {}
        self._touched: dict[str, datetime | None] = {}

    def granted(self, lease_id: str, ask: Ask, expires_at: datetime) -> None:
        """Count with a lease that is not stored yet."""
        self._fresh[lease_id] = (ask, expires_at)

    def moved(self, lease_id: str, expires_at: datetime) -> None:
        """Count with a lease's new end."""
        self._touched[lease_id] = expires_at

    def ended(self, lease_id: str) -> None:
        """Count with a lease no more."""
        if self._fresh.pop(lease_id, None) is None:
            self._touched[lease_id] = None

    def stored(self) -> None:
        """Forget what was read: what is stored now holds all that was decided."""
        self._read.clear()
        self._fresh.clear()

    async def of(self, account: Account, blocking: Iterable[Blocking], granted_now: int) -> Outlook:
        """Return what waits for *account*'s limits hang on, as much of it as they need."""
        # Where an override ends during the wait, more has to go.
        last = account.ahead[-1][1] if account.ahead else account.limits
        own = [found for found in blocking if found.job_type == account.job_type]
        hour = [found.surplus for found in own if found.limit is LimitKind.MAX_PER_HOUR]
        grants: list[tuple[datetime, int]] = []
        if hour:
            most = max(hour) + account.limits.max_per_hour - last.max_per_hour
            rows = await self._rows("admission_hour", account.name, None, most)
            grants = [*((row["at"], row["granted"]) for row in rows), (self._now, granted_now)]
        lower = account.limits.max_active - last.max_active
        slots = {
            by_share: [f.surplus for f in own if f.limit is LimitKind.MAX_ACTIVE and f.by_share is by_share]
            for by_share in (False, True)
        }
        return Outlook(
            await self._holdings(account.name, None, max(slots[False]) + lower) if slots[False] else [],
            await self._holdings(account.name, "backfill", max(slots[True]) + lower) if slots[True] else [],
            grants,
        )

    async def _holdings(self, account: str, kind: Kind | None, slots: int) -> list[Holding]:
        # Every lease holds a slot or more, so no more leases than slots are needed, and those that are over.
        stored = await self._rows("admission_holdings", account, kind, slots + len(self._touched))
        ends = [(self._touched.get(str(row["lease_id"]), row["expires_at"]), row["slots"]) for row in stored]
        ends += [
            (self._touched.get(lease_id, expires_at), ask.slots)
            for lease_id, (ask, expires_at) in self._fresh.items()
            if account in (WHOLE_TENANT, ask.job_type) and kind in (None, ask.kind)
        ]
        return [Holding(expires_at, held) for expires_at, held in ends if expires_at is not None]

    async def _rows(self, query: str, account: str, kind: Kind | None, most: int) -> Sequence[Row]:
        asked, rows = self._read.get((query + account, kind), (0, []))
        if asked < most and len(rows) >= asked:
            # Some more than asked for: the next question needs a little more than this one.
            most += 64
            values = {"kind": kind, "now": self._now} if query == "admission_holdings" else {}
            rows = await self._tx.all(query, account=account, most=most, **values)
            self._read[query + account, kind] = (most, rows)
        return rows
