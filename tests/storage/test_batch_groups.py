"""Many workers at once: what they say and ask goes into few transactions, and each is answered as if it came alone."""

import asyncio
from collections import Counter
from itertools import pairwise

import pytest
from tests.backfilling import Crew, make_crew
from tests.factories import Api, Connection
from tests.storage.test_events import somebody_waits

from jobengine.backfill.attempts import ClaimedBatch, Events
from jobengine.errors import LeaseLost, NotFound, Unavailable
from jobengine.ids import new_id
from jobengine.storage import batch_committer
from jobengine.storage.admission import open_desk
from jobengine.storage.batch_committer import BatchCommitter
from jobengine.storage.batch_words import Claim, Completion, Operation, failed
from jobengine.storage.batches import carry_out

NOBODY = Claim("external", ["external"], 64, "jec_test")


@pytest.fixture
async def crew(api: Api) -> Crew:
    """Somebody with room for their batches."""
    return await make_crew(api)


async def claimed(crew: Crew, most: int) -> list[ClaimedBatch]:
    """Claim as a worker beside the database does."""
    found = await crew.api.plane.batches.carry_out(
        crew.api.tenant_id, Claim("external", ["external"], most, "jec_test")
    )
    assert isinstance(found, list)
    return found


def done(batch: ClaimedBatch, **events: int) -> Completion:
    """Say that a batch is done."""
    return Completion(batch.batch_id, batch.fencing_token, Events(**events))


async def test_one_transaction_tells_each_word_its_own_outcome(crew: Crew) -> None:
    """A stale token, an unknown batch and a repeat stand beside good words and change nothing about them."""
    made = await crew.start(5, max_failures=5)
    first, second, third = await claimed(crew, 3)
    stale = Completion(second.batch_id, second.fencing_token + 1, None)
    words: list[Operation] = [
        done(first, processed=3),
        Completion(new_id(), 1, None),
        stale,
        done(first, processed=99),
        failed(third.batch_id, third.fencing_token, "no luck", retryable=False),
        failed(third.batch_id, third.fencing_token, "no luck", retryable=False),
        Claim("external", ["external"], 9, "jec_test"),
    ]

    async with crew.api.plane.database.transaction(crew.api.tenant_id) as tx:
        outcomes = await carry_out(tx, words)

    assert outcomes[0] is None
    assert isinstance(outcomes[1], NotFound)
    assert isinstance(outcomes[2], LeaseLost)
    assert outcomes[3] is None
    assert outcomes[4] is None
    assert isinstance(outcomes[5], LeaseLost)
    assert isinstance(outcomes[6], list)
    assert len(outcomes[6]) == 2
    assert await crew.counts(made) == {"total": 5, "succeeded": 1, "failed": 1, "running": 3}
    assert (await crew.show(made))["progress"]["events"]["processed"] == 3
    assert (await crew.active(), await crew.drift()) == (3, 0)


async def test_a_failure_that_stops_a_backfill_stops_it_before_the_claims_beside_it(crew: Crew) -> None:
    """Nothing of a backfill is handed out in the transaction in which its stop rule trips."""
    made = await crew.start(9, max_failures=0)
    [batch] = await claimed(crew, 1)

    async with crew.api.plane.database.transaction(crew.api.tenant_id) as tx:
        _, handed = await carry_out(
            tx, [failed(batch.batch_id, batch.fencing_token, "no luck", retryable=False), NOBODY]
        )

    assert handed == []
    shown = await crew.show(made)
    assert (shown["status"], shown["stop_reason"]) == ("failed", "1 of 9 batches failed")
    assert await crew.counts(made) == {"total": 9, "failed": 1, "canceled": 8}


async def test_a_crowd_of_workers_ends_every_batch_once(crew: Crew) -> None:
    """Hundreds of batches, claimed and completed by many at once: none is lost, none is run twice, no slot leaks."""
    made = [await crew.start(150, source=f"s{number}") for number in range(2)]
    ran: Counter[str] = Counter()

    async def work() -> None:
        while batches := await claimed(crew, 7):
            ran.update(batch.batch_id for batch in batches)
            await asyncio.gather(
                *(crew.api.plane.batches.carry_out(crew.api.tenant_id, done(batch)) for batch in batches)
            )

    await asyncio.gather(*(work() for _ in range(6)))
    # Whoever found nothing to claim left, while the last batches of others made room for more.
    await work()

    assert [(await crew.show(one))["status"] for one in made] == ["completed"] * 2
    assert (len(ran), set(ran.values())) == (300, {1})
    assert (await crew.active(), await crew.drift()) == (0, 0)


async def test_batches_for_a_worker_that_has_gone_are_given_back(crew: Crew, owner: Connection) -> None:
    """A claim that was under way when its asker left leaves no batch to nobody; no attempt is counted."""
    made = await crew.start(3)
    async with crew.api.plane.database.transaction(crew.api.tenant_id) as tx:
        await open_desk(tx, ["external"])
        # Whoever claims waits for the tenant's lock, and is gone when it is free.
        asking = asyncio.create_task(claimed(crew, 3))
        await somebody_waits(owner)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await crew.api.plane.batches.close()

    assert await crew.counts(made) == {"total": 3, "pending": 3}
    assert [batch.attempt for batch in await claimed(crew, 3)] == [1, 1, 1]
    assert await crew.drift() == 0


async def test_a_queue_that_is_full_refuses_and_costs_nothing(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes when too many wait is told to come again."""
    monkeypatch.setattr(batch_committer, "MOST_WAITING_OF_A_TENANT", 2)
    committer = BatchCommitter(crew.api.plane.database)
    asked = [asyncio.create_task(committer.carry_out(crew.api.tenant_id, NOBODY)) for _ in range(3)]

    answers = await asyncio.gather(*asked, return_exceptions=True)

    assert [answer for answer in answers if not isinstance(answer, Unavailable)] == [[], []]
    [refused] = [answer for answer in answers if isinstance(answer, Unavailable)]
    assert refused.problem_code == "overloaded"


async def test_with_one_slot_a_short_backfill_takes_turns_with_a_long_one(crew: Crew) -> None:
    """Nobody waits behind a longer one, whichever began first."""
    long = await crew.start(100, source="long", max_active=1)
    short = await crew.start(4, source="short")
    order: list[str] = []
    for _ in range(8):
        [batch] = await claimed(crew, 1)
        order.append(batch.backfill_id)
        await crew.api.plane.batches.carry_out(crew.api.tenant_id, done(batch))

    assert Counter(order) == {long["backfill_id"]: 4, short["backfill_id"]: 4}
    assert all(one != other for one, other in pairwise(order))


async def test_retried_batches_run_in_the_order_of_the_backfill(crew: Crew) -> None:
    """However many they are, and although others behind them never ran: a stop rule had canceled those."""
    made = await crew.start(200, max_failures=69)
    for _ in range(2):
        for batch in await claimed(crew, 35):
            word = failed(batch.batch_id, batch.fencing_token, "no luck", retryable=False)
            await crew.api.plane.batches.carry_out(crew.api.tenant_id, word)
    assert await crew.counts(made) == {"total": 200, "failed": 70, "canceled": 130}

    await crew.moved(made, "retry-failed")
    starts = []
    while batches := await claimed(crew, 40):
        starts += [batch.window.start for batch in batches]
        await asyncio.gather(*(crew.api.plane.batches.carry_out(crew.api.tenant_id, done(batch)) for batch in batches))

    assert (len(starts), starts) == (200, sorted(starts))
    assert (await crew.show(made))["status"] == "completed"
