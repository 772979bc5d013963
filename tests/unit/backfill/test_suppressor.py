"""Which requests are duplicates, and which event keys are: by table, by truth table, and by playing claims out."""

from dataclasses import replace
from datetime import timedelta
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.backfill.strategies import NEW_YEAR, days, half_days

from jobengine.backfill.model import BackfillStatus, Reprocess
from jobengine.backfill.suppressor import (
    Ask,
    AttemptState,
    Duplicate,
    DuplicateSuppressor,
    Earlier,
    HeldKey,
    KeyAnswer,
    KeyAsk,
    Unique,
    decide_key,
)
from jobengine.backfill.window import EventTimeWindow

NOW = NEW_YEAR + timedelta(days=30)
A_DAY = timedelta(hours=24)
SUPPRESSOR = DuplicateSuppressor(A_DAY)


def an_earlier(
    status: str = "running", window: EventTimeWindow | None = None, *, name: str = "b-1", age: timedelta = timedelta(1)
) -> Earlier:
    return Earlier(name, BackfillStatus(status), window or days(0, 7), NOW - age)


YOUNG, OLD = A_DAY - timedelta.resolution, A_DAY


@pytest.mark.parametrize(
    ("status", "age", "suppresses"),
    [
        *product(["pending", "running", "paused", "canceling"], [YOUNG, OLD], [{"missing", "failed", "all"}]),
        ("completed", YOUNG, {"missing", "failed"}),
        ("completed", timedelta(0), {"missing", "failed"}),
        ("completed", -timedelta(seconds=1), {"missing", "failed"}),
        ("completed", OLD, set[str]()),
        *product(["failed", "canceled"], [YOUNG, OLD], [set[str]()]),
    ],
)
@pytest.mark.parametrize("reprocess", Reprocess)
def test_an_overlap_suppresses_by_state_and_age(
    status: str, age: timedelta, suppresses: set[str], reprocess: Reprocess
) -> None:
    """Active work always suppresses; completed work while it is young, unless everything is to be done again."""
    answer = SUPPRESSOR.decide(Ask(days(3, 10), reprocess), [an_earlier(status, age=age)], NOW)

    assert isinstance(answer, Duplicate) == (reprocess.value in suppresses)


def test_windows_that_only_touch_do_not_suppress() -> None:
    """A backfill of the next day is no duplicate of today's."""
    assert SUPPRESSOR.decide(Ask(days(7, 8), Reprocess.MISSING), [an_earlier(window=days(0, 7))], NOW) == Unique()


def test_a_duplicate_names_overlaps_and_free_windows() -> None:
    """Overlaps come oldest first and whole; what they leave of the window is free to be asked for."""
    young = an_earlier("running", days(4, 6), name="b-young", age=timedelta(hours=1))
    old = an_earlier("paused", days(-5, 2), name="b-old", age=timedelta(hours=2))
    failed = an_earlier("failed", days(0, 30), name="b-failed")

    answer = SUPPRESSOR.decide(Ask(days(0, 10), Reprocess.ALL), [young, failed, old], NOW)

    assert answer == Duplicate((old, young), (days(2, 4), days(6, 10)))


def test_a_window_that_others_cover_leaves_nothing_free() -> None:
    """Two overlaps that meet cover the window between them."""
    halves = [an_earlier(window=days(0, 3)), an_earlier("completed", days(3, 7), age=YOUNG)]
    answer = SUPPRESSOR.decide(Ask(days(1, 6), Reprocess.FAILED), halves, NOW)

    assert answer == Duplicate(tuple(sorted(halves, key=lambda other: other.created_at)), ())


@pytest.mark.parametrize("age", [timedelta(0), timedelta(seconds=1), -timedelta(seconds=1)])
def test_a_suppression_window_of_zero_frees_completed_work(age: timedelta) -> None:
    """With the setting at zero only active work suppresses, however the clocks stand."""
    off = DuplicateSuppressor(timedelta(0))

    assert off.decide(Ask(days(0, 1), Reprocess.MISSING), [an_earlier("completed", age=age)], NOW) == Unique()
    assert off.decide(Ask(days(0, 1), Reprocess.MISSING), [an_earlier("running", age=age)], NOW) != Unique()


