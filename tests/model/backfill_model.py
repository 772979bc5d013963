"""What backfills, batches and event keys do, said once more and simply: days for windows, and a clock that is told."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

LEASE = 60
"""Seconds, as the job type ``patient`` has it; time passes in steps that end well before or well after it."""
MAX_ATTEMPTS = 3
ACTIVE = {"pending", "running", "paused", "canceling"}
OPEN = {"pending", "running"}


@dataclass(eq=False)
class Attempt:
    """A claim of a batch: which keys it claimed in which call, and which of them are final."""

    batch: "Batch"
    token: int
    live: bool = True
    claims: dict[str, frozenset[str]] = field(default_factory=dict)
    final: set[str] = field(default_factory=set)


@dataclass(eq=False)
class Batch:
    """A day of a backfill."""

    backfill: "Backfill"
    day: int
    status: str = "pending"
    attempts: int = 0
    backing_off: bool = False
    lease_until: int = 0
    checkpoint: object = None
    attempt: Attempt | None = None
    batch_id: str = ""

    def end(self, status: str) -> None:
        """End the attempt in one way or another."""
        if self.attempt is not None:
            self.attempt.live = False
        self.status, self.attempt = status, None


@dataclass(eq=False)
class Backfill:
    """A request and its batches by day."""

    backfill_id: str
    days: range
    reprocess: str
    max_active: int | None
    status: str = "pending"
    started: bool = False
    canceled_at: int = 0
    batches: dict[int, Batch] = field(default_factory=dict)

    def count(self, *statuses: str) -> int:
        """Return how many batches stand there."""
        return sum(batch.status in statuses for batch in self.batches.values())

    def settle(self) -> None:
        """End when everything has ended."""
        if self.status == "canceling" and not self.count("running"):
            self.status = "canceled"
        elif self.status in OPEN and not self.count(*OPEN):
            self.status = "failed" if self.count("failed") else "completed"

    def overlaps(self, days: range) -> bool:
        """Tell whether a day is in both."""
        return bool(set(self.days) & set(days))


@dataclass
class World:
    """One tenant's work of one key."""

    now: int = 0
    backfills: list[Backfill] = field(default_factory=list)
    ended: list[tuple[int, bool]] = field(default_factory=list)
    """Days in the order in which batches ended on them, and whether well."""
    processed: dict[str, list[Backfill]] = field(default_factory=dict)
    last_token: int = 0

    def batches(self, *statuses: str) -> list[Batch]:
        """Return the batches that stand there."""
        found = [batch for backfill in self.backfills for batch in backfill.batches.values()]
        return [batch for batch in found if batch.status in statuses]

    def suppressed(self, days: range, reprocess: str) -> bool:
        """Tell whether a request repeats somebody; all of this happens within the suppression window."""
        asleep = ACTIVE if reprocess == "all" else ACTIVE | {"completed"}
        return any(other.overlaps(days) and other.status in asleep for other in self.backfills)

    def skips(self, day: int, reprocess: str) -> bool:
        """Tell whether a new backfill skips a day."""
        history = [well for other, well in self.ended if other == day]
        match reprocess:
            case "missing":
                return any(history)
            case "failed":
                return not history or history[-1]
            case _:
                return False

    def add(self, backfill: Backfill) -> None:
        """Plan a new backfill."""
        for day in backfill.days:
            status = "skipped" if self.skips(day, backfill.reprocess) else "pending"
            backfill.batches[day] = Batch(backfill, day, status)
        self.backfills.append(backfill)
        backfill.settle()

    def held(self, batch: Batch) -> bool:
        """Tell whether the attempt at a running batch still holds it."""
        return batch.status == "running" and self.now < batch.lease_until

    def sweep(self) -> None:
        """Take back what is overdue, as every claim does first."""
        for batch in self.batches("running"):
            fenced = batch.backfill.status == "canceling" and self.now >= batch.backfill.canceled_at + 10
            if not self.held(batch) or fenced:
                self.lose(batch, again=True)

    def lose(self, batch: Batch, *, again: bool, backing_off: bool = False) -> None:
        """End an attempt that did not complete its batch."""
        if batch.backfill.status == "canceling":
            batch.end("canceled")
        elif again and batch.attempts < MAX_ATTEMPTS:
            batch.end("pending")
            batch.backing_off = backing_off
        else:
            batch.end("failed")
            self.ended.append((batch.day, False))
        batch.backfill.settle()

    def complete(self, batch: Batch) -> None:
        """End a batch well."""
        assert batch.attempt is not None
        self.finalize(batch.attempt)
        batch.end("succeeded")
        self.ended.append((batch.day, True))
        batch.backfill.settle()

    def finalize(self, attempt: Attempt) -> None:
        """Make everything final that an attempt claimed; what it was told is fresh must not be processed by now."""
        backfill = attempt.batch.backfill
        for key in attempt.claims.keys() - attempt.final:
            before = self.processed.setdefault(key, [])
            assert backfill not in before, f"{key} is processed twice by one backfill"
            assert backfill.reprocess == "all" or not before, f"{key} is processed twice"
            before.append(backfill)
            attempt.final.add(key)

    def answers(self, attempt: Attempt, key: str, call: frozenset[str]) -> set[str]:
        """Return what an attempt may be told about a key that it names in a call."""
        if key in attempt.claims:
            return {"fresh"} if attempt.claims[key] == call else {"duplicates"}
        backfill, before = attempt.batch.backfill, self.processed.get(key, [])
        mine = backfill in before
        busy = any(key in other.claims.keys() - other.final for other in self._others(attempt))
        if backfill.reprocess != "all":
            return {"duplicates"} if before else {"busy"} if busy else {"fresh"}
        if mine:
            # Busy while another backfill does the key once more; the next answer is that it is done.
            return {"duplicates", "busy"} if busy else {"duplicates"}
        return {"busy"} if busy else {"fresh"}

    def _others(self, attempt: Attempt) -> Iterator[Attempt]:
        # An attempt whose lease is over holds its keys until somebody looks.
        for batch in self.batches("running"):
            if batch.attempt is not None and batch.attempt is not attempt:
                yield batch.attempt

    def eligible(self) -> Iterable[Batch]:
        """Return the batches that a claim may hand out."""
        for batch in self.batches("pending"):
            backfill = batch.backfill
            below = backfill.max_active is None or backfill.count("running") < backfill.max_active
            if backfill.status in OPEN and below and not batch.backing_off:
                yield batch
