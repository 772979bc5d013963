"""The event ledger: which keys an attempt may process, thousands in one call."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Final

from jobengine.backfill.attempts import EventClaim
from jobengine.backfill.model import Reprocess, event_digest, scope_digest
from jobengine.backfill.suppressor import AttemptState, HeldKey, KeyAnswer, KeyAsk, decide_key
from jobengine.errors import LeaseLost, NotFound
from jobengine.storage.database import Database, Transaction

DIGEST_BYTES: Final = 16
# Of ten thousand keys each, perhaps: a second's work, more or less.
ATTEMPTS_A_PRUNING: Final = 50
MOST_PRUNINGS: Final = 20
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class _Caller:
    """A live attempt in one call; *numbers* are those of the same call made before, *number* is this one's."""

    attempt_id: int
    backfill_id: str
    numbers: frozenset[int]
    number: int


async def claim_events(tx: Transaction, batch_id: str, fencing_token: int, keys: Sequence[str]) -> EventClaim:
    """Claim *keys* for the attempt; they are its own until it completes, checkpoints, or is lost.

    The attempt's row is locked first: nobody can end the attempt, or checkpoint it, in the middle of a claim. Raises
    NotFound, or LeaseLost.
    """
    attempt = await tx.find("attempt_lock", batch_id=batch_id, fencing_token=fencing_token)
    work = await tx.find("attempt_scope", batch_id=batch_id)
    if work is None:
        raise NotFound("there is no such batch")
    if attempt is None or attempt["state"] != "live" or not work["is_held"]:
        raise LeaseLost("the batch is not held under this fencing token")
    by_digest = {event_digest(key): key for key in keys}
    caller = await _call(tx, attempt, str(work["backfill_id"]), by_digest)
    answers = await _answers(tx, caller, work, list(by_digest))
    sorted_out: dict[KeyAnswer, list[str]] = {answer: [] for answer in KeyAnswer}
    for event, key in by_digest.items():
        sorted_out[answers[event]].append(key)
    return EventClaim(sorted_out[KeyAnswer.FRESH], sorted_out[KeyAnswer.DUPLICATE], sorted_out[KeyAnswer.BUSY])


async def _answers(
    tx: Transaction, caller: _Caller, work: Mapping[str, Any], events: Sequence[bytes]
) -> dict[bytes, KeyAnswer]:
    scope = scope_digest(work["job_type"], work["source"], bytes(work["params_digest"]))
    reprocess = Reprocess(work["reprocess"])
    answers = await _claim(tx, caller, scope, events, reprocess)
    if reprocess is Reprocess.ALL:
        # Once more for this backfill: its own ledger tells what it has done, whoever touched the shared one since.
        fresh = [event for event, answer in answers.items() if answer is KeyAnswer.FRESH]
        own = scope_digest("", caller.backfill_id, scope)
        answers |= await _claim(tx, caller, own, fresh, Reprocess.MISSING)
    return answers


async def _call(tx: Transaction, attempt: Mapping[str, Any], backfill_id: str, events: Iterable[bytes]) -> _Caller:
    attempt_id, digest = attempt["attempt_id"], sha256(b"".join(sorted(events))).digest()
    known = await tx.all("event_call", attempt_id=attempt_id, call_digest=digest)
    # A repeat gets a number of its own: what was busy and is free now must not count as checkpointed already.
    number = attempt["last_call"] + 1
    await tx.run("event_call_add", attempt_id=attempt_id, call_digest=digest, call_no=number)
    await tx.run("attempt_called", attempt_id=attempt_id, call_no=number)
    return _Caller(attempt_id, backfill_id, frozenset(row["call_no"] for row in known), number)


async def _claim(
    tx: Transaction, caller: _Caller, scope: bytes, events: Sequence[bytes], reprocess: Reprocess
) -> dict[bytes, KeyAnswer]:
    # Most keys are decided without a lock: what was processed stays so, and whoever is busy now was busy when asked.
    answers = await _look(tx, caller, scope, events, reprocess)
    unknown = sorted(event for event in events if answers.get(event) is None)
    fresh = await _insert(tx, caller, scope, [event for event in unknown if event not in answers])
    answers |= dict.fromkeys(fresh, KeyAnswer.FRESH)
    contended = [event for event in unknown if answers.get(event) is None]
    answers |= await _take_over(tx, caller, scope, contended, reprocess)
    return {event: answer for event, answer in answers.items() if answer is not None}