def test_a_suppression_window_of_centuries_has_no_overflow() -> None:
    """The longest duration there is suppresses for ever."""
    for_ever = DuplicateSuppressor(timedelta.max)

    assert for_ever.decide(Ask(days(0, 1), Reprocess.MISSING), [an_earlier("completed")], NOW) != Unique()


def test_a_negative_suppression_window_is_refused() -> None:
    """The setting is a length of time."""
    with pytest.raises(ValueError):
        DuplicateSuppressor(-timedelta.resolution)


earlier_backfills = st.builds(
    Earlier,
    st.uuids().map(str),
    st.sampled_from(BackfillStatus),
    half_days(),
    st.sampled_from([NOW, NOW - YOUNG, NOW - OLD]),
)


@given(half_days(), st.sampled_from(Reprocess), st.lists(earlier_backfills, max_size=6))
def test_asking_for_a_free_window_is_always_granted(
    window: EventTimeWindow, reprocess: Reprocess, earlier: list[Earlier]
) -> None:
    """The uncovered windows of a refusal are not refused, and no overlap is named that shares nothing with the ask."""
    answer = SUPPRESSOR.decide(Ask(window, reprocess), earlier, NOW)
    if isinstance(answer, Unique):
        return

    assert all(other.window.overlaps(window) for other in answer.overlaps)
    assert all(SUPPRESSOR.decide(Ask(free, reprocess), earlier, NOW) == Unique() for free in answer.uncovered)


# Claims of event keys -----------------------------------------------------------------------------------------------
# The row's own claim: is its attempt completed, or the claim checkpointed (F), or may it still be (live, L), or never
# more (dead, D); was the key processed before it (w). Then: does the row belong to the asking backfill, and what is
# answered to missing, failed and all.
TRUTH = """
F .  mine    duplicate duplicate duplicate
F .  other   duplicate duplicate fresh
F w  mine    duplicate duplicate duplicate
F w  other   duplicate duplicate fresh
L .  mine    busy      busy      busy
L .  other   busy      busy      busy
L w  mine    duplicate duplicate busy
L w  other   duplicate duplicate busy
D .  mine    fresh     fresh     fresh
D .  other   fresh     fresh     fresh
D w  mine    duplicate duplicate fresh
D w  other   duplicate duplicate fresh
"""
ROWS = [line.split() for line in TRUTH.strip().splitlines()]
LIVE, COMPLETED, LOST = AttemptState.LIVE, AttemptState.COMPLETED, AttemptState.LOST
# Every way to be F, L or D, as (attempt_state, call_no, final_call_no).
WAYS = {
    "F": [(COMPLETED, 2, 0), (COMPLETED, 2, 2), (LIVE, 2, 2), (LIVE, 2, 3), (LOST, 2, 2), (LOST, 2, 3)],
    "L": [(LIVE, 2, 0), (LIVE, 2, 1)],
    "D": [(LOST, 2, 0), (LOST, 2, 1)],
}
CASES = [
    (way, was == "w", owner, reprocess, answer)
    for kind, was, owner, *answers in ROWS
    for reprocess, answer in zip(Reprocess, answers, strict=True)
    for way in WAYS[kind]
]


@pytest.mark.parametrize(("way", "was_final", "owner", "reprocess", "answer"), CASES)
def test_a_key_of_another_attempt_is_judged_by_its_row(
    way: tuple[AttemptState, int, int], was_final: bool, owner: str, reprocess: Reprocess, answer: str
) -> None:
    """A processed key is a duplicate (with ``all``, if this backfill did it), a held one busy, any other fresh."""
    state, call_no, final_call_no = way
    held = HeldKey(
        backfill_id=owner,
        attempt_id=1,
        call_no=call_no,
        attempt_state=state,
        final_call_no=final_call_no,
        was_final=was_final,
    )

    assert decide_key(held, KeyAsk(backfill_id="mine", reprocess=reprocess, attempt_id=2, call_no=1)) == answer


def test_the_truth_table_names_every_row() -> None:
    """No state of the row and no ask is left out."""
    assert list(Reprocess) == ["missing", "failed", "all"]
    assert {tuple(row[:3]) for row in ROWS} == set(product("FLD", ".w", ["mine", "other"]))
    reached = {(state, call > final) for ways in WAYS.values() for state, call, final in ways}
    assert reached == set(product(AttemptState, [True, False]))


