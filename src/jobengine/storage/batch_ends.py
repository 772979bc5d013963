"""Running batches under the tenant's lock: taken back, kept alive, ended, each in few statements for many."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from psycopg.types.json import Jsonb

from jobengine.backfill.attempts import Beat, Events
from jobengine.backfill.dispatcher import Cause, Ending, after_failure
from jobengine.backfill.model import BackfillStatus, BatchStatus
from jobengine.errors import JobengineError, LeaseLost, NotFound
from jobengine.metrics import BATCH_ATTEMPTS, note_completed
from jobengine.storage.admission import AdmissionDesk
from jobengine.storage.batch_words import Completion, Failure, Heartbeat, Outcome, Word
from jobengine.storage.course import Row, go_on, lock_rows
from jobengine.storage.database import Asked, Transaction

# A sweep is one transaction under the tenant's lock; the next one takes what is left.
MOST_SWEPT = 100


@dataclass(frozen=True, slots=True)
class _Ended:
    batch: Row
    state: Literal["completed", "lost"]
    ending: Ending
    error: str | None
    events: Mapping[str, int]


class Floor:
    """The batches that one transaction speaks about, and the *backfills* it has locked for that."""

    def __init__(self, tx: Transaction, desk: AdmissionDesk) -> None:
        self._tx = tx
        self._desk = desk
        self.backfills: dict[str, Row] = {}

    async def sweep(self, job_types: set[str]) -> int:
        """Take back batches of *job_types* that nobody may hold any more; return how many."""
        # Once more, now that nobody can change them: a suspect may have been renewed or completed meanwhile.
        found = await self._tx.all("batch_overdue", now=self._desk.now, most=MOST_SWEPT)
        overdue = [batch for batch in found if batch["job_type"] in job_types]
        await self._lock(overdue)
        await self._end([self._give_up(batch, Cause.LEASE_LOST, "the lease was lost") for batch in overdue])
        return len(overdue)

    async def hear(self, words: Sequence[Word]) -> list[Outcome]:
        """Take in what workers say and return the outcome of each."""
        if not words:
            return []
        said = {"batch_ids": [word.batch_id for word in words], "tokens": [word.fencing_token for word in words]}
        rows = await self._tx.all("batch_held", **said)
        batches = {(str(row["batch_id"]), int(row["told_token"])): row for row in rows}
        await self._lock(batches[key] for word in words if (key := _key(word)) in batches and _ends(word))
        ended: list[_Ended] = []
        outcomes = [await self._take_in(word, batches.get(_key(word)), ended) for word in words]
        await self._end(ended)
        return outcomes

    async def write(self) -> None:
        """Store where the backfills stand; once, at the end."""
        await go_on(self._tx, self.backfills.values())

    async def _lock(self, batches: Iterable[Row]) -> None:
        wanted = {str(batch["backfill_id"]) for batch in batches} - self.backfills.keys()
        self.backfills |= await lock_rows(self._tx, wanted)

    async def _take_in(self, word: Word, batch: Row | None, ended: list[_Ended]) -> Outcome:
        if batch is None:
            return NotFound("there is no such batch")
        if isinstance(word, Completion) and batch["told_state"] == "completed":
            return None
        if (refused := self._refused(batch)) is not None:
            return refused
        match word:
            case Completion(events=events):
                ended.append(self._complete(batch, _reported(batch, events)))
            case Failure(cause=cause, error=error):
                ended.append(self._give_up(batch, cause, error))
            case Heartbeat():
                return await self._beat(word, batch)
        return None

    def _refused(self, batch: Row) -> JobengineError | None:
        held = batch["status"] == "running" and batch["fencing_token"] == batch["told_token"]
        # An operator may have forced the admission out: a batch does not run without one.
        if not held or batch["lease_expires_at"] <= self._desk.now or not batch["is_admitted"]:
            return LeaseLost("the batch is not held under this fencing token")
        return None

    async def _beat(self, word: Heartbeat, batch: Row) -> Beat:
        expires_at = self._desk.now + timedelta(seconds=batch["lease_seconds"])
        checkpoint = word.checkpoint
        kept = {"has_checkpoint": checkpoint is not None, "checkpoint": Jsonb(checkpoint.value) if checkpoint else None}
        lease = {"lease_id": batch["lease_id"], "lease_seconds": batch["lease_seconds"], "expires_at": expires_at}
        said: list[Asked] = [
            ("lease_extend", lease),
            (
                "batch_beat",
                {"batch_id": word.batch_id, "lease_expires_at": expires_at, **kept, **_reported(batch, word.events)},
            ),
        ]
        if checkpoint is not None:
            said.append(("attempt_checkpoint", {"batch_id": word.batch_id, "fencing_token": word.fencing_token}))
        await self._tx.together(*said)
        return Beat(expires_at, batch["cancel_requested"])

    def _complete(self, batch: Row, reported: Mapping[str, int]) -> _Ended:
        row = self.backfills[str(batch["backfill_id"])]
        row["succeeded"] += 1
        for name, count in reported.items():
            row[name] += count
        self._tx.when_committed(lambda: note_completed(*reported.values()))
        # The same words once more in this very transaction are answered like any repeat.
        batch |= {"status": "succeeded", "told_state": "completed"}
        done = Ending(BatchStatus.SUCCEEDED, self._desk.now, batch["attempts"])
        return _Ended(batch, "completed", done, None, reported)

    def _give_up(self, batch: Row, cause: Cause, error: str) -> _Ended:
        row = self.backfills[str(batch["backfill_id"])]
        ending = after_failure(
            cause,
            attempts=batch["attempts"],
            max_attempts=row["max_attempts"],
            backfill=BackfillStatus(row["status"]),
            stopped=row["stop_reason"] is not None,
            now=self._desk.now,
        )
        if ending.status is not BatchStatus.PENDING:
            row[ending.status.value] += 1
        self._tx.when_committed(BATCH_ATTEMPTS.labels(ending.status.value, cause.value).inc)
        batch["status"] = ending.status.value
        return _Ended(batch, "lost", ending, error, _NO_EVENTS)

    async def _end(self, ended: Sequence[_Ended]) -> None:
        if not ended:
            return
        held = {
            "batch_ids": [item.batch["batch_id"] for item in ended],
            "fencing_tokens": [item.batch["fencing_token"] for item in ended],
        }
        endings = ["released" if item.state == "completed" else "forced_out" for item in ended]
        now = self._desk.now
        leases, _, _ = await self._tx.together(
            (
                "batch_leases_end",
                {"lease_ids": [item.batch["lease_id"] for item in ended], "endings": endings, "now": now},
            ),
            ("attempt_end", held | {"states": [item.state for item in ended], "now": now}),
            ("batch_end", held | _columns(ended) | {"now": now}),
        )
        self._desk.give_back(leases)
        if any(item.state == "lost" for item in ended):
            # A failure may stop its backfill, and nothing of that is handed out any more.
            await self.write()


def _key(word: Word) -> tuple[str, int]:
    return word.batch_id, word.fencing_token


def _ends(word: Word) -> bool:
    return not isinstance(word, Heartbeat)


def _columns(ended: Sequence[_Ended]) -> dict[str, object]:
    columns: dict[str, object] = {
        "statuses": [item.ending.status.value for item in ended],
        "not_before": [item.ending.not_before for item in ended],
        "attempts": [item.ending.attempts for item in ended],
        "errors": [item.error for item in ended],
    }
    return columns | {name: [item.events[name] for item in ended] for name in _NO_EVENTS}


def _reported(batch: Row, events: Events | None) -> dict[str, int]:
    if events is None:
        return {name: batch[name] for name in _NO_EVENTS}
    return {
        "events_processed": events.processed,
        "events_duplicates": events.duplicates,
        "events_failed": events.failed,
    }


_NO_EVENTS: Mapping[str, int] = {"events_processed": 0, "events_duplicates": 0, "events_failed": 0}
