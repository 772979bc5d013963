"""Batches at work: handed out under a lease, kept alive, ended; many words of one tenant in one transaction.

Locks are taken in one order: the tenant's, then backfills, then batches. Whoever moves a backfill takes its row alone.
"""

from collections.abc import Sequence
from typing import cast

from jobengine.backfill.attempts import Beat, Checkpoint, ClaimedBatch, Events
from jobengine.errors import JobengineError, NotFound
from jobengine.storage.admission import open_desk
from jobengine.storage.batch_claims import Claims
from jobengine.storage.batch_ends import MOST_SWEPT, Floor
from jobengine.storage.batch_words import Claim, HandlerKind, Heartbeat, Operation, Outcome, Word, given_back
from jobengine.storage.database import Transaction


async def carry_out(tx: Transaction, operations: Sequence[Operation]) -> list[Outcome]:
    """Carry out *operations*, what is said before what is asked, and return an outcome for each in their order."""
    claims = [item for item in operations if isinstance(item, Claim)]
    words = [item for item in operations if not isinstance(item, Claim)]
    due = {name for claim in claims for name in await _due(tx, claim)}
    suspect = await _suspect(tx) if claims else set[str]()
    job_types = due | suspect | await _spoken_of(tx, words)
    if not job_types:
        return [[] if isinstance(item, Claim) else NotFound("there is no such batch") for item in operations]
    desk = await open_desk(tx, job_types)
    floor = Floor(tx, desk)
    if suspect:
        await floor.sweep(job_types)
        # What was lost is due at once.
        due |= suspect
    heard = iter(await floor.hear(words))
    handing = Claims(tx, desk, floor.backfills)
    handed = iter([await handing.hand_out(claim, due) for claim in claims])
    await floor.write()
    await desk.write()
    return [next(handed) if isinstance(item, Claim) else next(heard) for item in operations]


async def say(tx: Transaction, operation: Operation) -> Outcome:
    """Carry out one operation alone; raises what it is refused with: NotFound, or LeaseLost."""
    [outcome] = await carry_out(tx, [operation])
    if isinstance(outcome, JobengineError):
        raise outcome
    return outcome


async def claim(
    tx: Transaction, kind: HandlerKind, job_types: Sequence[str], most: int, client_id: str
) -> list[ClaimedBatch]:
    """Hand out up to *most* batches."""
    return cast("list[ClaimedBatch]", await say(tx, Claim(kind, job_types, most, client_id)))


async def heartbeat(
    tx: Transaction, batch_id: str, fencing_token: int, checkpoint: Checkpoint | None, events: Events | None
) -> Beat:
    """Keep the batch for another lease; raises LeaseLost."""
    return cast("Beat", await say(tx, Heartbeat(batch_id, fencing_token, checkpoint, events)))


async def give_back(tx: Transaction, batch_id: str, fencing_token: int) -> None:
    """End the attempt of a worker that leaves: claimable again at once, and not counted. Raises LeaseLost."""
    await say(tx, given_back(batch_id, fencing_token))


async def sweep(tx: Transaction) -> int:
    """Take back batches whose lease is over, and those a cancel has waited for long enough; return how many."""
    job_types = await _suspect(tx)
    if not job_types:
        return 0
    desk = await open_desk(tx, job_types)
    floor = Floor(tx, desk)
    taken = await floor.sweep(job_types)
    await desk.write()
    return taken


async def _due(tx: Transaction, asked: Claim) -> list[str]:
    rows = await tx.all("batch_due_types", handler_kind=asked.kind, job_types=list(asked.job_types))
    return [row["job_type"] for row in rows]


async def _suspect(tx: Transaction) -> set[str]:
    return {batch["job_type"] for batch in await tx.all("batch_overdue", now=tx.now, most=MOST_SWEPT)}


async def _spoken_of(tx: Transaction, words: Sequence[Word]) -> set[str]:
    if not words:
        return set()
    return {row["job_type"] for row in await tx.all("batch_job_types", batch_ids=[word.batch_id for word in words])}