@pytest.mark.parametrize("reprocess", Reprocess)
def test_a_key_never_seen_is_fresh(reprocess: Reprocess) -> None:
    """No row, no question."""
    assert decide_key(None, KeyAsk(backfill_id="b", reprocess=reprocess, attempt_id=1, call_no=1)) == "fresh"


@pytest.mark.parametrize(("call_no", "answer"), [(1, "duplicate"), (2, "fresh"), (3, "duplicate")])
@pytest.mark.parametrize("final_call_no", [0, 1, 2, 3])
@pytest.mark.parametrize("was_final", [False, True])
@pytest.mark.parametrize("reprocess", Reprocess)
def test_an_attempt_is_told_fresh_by_one_call_only(
    call_no: int, answer: str, final_call_no: int, was_final: bool, reprocess: Reprocess
) -> None:
    """The call that took the key is told so again, also after its checkpoint; the attempt's other calls are not."""
    held = HeldKey(
        backfill_id="b",
        attempt_id=7,
        call_no=2,
        attempt_state=LIVE,
        final_call_no=final_call_no,
        was_final=was_final,
    )

    assert decide_key(held, KeyAsk(backfill_id="b", reprocess=reprocess, attempt_id=7, call_no=call_no)) == answer


class Ledger:
    """One key and the attempts that claim it, kept as the database keeps them."""

    def __init__(self) -> None:
        self.row: HeldKey | None = None
        self.processed: list[str] = []

    def claim(self, ask: KeyAsk) -> KeyAnswer:
        answer = decide_key(self.row, ask)
        if answer is KeyAnswer.FRESH and (self.row is None or self.row.attempt_id != ask.attempt_id):
            self.row = HeldKey(
                backfill_id=ask.backfill_id,
                attempt_id=ask.attempt_id,
                call_no=ask.call_no,
                attempt_state=LIVE,
                final_call_no=0,
                was_final=self.row is not None and self.row.ever_final,
            )
        return answer

    def end(self, attempt_id: int, state: AttemptState, final_call_no: int) -> None:
        if self.row is None or self.row.attempt_id != attempt_id or self.row.attempt_state is not LIVE:
            return
        before = self.row.is_final
        self.row = replace(self.row, attempt_state=state, final_call_no=max(self.row.final_call_no, final_call_no))
        if self.row.is_final and not before:
            self.processed.append(self.row.backfill_id)


# Attempts 1 to 4 are of "b", 5 and 6 of "again", which reprocesses all.
steps = st.one_of(
    st.tuples(st.just("claim"), st.integers(1, 6), st.integers(1, 3)),
    st.tuples(st.sampled_from(AttemptState), st.integers(1, 6), st.integers(0, 3)),
)


@given(st.lists(steps, max_size=40), st.sampled_from([Reprocess.MISSING, Reprocess.FAILED]))
def test_a_key_is_processed_once_whoever_names_it(play: list[tuple[str, int, int]], reprocess: Reprocess) -> None:
    """Through claims, checkpoints, completions and losses in any order: once, and once more for ``all``."""
    ledger, over = Ledger(), set[int]()
    for step, attempt_id, call_no in play:
        if attempt_id in over:
            continue
        if step == "claim":
            backfill_id, how = ("b", reprocess) if attempt_id <= 4 else ("again", Reprocess.ALL)
            ledger.claim(KeyAsk(backfill_id=backfill_id, reprocess=how, attempt_id=attempt_id, call_no=call_no))
            continue
        state = AttemptState(step)
        ledger.end(attempt_id, state, call_no)
        over |= {attempt_id} - ({attempt_id} if state is LIVE else set[int]())

    assert ledger.processed.count("b") <= 1
    assert ledger.processed.count("again") <= 1


def test_a_stale_claim_is_taken_over() -> None:
    """A key whose attempt was lost before its checkpoint is fresh to the next, and then held."""
    ledger = Ledger()
    first = KeyAsk(backfill_id="b", reprocess=Reprocess.MISSING, attempt_id=1, call_no=1)
    second, third = replace(first, attempt_id=2), replace(first, attempt_id=3)

    assert ledger.claim(first) == "fresh"
    assert ledger.claim(second) == "busy"
    ledger.end(1, LOST, final_call_no=0)
    assert ledger.claim(second) == "fresh"
    assert ledger.claim(third) == "busy"
    ledger.end(2, COMPLETED, final_call_no=0)
    assert ledger.claim(third) == "duplicate"
