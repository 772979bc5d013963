"""Who may do the same work again: requests by window, events by key."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from jobengine.backfill.model import ACTIVE, BackfillStatus, Reprocess
from jobengine.backfill.window import EventTimeWindow


@dataclass(frozen=True, slots=True)
class Ask:
    """What a new request wants to work on, within one scope."""

    window: EventTimeWindow
    reprocess: Reprocess


@dataclass(frozen=True, slots=True)
class Earlier:
    """An earlier backfill of the same tenant and scope."""

    backfill_id: str
    status: BackfillStatus
    window: EventTimeWindow
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Unique:
    """Nobody does or did this work; the request may be made."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Others do or did this work: who (oldest first), and which parts of the window are still free."""

    overlaps: tuple[Earlier, ...]
    uncovered: tuple[EventTimeWindow, ...]


@dataclass(frozen=True, slots=True)
class DuplicateSuppressor:
    """Refuse a request whose window overlaps active work, or work that was asked for lately and completed.

    Failed and canceled backfills never suppress. A *suppression_window* of zero lets all completed work be repeated;
    ValueError when it is negative.
    """

    suppression_window: timedelta

    def __post_init__(self) -> None:
        if self.suppression_window < timedelta(0):
            message = "the suppression window cannot be negative"
            raise ValueError(message)

    def decide(self, ask: Ask, earlier: Iterable[Earlier], now: datetime) -> Unique | Duplicate:
        """Judge *ask* against every earlier backfill of its scope; ``reprocess: all`` repeats completed work only.

        >>> from datetime import UTC
        >>> day = EventTimeWindow.parse("2026-01-01T00:00:00Z/2026-01-02T00:00:00Z")
        >>> noon = datetime(2026, 2, 1, 12, tzinfo=UTC)
        >>> done = Earlier("b-1", BackfillStatus.COMPLETED, day, created_at=noon)
        >>> a_day = DuplicateSuppressor(timedelta(hours=24))
        >>> a_day.decide(Ask(day, Reprocess.MISSING), [done], noon).overlaps == (done,)
        True
        >>> a_day.decide(Ask(day, Reprocess.ALL), [done], noon)
        Unique()
        """
        overlaps = [
            other for other in earlier if other.window.overlaps(ask.window) and self._suppresses(other, ask, now)
        ]
        if not overlaps:
            return Unique()
        overlaps.sort(key=lambda other: (other.created_at, other.backfill_id))
        return Duplicate(tuple(overlaps), tuple(ask.window.subtract(other.window for other in overlaps)))

    def _suppresses(self, other: Earlier, ask: Ask, now: datetime) -> bool:
        if other.status in ACTIVE:
            return True
        if other.status is not BackfillStatus.COMPLETED or ask.reprocess is Reprocess.ALL:
            return False
        # An age, not `now - window`, which has no date when the setting is centuries; one below zero is a clock's skew.
        return max(now - other.created_at, timedelta(0)) < self.suppression_window


class AttemptState(StrEnum):
    """What became of a batch attempt: its lease lives, it completed, or it ended in any other way."""

    LIVE = "live"
    COMPLETED = "completed"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldKey:
    """The stored row of an event key: the last claim that was answered ``fresh``, and how its attempt stands now.

    *call_no* numbers the claim calls of an attempt; those up to *final_call_no* (0 for none) became final with a
    checkpoint. *was_final* tells that the key had been processed before this claim took over the row.
    """

    backfill_id: str
    attempt_id: int
    call_no: int
    attempt_state: AttemptState
    final_call_no: int
    was_final: bool

    @property
    def is_final(self) -> bool:
        """Whether this very claim counts as processed."""
        return self.attempt_state is AttemptState.COMPLETED or self.call_no <= self.final_call_no

    @property
    def ever_final(self) -> bool:
        """Whether the key counts as processed by this claim or one before it; what the next claim's *was_final* is."""
        return self.is_final or self.was_final

    @property
    def is_held(self) -> bool:
        """Whether this claim may still become final."""
        return self.attempt_state is AttemptState.LIVE and not self.is_final


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyAsk:
    """A live attempt's claim call that names an event key."""

    backfill_id: str
    reprocess: Reprocess
    attempt_id: int
    call_no: int


class KeyAnswer(StrEnum):
    """What a claim is told about a key: process it, leave it for good, or ask again later."""

    FRESH = "fresh"
    DUPLICATE = "duplicate"
    BUSY = "busy"


def decide_key(held: HeldKey | None, ask: KeyAsk) -> KeyAnswer:
    """Tell whether *ask* may process a key: once for all, or with ``reprocess: all`` once more for that backfill.

    The promise of the SQL that decides thousands at a time. ``fresh`` takes over the row, and *ever_final* of the old
    claim becomes *was_final* of the new one.

    >>> ask = KeyAsk(backfill_id="b", reprocess=Reprocess.MISSING, attempt_id=1, call_no=1)
    >>> decide_key(None, ask)
    <KeyAnswer.FRESH: 'fresh'>
    """
    if held is None:
        return KeyAnswer.FRESH
    if held.attempt_id == ask.attempt_id:
        # The same call again, its answer lost on the way, or a later call that names the key once more.
        return KeyAnswer.FRESH if held.call_no == ask.call_no else KeyAnswer.DUPLICATE
    if ask.reprocess is Reprocess.ALL:
        processed = held.is_final and held.backfill_id == ask.backfill_id
    else:
        processed = held.ever_final
    if processed:
        return KeyAnswer.DUPLICATE
    return KeyAnswer.BUSY if held.is_held else KeyAnswer.FRESH
