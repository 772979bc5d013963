"""How long a denied asker has to wait: pure functions of what is held, what was admitted and which overrides end."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal

from jobengine.quota.admission import (
    WHOLE_TENANT,
    Account,
    Ask,
    Blocking,
    Denied,
    LimitKind,
    blocking_limits,
)
from jobengine.quota.standing import TOKEN

HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Holding:
    """Slots that a lease gives back at *expires_at* if nobody renews it."""

    expires_at: datetime
    slots: int


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the future holds for one account: its leases, those of backfills, and the hour's admissions, oldest first.

    As much of each as the wait needs is enough.
    """

    holdings: Sequence[Holding] = ()
    backfills: Sequence[Holding] = ()
    grants: Sequence[tuple[datetime, int]] = field(default=())


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked, when, and under which share of backfills."""

    ask: Ask
    backfill_share: Decimal
    now: datetime


def explain(denied: Denied, question: Question, accounts: Sequence[Account], outlooks: Mapping[str, Outlook]) -> Denied:
    """Add to each blocking limit how long to wait: waiting that long, alone, and asking again succeeds there.

    Whoever waits for the longest of them is admitted, though overrides of limits that do not block now may end before.
    """
    by_name = {account.name: account for account in accounts}

    def explained(found: Blocking) -> Blocking:
        name = found.job_type or WHOLE_TENANT
        wait = _wait_through(found, question, by_name[name], outlooks.get(name, Outlook()))
        return replace(found, retry_after_seconds=None if wait is None else wait.total_seconds())

    blocking = [explained(found) for found in denied.blocking]
    longest = longest_wait(Denied(tuple(blocking)))
    if longest is not None and any(account.ahead for account in accounts):
        last = next(number for number, found in enumerate(blocking) if found.retry_after_seconds == longest)
        wait = _wait_for_all(timedelta(seconds=longest), question, accounts, outlooks)
        blocking[last] = replace(blocking[last], retry_after_seconds=None if wait is None else wait.total_seconds())
    return Denied(tuple(blocking))


def foreseen(question: Question, account: Account) -> list[Blocking]:
    """Return what would block now if overrides of *account* were over already: its outlook has to reach that far."""
    later = [replace(account, limits=limits) for _, limits in account.ahead]
    return [
        found
        for under in later
        if question.ask.slots <= under.limits.max_active
        for found in blocking_limits(question.ask, under, question.backfill_share, question.now)
    ]


def _wait_for_all(
    wait: timedelta, question: Question, accounts: Sequence[Account], outlooks: Mapping[str, Outlook]
) -> timedelta | None:
    """Return the first time from *wait* on when no limit in force by then blocks; None if it never comes by itself."""
    for _ in range(1 + sum(len(account.ahead) for account in accounts)):
        for account in accounts:
            over = [limits for end, limits in account.ahead if end <= question.now + wait]
            if not over:
                continue
            if question.ask.slots > over[-1].max_active:
                return None
            under, outlook = replace(account, limits=over[-1]), outlooks.get(account.name, Outlook())
            for found in blocking_limits(question.ask, under, question.backfill_share, question.now):
                own = _wait(found, under, outlook, question.now)
                if own is None:
                    return None
                wait = max(wait, own)
    return wait


def _wait_through(found: Blocking, question: Question, account: Account, outlook: Outlook) -> timedelta | None:
    # An override may end before the wait does: then the wait is that of the lower limits after it.
    phases = [account.limits, *(limits for _, limits in account.ahead)]
    ends = [*(end for end, _ in account.ahead), None]
    for limits, end in zip(phases, ends, strict=True):
        under = replace(account, limits=limits)
        wait = None
        if question.ask.slots <= limits.max_active:
            [same] = _same(found, blocking_limits(question.ask, under, question.backfill_share, question.now))
            wait = _wait(same, under, outlook, question.now)
        if wait is None or end is None or question.now + wait < end:
            return wait
    return None


def _same(found: Blocking, blocking: Iterable[Blocking]) -> list[Blocking]:
    return [other for other in blocking if (other.limit, other.by_share) == (found.limit, found.by_share)]


def longest_wait(denied: Denied) -> float | None:
    """Return the seconds until every blocking limit has given way; None if one of them never does by itself."""
    waits = [found.retry_after_seconds for found in denied.blocking]
    known = [wait for wait in waits if wait is not None]
    return max(known) if known and len(known) == len(waits) else None


def _wait(found: Blocking, account: Account, outlook: Outlook, now: datetime) -> timedelta | None:
    match found.limit:
        case LimitKind.PAUSED:
            return None
        case LimitKind.MAX_ACTIVE:
            return _until_slots(found, outlook.backfills if found.by_share else outlook.holdings, now)
        case LimitKind.MAX_PER_HOUR:
            return _until_hour(found, outlook.grants, now)
        case LimitKind.RATE:
            return _until_token(account, now)


def _until_slots(found: Blocking, holdings: Sequence[Holding], now: datetime) -> timedelta | None:
    surplus = found.surplus
    for holding in sorted(holdings, key=lambda held: held.expires_at):
        surplus -= holding.slots
        if surplus <= 0:
            return holding.expires_at - now
    return None


def _until_hour(found: Blocking, grants: Sequence[tuple[datetime, int]], now: datetime) -> timedelta | None:
    surplus = found.surplus
    if found.maximum < 1:
        return None
    for at, granted in grants:
        surplus -= granted
        if surplus <= 0:
            return at + HOUR - now
    return None


def _until_token(account: Account, now: datetime) -> timedelta | None:
    if account.limits.burst < 1 or account.refill_micro == 0:
        return None
    return timedelta(microseconds=-(-(TOKEN - account.level_pico(now)) // account.refill_micro))
