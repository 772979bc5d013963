"""The record of asks: written with each group of decisions, read to decide them again under other limits."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import msgspec

from jobengine.governance.simulation import BACKFILL, END, EXPIRED, GRANTED, Moment, Told
from jobengine.quota.admission import Account, Ask
from jobengine.quota.model import Limits
from jobengine.quota.standing import TOKEN, micros_of
from jobengine.storage.arrays import number_array, text_array
from jobengine.storage.database import Database, Transaction

Row = Mapping[str, Any]

# As many partitions as the table has; a day's rows lie in that of its number.
DAY_SLOTS: Final = 64
HOUR: Final = timedelta(hours=1)
MOST_ROWS: Final = 2_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NOTHING: Final = timedelta(0)
_MILLISECOND: Final = timedelta(milliseconds=1)
_LIMITED, _PAUSED, _WAITS = 1, 2, 4
_LIMITS: Final = 5
_STATE: Final = 6
_MOST_MILLIS: Final = 2**31 - 1
# After so many rows the loop gets its turn, to read the next ones.
_TURN: Final = 16
_LAST_ID: Final = 2**63 - 1
_COLUMNS: Final = msgspec.json.Decoder(list[list[int]])

NO_ROW: Final[Mapping[str, object]] = dict.fromkeys(
    (
        "day_slot", "share", "asked", "asked_accounts", "asked_limits", "asked_state", "asked_kinds", "asked_places",
        "asked_slots", "asked_seconds", "asked_tokens",
    )
)  # fmt: skip
"""Nothing to be stored."""

_Place = tuple[datetime, int]


class AskLog:
    """What one desk was asked and what it answered, in order, for one row of the record."""

    def __init__(self, now: datetime, share: Decimal, accounts: Mapping[str, Account]) -> None:
        self._now = now
        self._share = share
        self._accounts = dict(accounts)
        self._operations: list[tuple[int, str, int, int, int]] = []

    def __len__(self) -> int:
        """Return how many operations are yet to be written."""
        return len(self._operations)

    def asked(self, ask: Ask, fencing_token: int) -> None:
        """Note an ask, with its lease's fencing token, or 0 where it was denied."""
        kind = (GRANTED if fencing_token else 0) | (BACKFILL if ask.kind == "backfill" else 0)
        self._operations.append((kind, ask.job_type, ask.slots, ask.lease_seconds, fencing_token))

    def ended(self, lease: Row) -> None:
        """Note that a lease is over: given back, forced out, or at its end."""
        kind = END | (BACKFILL if lease["kind"] == "backfill" else 0)
        late, millis = self._now - lease["expires_at"], 0
        if late >= _NOTHING:
            kind |= EXPIRED
            millis = min(late // _MILLISECOND, _MOST_MILLIS)
        self._operations.append((kind, lease["job_type"], lease["slots"], millis, lease["fencing_token"]))

    def go_back(self, length: int) -> None:
        """Forget all but the first *length* operations."""
        del self._operations[length:]

    def columns(self, accounts: Mapping[str, Account]) -> Mapping[str, object]:
        """Return the row that is to be stored, NO_ROW for none, and begin anew with *accounts* as they are now."""
        if not self._operations:
            return NO_ROW
        names = [*self._accounts, *sorted({item[1] for item in self._operations} - self._accounts.keys())]
        place = {name: number for number, name in enumerate(names)}
        kinds, whose, slots, seconds, tokens = zip(*self._operations, strict=True)
        row = {
            "day_slot": day_slot(self._now),
            "share": self._share,
            "asked": sum(not kind & END for kind in kinds),
            "asked_accounts": text_array(names),
            "asked_limits": number_array(number for account in self._accounts.values() for number in _limits(account)),
            "asked_state": number_array(number for account in self._accounts.values() for number in _state(account)),
            "asked_kinds": number_array(kinds),
            "asked_places": number_array([place[name] for name in whose]),
            "asked_slots": number_array(slots),
            "asked_seconds": number_array(seconds),
            "asked_tokens": number_array(tokens),
        }
        self._accounts = dict(accounts)
        self._operations = []
        return row


@dataclass(frozen=True, slots=True)
class Extent:
    """How much there is to decide again: from *since* on, with the hour before it to know what was in use."""

    since: datetime
    until: datetime
    asked: int
    older: bool

    @property
    def first(self) -> datetime:
        """Where reading begins."""
        return self.since - HOUR


async def read_extent(tx: Transaction, since: datetime, retention: timedelta) -> Extent:
    """Return how many asks were recorded from *since* on."""
    oldest = tx.now - retention
    first = since - HOUR
    row = await tx.one(
        "asks_extent", since=since, oldest=min(oldest, first), until=tx.now, day_slots=_day_slots(oldest, tx.now)
    )
    return Extent(since, tx.now, row["asked"], row["older"])


async def read_moments(database: Database, tenant_id: str, extent: Extent) -> AsyncIterator[Moment]:
    """Return the record of a tenant, in the order of the decisions; the next rows are read while these are taken."""
    reader = _Reader(micros_of(extent.first) if extent.older else None)
    ends = await _page_ends(database, tenant_id, extent)
    ahead = asyncio.create_task(_page(database, tenant_id, ends[0], ends[1]))
    try:
        for number in range(1, len(ends)):
            rows = await ahead
            if number + 1 < len(ends):
                ahead = asyncio.create_task(_page(database, tenant_id, ends[number], ends[number + 1]))
            for place, row in enumerate(rows):
                if place % _TURN == 0:
                    await asyncio.sleep(0)
                yield reader.moment(row)
    finally:
        ahead.cancel()


async def _page_ends(database: Database, tenant_id: str, extent: Extent) -> list[_Place]:
    # Pages with both ends: where the planner would rather sort, it sorts a page, and not what is left at each page.
    days = _day_slots(extent.first, extent.until)
    async with database.transaction(tenant_id) as tx:
        rows = await tx.all("asks_pages", day_slots=days, since=extent.first, until=extent.until, most=MOST_ROWS)
    return [(extent.first, 0), *((row["at"], row["record_id"]) for row in rows), (extent.until, _LAST_ID)]


async def _page(database: Database, tenant_id: str, after: _Place, upto: _Place) -> list[dict[str, Any]]:
    days = _day_slots(after[0], upto[0])
    async with database.transaction(tenant_id) as tx:
        return await tx.all(
            "asks_read", day_slots=days, after=after[0], after_id=after[1], upto=upto[0], upto_id=upto[1]
        )


class _Reader:
    """Rows → moments, each of which tells of an account only what is new of it."""

    def __init__(self, began: int | None) -> None:
        # Whoever was admitted before the first row that is read: before the reading began, or nobody knows when.
        self._began = began
        self._told: dict[str, tuple[object, int]] = {}
        # The last row: its accounts and what held, its time, and who waited; most rows say the same.
        self._last: tuple[tuple[list[str], str, str], int, list[str]] = ([], "{}", ""), 0, []

    def moment(self, row: Row) -> Moment:
        at, names = row["micros"], row["accounts"]
        state, kinds, places, slots, seconds, tokens = _columns(row)
        known = names[: len(state) // _STATE], row["limits"], row["share"]
        last, last_at, waits = self._last
        told: list[Told] = []
        # A bucket that was counted after the last decision was counted because its limits had changed.
        if known != last or max(state[5::_STATE], default=0) > last_at:
            self._told |= {name: (self._told[name][0], last_at) for name in last[0]}
            told, waits = self._new(row, state)
        self._last = known, at, waits
        return Moment(at, names, told, waits, kinds, places, slots, seconds, tokens)

    def _new(self, row: Row, state: Sequence[int]) -> tuple[list[Told], list[str]]:
        at, limits = row["micros"], _plain(row["limits"])
        told: list[Told] = []
        waits: list[str] = []
        for number, name in enumerate(row["accounts"][: len(limits) // _LIMITS]):
            own = tuple(limits[number * _LIMITS : (number + 1) * _LIMITS])
            use = state[number * _STATE : (number + 1) * _STATE]
            before, last_at = self._told.get(name, (None, 0))
            if before != (own, row["share"]) or use[5] > last_at:
                told.append(_told(name, own, use, Decimal(row["share"]), self._began or at))
            self._told[name] = (own, row["share"]), at
            if own[0] & _WAITS:
                waits.append(name)
        return told, waits


def _plain(array: str) -> list[int]:
    return msgspec.json.decode(f"[{array[1:-1]}]", type=list[int])


def _columns(row: Row) -> list[list[int]]:
    # Arrays as JSON, all at once: a quarter of what the driver takes for them one by one.
    arrays = f"[{row['state']},{row['kinds']},{row['places']},{row['slots']},{row['seconds']},{row['tokens']}]"
    return _COLUMNS.decode(arrays.replace("{", "[").replace("}", "]"))


def day_slot(at: datetime) -> int:
    """Return in which partition the rows of a moment lie.

    >>> day_slot(datetime(1970, 1, 1, tzinfo=UTC)), day_slot(datetime(1970, 3, 7, tzinfo=UTC))
    (0, 1)
    """
    return (at - _EPOCH).days % DAY_SLOTS


def _day_slots(since: datetime, until: datetime) -> list[int]:
    days = (until - _EPOCH).days - (since - _EPOCH).days + 1
    return sorted({day_slot(since + timedelta(days=day)) for day in range(min(days, DAY_SLOTS))} | {day_slot(until)})


def _limits(account: Account) -> Sequence[int]:
    limits = account.limits
    flags = 0 if account.name == "" and account.quota_id is None else _LIMITED
    flags |= (_PAUSED if account.paused else 0) | (_WAITS if account.batch_waits else 0)
    return flags, limits.max_active, limits.max_per_hour, limits.burst, account.refill_micro


def _state(account: Account) -> Sequence[int]:
    # A full bucket has no level: -1 says so. 10^-12 tokens do not fit into 64 bits, so they stand in two parts.
    whole, part = (-1, 0) if account.bucket_pico is None else divmod(account.bucket_pico, TOKEN)
    at = 0 if account.bucket_at is None else micros_of(account.bucket_at)
    return account.active, account.active_backfill, account.granted_hour, whole, part, at


def _told(name: str, limits: Sequence[int], use: Sequence[int], share: Decimal, hour_at: int) -> Told:
    flags, max_active, max_per_hour, burst, refill = limits
    active, backfill, hour, whole, part, level_at = use
    return Told(
        account=name,
        limited=bool(flags & _LIMITED),
        paused=bool(flags & _PAUSED),
        limits=Limits(max_active, max_per_hour, burst, Decimal(refill) / 10**6),
        share=share,
        active=active,
        active_backfill=backfill,
        granted_hour=hour,
        hour_at=hour_at,
        level=None if whole < 0 else whole * TOKEN + part,
        level_at=level_at,
    )
