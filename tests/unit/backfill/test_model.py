"""The states of a backfill, its counts and stop rules, and the digests that tell two apart."""

from dataclasses import replace
from datetime import datetime, timedelta
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.backfill.strategies import NEW_YEAR, days

from jobengine.backfill.model import (
    ACTIVE,
    MAX_PARAMS_BYTES,
    MOVES,
    BackfillRequest,
    BackfillStatus,
    Counts,
    Estimate,
    Move,
    Order,
    Reprocess,
    StopRules,
    canonical_params,
    estimate,
    event_digest,
    moved,
    params_digest,
    scope_digest,
)
from jobengine.backfill.window import Partition
from jobengine.errors import Conflict, ValidationFailed

# Columns: what each move leads to from this state; "-" is forbidden.
STATES = """
             pause    resume   cancel     retry-failed
pending      paused   -        canceling  -
running      paused   -        canceling  -
paused       -        running  canceling  -
canceling    -        -        -          -
canceled     -        -        -          -
completed    -        -        -          -
failed       -        -        -          running
"""
_HEAD, *_ROWS = [line.split() for line in STATES.strip().splitlines()]
CELLS = [(row[0], move, cell) for row in _ROWS for move, cell in zip(_HEAD, row[1:], strict=True)]


def a_request(**changes: Any) -> BackfillRequest:
    request = BackfillRequest(
        backfill_id="b-1",
        tenant_id="acme",
        job_type="orders",
        source="kafka:orders",
        window=days(0, 7),
        params=b"{}",
        params_digest=params_digest(None),
        partition=Partition("P1D"),
        order=Order.FORWARD,
        reprocess=Reprocess.MISSING,
        max_active=None,
        stop_rules=StopRules(),
        status=BackfillStatus.PENDING,
        requested_by="ops",
        token_id="t-1",
        audit_entry_id="e-1",
        created_at=NEW_YEAR,
    )
    return replace(request, **changes)


@pytest.mark.parametrize(("status", "move", "after"), CELLS)
def test_every_move_from_every_state_is_decided(status: str, move: str, after: str) -> None:
    """A move leads where the table says, or is a conflict that names the state."""
    before = BackfillStatus(status)
    if after != "-":
        assert moved(before, Move(move), started=True) == after
        return
    with pytest.raises(Conflict) as refused:
        moved(before, Move(move), started=True)
    assert refused.value.problem_code == "invalid_state"
    assert refused.value.members == {}  # the problem has a status of its own, a number
    assert status in refused.value.detail


def test_the_table_of_moves_is_complete() -> None:
    """The test's table names every state and move, and the model's table no more than it allows."""
    assert {(status, move) for status, move, _ in CELLS} == set(product(BackfillStatus, Move))
    assert {(status, move): after for status, move, after in CELLS if after != "-"} == MOVES


@pytest.mark.parametrize(("started_at", "status"), [(None, "pending"), (NEW_YEAR, "running")])
def test_a_resumed_backfill_is_what_it_was(started_at: datetime | None, status: str) -> None:
    """Paused before its first batch started, a backfill resumes as pending; else as running."""
    paused = a_request(status=BackfillStatus.PAUSED, started_at=started_at)

    assert paused.after(Move.RESUME).status == status


def test_a_retried_backfill_is_no_longer_finished() -> None:
    """A failed backfill runs again with its start kept and its end forgotten."""
    failed = a_request(status=BackfillStatus.FAILED, started_at=NEW_YEAR, finished_at=NEW_YEAR)

    assert failed.after(Move.RETRY_FAILED) == replace(failed, status=BackfillStatus.RUNNING, finished_at=None)


def test_ended_states_are_not_active() -> None:
    """A backfill is active exactly until it is canceled, completed or failed."""
    assert set(BackfillStatus) - ACTIVE == {"canceled", "completed", "failed"}


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [
        (Counts(total=2, succeeded=2), "completed"),
        (Counts(total=2, skipped=2), "completed"),
        (Counts(total=2, succeeded=1, skipped=1), "completed"),
        (Counts(total=2, succeeded=1, failed=1), "failed"),
        (Counts(total=2, skipped=1, failed=1), "failed"),
        (Counts(total=2, failed=1, canceled=1), "failed"),
        (Counts(total=2, failed=1, pending=1), None),
        (Counts(total=2, succeeded=1, running=1), None),
        (Counts(total=2, succeeded=1, canceled=1), None),
        (Counts(total=0), None),
    ],
)
def test_the_verdict_is_counted_over_all_batches(counts: Counts, verdict: str | None) -> None:
    """Done means that every planned batch has ended, never that nothing runs now; no batch at all is no success."""
    assert counts.verdict() == verdict


@pytest.mark.parametrize("states", [{"pending": 1}, {"pending": 3}, {"pending": 3, "failed": -1}, {}])
def test_counts_that_lose_a_batch_are_refused(states: dict[str, int]) -> None:
    """The states sum to the total, and none is negative."""
    with pytest.raises(ValueError):
        Counts(total=2, **states)