async def _look(
    tx: Transaction, caller: _Caller, scope: bytes, events: Sequence[bytes], reprocess: Reprocess
) -> dict[bytes, KeyAnswer | None]:
    """Return the answers that no lock is needed for, and None for keys that may be taken over from another attempt."""
    if not events:
        return {}
    rows = await tx.all("event_look", scope=scope, events=b"".join(events))
    attempts = await _attempts(tx, rows)
    answers: dict[bytes, KeyAnswer | None] = {}
    # The keys of one call stand alike. A claim so old that it was forgotten meanwhile is none.
    for row in (row for row in rows if row["attempt_id"] in attempts):
        held = _held(row, attempts[row["attempt_id"]])
        answer = decide_key(held, _ask(caller, held, reprocess))
        stands = answer is not KeyAnswer.FRESH or held.attempt_id == caller.attempt_id
        answers |= dict.fromkeys(_apart(row["events"]), answer if stands else None)
    return answers


async def _insert(tx: Transaction, caller: _Caller, scope: bytes, events: Sequence[bytes]) -> Sequence[bytes]:
    if not events:
        return []
    where: dict[str, Any] = {"scope": scope, "attempt_id": caller.attempt_id, "call_no": caller.number}
    inserted = await tx.one("event_insert", **where, events=b"".join(events))
    return events if inserted["events"] is None else _apart(inserted["events"])


async def _take_over(
    tx: Transaction, caller: _Caller, scope: bytes, events: Sequence[bytes], reprocess: Reprocess
) -> dict[bytes, KeyAnswer]:
    if not events:
        return {}
    rows = await tx.all("event_lock", scope=scope, events=list(events))
    attempts = await _attempts(tx, rows)
    answers: dict[bytes, KeyAnswer] = {}
    taken: dict[bytes, bool] = {}
    for row in rows:
        event, held = bytes(row["event"]), _held(row, attempts[row["attempt_id"]])
        answers[event] = decide_key(held, _ask(caller, held, reprocess))
        if answers[event] is KeyAnswer.FRESH and held.attempt_id != caller.attempt_id:
            taken[event] = held.ever_final
    if taken:
        where: dict[str, Any] = {"scope": scope, "attempt_id": caller.attempt_id, "call_no": caller.number}
        await tx.run("event_take_over", **where, events=list(taken), finals=list(taken.values()))
    return answers


async def _attempts(tx: Transaction, rows: Iterable[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    found = await tx.all("attempt_states", attempt_ids=sorted({row["attempt_id"] for row in rows}))
    return {attempt["attempt_id"]: attempt for attempt in found}


def _apart(events: bytes) -> list[bytes]:
    return [events[at : at + DIGEST_BYTES] for at in range(0, len(events), DIGEST_BYTES)]


def _ask(caller: _Caller, held: HeldKey, reprocess: Reprocess) -> KeyAsk:
    same = held.attempt_id == caller.attempt_id and held.call_no in caller.numbers
    return KeyAsk(
        backfill_id=caller.backfill_id,
        reprocess=reprocess,
        attempt_id=caller.attempt_id,
        call_no=held.call_no if same else caller.number,
    )


def _held(row: Mapping[str, Any], attempt: Mapping[str, Any]) -> HeldKey:
    return HeldKey(
        backfill_id=str(attempt["backfill_id"]),
        attempt_id=row["attempt_id"],
        call_no=row["call_no"],
        attempt_state=AttemptState(attempt["state"]),
        final_call_no=attempt["final_call"],
        was_final=row["was_final"],
    )


async def forget_events(database: Database, retention: timedelta) -> int:
    """Forget keys whose attempt ended longer ago than *retention*, and stale calls; return how many attempts.

    In short transactions, and no more of them than leave the rest of the minute to others: what is left comes next.
    """
    async with database.system() as tx:
        await tx.run("system_prune_event_calls")
    forgotten = 0
    for _ in range(MOST_PRUNINGS):
        async with database.system() as tx:
            before = tx.now - min(retention, tx.now - _EPOCH)
            rows = await tx.all("system_old_attempts", before=before, most=ATTEMPTS_A_PRUNING)
            attempt_ids = [row["attempt_id"] for row in rows]
            for query in ("system_prune_event_keys", "system_prune_attempts") if attempt_ids else ():
                await tx.run(query, attempt_ids=attempt_ids)
        forgotten += len(attempt_ids)
        if len(attempt_ids) < ATTEMPTS_A_PRUNING:
            break
    return forgotten