@pytest.mark.parametrize(
    ("rules", "failed", "tripped"),
    [
        (StopRules(), 100, False),
        (StopRules(max_failures=0), 0, False),
        (StopRules(max_failures=0), 1, True),
        (StopRules(max_failures=3), 3, False),
        (StopRules(max_failures=3), 4, True),
        (StopRules(max_failure_rate=0.0), 0, False),
        (StopRules(max_failure_rate=0.0), 1, True),
        (StopRules(max_failure_rate=0.29), 29, False),
        (StopRules(max_failure_rate=0.29), 30, True),
        (StopRules(max_failure_rate=1.0), 100, False),
        (StopRules(max_failures=50, max_failure_rate=0.1), 11, True),
        (StopRules(max_failures=5, max_failure_rate=0.9), 6, True),
    ],
)
def test_a_stop_rule_trips_above_its_bound(rules: StopRules, failed: int, tripped: bool) -> None:
    """What a rule allows may fail, one more stops the backfill; skipped batches do not count."""
    counts = Counts(total=110, failed=failed, pending=100 - failed, skipped=10)

    assert rules.tripped(counts) is tripped


@pytest.mark.parametrize(
    ("counts", "status", "seconds", "rate", "eta"),
    [
        (Counts(total=4, pending=4), "running", 10, None, None),
        (Counts(total=4, succeeded=2, pending=2), "running", 0, None, None),
        (Counts(total=4, succeeded=1, failed=1, running=1, pending=1), "running", 10, 0.2, 10),
        (Counts(total=4, succeeded=2, skipped=1, pending=1), "running", 10, 0.2, 5),
        (Counts(total=4, succeeded=2, pending=2), "paused", 10, 0.2, None),
        (Counts(total=4, succeeded=4), "running", 10, 0.4, None),
        (Counts(total=4, succeeded=4), "completed", 10, 0.4, None),
        (Counts(total=10**9, succeeded=1, pending=10**9 - 1), "running", 10**6, 1e-6, None),
    ],
)
def test_pace_and_end_are_null_where_unknown(
    counts: Counts, status: str, seconds: int, rate: float | None, eta: int | None
) -> None:
    """The pace needs an ended batch and time; the end needs a running backfill and a date in the calendar."""
    found = estimate(counts, BackfillStatus(status), ran_for=timedelta(seconds=seconds), now=NEW_YEAR)

    assert found == Estimate(rate=rate, eta=None if eta is None else NEW_YEAR + timedelta(seconds=eta))


@pytest.mark.parametrize(
    "value",
    [
        2**53,
        -(2**53),
        10**400,
        float("nan"),
        float("inf"),
        "\ud800",
        {"\ud800": 1},
        {1: 2},
        pytest.param(object(), id="an object"),
    ],
    ids=repr,
)
def test_params_without_a_canonical_form_are_refused(value: object) -> None:
    """What RFC 8785 cannot write is the sender's mistake, named by path."""
    with pytest.raises(ValidationFailed) as refused:
        params_digest({"deep": [value]})

    assert refused.value.members["errors"][0]["path"] == "params"
    assert refused.value.problem_code == "validation_failed"


def test_params_nested_without_end_are_refused() -> None:
    """Depth that exhausts the stack is a bad value, not a crash."""
    deep: dict[str, object] = {}
    for _ in range(100_000):
        deep = {"d": deep}

    with pytest.raises(ValidationFailed):
        canonical_params(deep)


def test_params_of_sixteen_kibibytes_are_the_most() -> None:
    """The bound is on the canonical form, to the byte."""
    room = MAX_PARAMS_BYTES - len(b'{"a":""}')

    assert len(canonical_params({"a": "x" * room})) == MAX_PARAMS_BYTES
    with pytest.raises(ValidationFailed):
        canonical_params({"a": "x" * (room + 1)})


def test_the_digest_of_params_is_of_their_meaning() -> None:
    """Order, absence and the spelling of numbers make no difference; types do."""
    assert params_digest({"a": 1, "b": 2**53 - 1}) == params_digest({"b": float(2**53 - 1), "a": 1.0})
    assert params_digest({"a": -0.0}) == params_digest({"a": 0})
    assert params_digest(None).hex() == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert len({params_digest({"a": value}) for value in (1, "1", True, None, [1], {})}) == 6


words = st.text(st.sampled_from("ab\0é"), max_size=3)
scopes = st.tuples(words, words, st.binary(max_size=3))


@given(scopes, scopes)
def test_scopes_share_a_digest_only_when_they_are_equal(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    """No way to move a character from one part to the next."""
    assert (scope_digest(*one) == scope_digest(*other)) == (one == other)
    assert len(scope_digest(*one)) == 16


def test_the_scope_of_a_request_is_that_of_its_parts() -> None:
    """Two requests are of one scope when job type, source and parameters agree, whatever their windows."""
    request = a_request()

    assert request.scope == a_request(window=days(8, 9), status=BackfillStatus.FAILED).scope
    assert request.scope == scope_digest("orders", "kafka:orders", params_digest({}))
    assert request.scope != a_request(params_digest=params_digest({"a": 1})).scope


def test_event_digests_are_128_bits_of_utf8() -> None:
    """A key is remembered by its bytes: two ways to write an accent are two keys."""
    assert len(event_digest("")) == 16
    assert event_digest("é") != event_digest("e\u0301")


def test_stored_digests_never_change() -> None:
    """Another release still finds what this one wrote."""
    assert scope_digest("orders", "kafka", b"\1").hex() == "bf4a9ff9c7fe81eede3c9aeb982a6937"
    assert event_digest("order-1").hex() == "56eea00bbcad2f0a2ca2cc13492405d7"
