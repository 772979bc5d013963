"""The event ledger on a real database: a key is processed once, whoever names it, however often and whenever."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from tests.backfilling import Crew, Json, days, make_crew
from tests.factories import Api, Connection, expect_problem

from jobengine.backfill.model import event_digest, params_digest, scope_digest
from jobengine.storage.events import claim_events

LATE = 16
MANY = [f"order-{number:06d}-{'x' * 240}" for number in range(10_000)]

Wait = Callable[[float], Awaitable[None]]


@pytest.fixture
async def crew(api: Api) -> Crew:
    """Somebody with room for their batches."""
    return await make_crew(api)


@pytest.fixture
def wait(crew: Crew, later: Callable[[str, float], Awaitable[None]]) -> Wait:
    """What lets seconds pass for the crew's tenant."""

    async def let(seconds: float) -> None:
        await later(crew.api.tenant_id, seconds)

    return let


async def two(crew: Crew, **changes: object) -> tuple[Json, Json]:
    """Start a backfill of two batches and hold both."""
    await crew.start(2, **changes)
    first, second = await crew.claim(2)
    return first, second


async def test_keys_keep_their_order_and_stand_once(crew: Crew) -> None:
    """A key named twice is listed once, where it was named first."""
    first, _ = await two(crew)

    assert await crew.keys(first, "b", "a", "b", "c", "a") == (["b", "a", "c"], [], [])


async def test_the_same_call_again_gives_the_same_answer(crew: Crew) -> None:
    """Its answer may have been lost on the way; another call that names a key again learns that it has it already."""
    first, _ = await two(crew)
    for _ in range(2):
        assert await crew.keys(first, "a", "b") == (["a", "b"], [], [])
    assert await crew.keys(first, "b", "a", "b") == (["b", "a"], [], [])

    assert await crew.keys(first, "b", "c") == (["c"], ["b"], [])
    assert await crew.keys(first, "b", "c") == (["c"], ["b"], [])


async def test_a_key_of_a_live_attempt_is_busy(crew: Crew) -> None:
    """Whoever completes has it for good; whoever fails sets it free for the very call that found it busy."""
    first, second = await two(crew)
    assert await crew.keys(first, "a", "b") == (["a", "b"], [], [])
    assert await crew.keys(second, "b", "c") == (["c"], [], ["b"])
    await crew.fail(first, retryable=True)

    assert await crew.keys(second, "b", "c") == (["b", "c"], [], [])
    await crew.done(second)


async def test_what_completed_is_never_fresh_again(crew: Crew) -> None:
    """For no batch, no attempt and no later backfill of the same work."""
    first, second = await two(crew)
    await crew.keys(first, "a")
    await crew.done(first)

    assert await crew.keys(second, "a", "b") == (["b"], ["a"], [])
    await crew.fail(second)
    later_on = await crew.start(0, window=days(1, 3))
    batch, _ = await crew.claim(2)
    assert batch["backfill_id"] == later_on["backfill_id"]
    assert await crew.keys(batch, "a", "b") == (["b"], ["a"], [])


async def test_a_lost_lease_sets_its_keys_free(crew: Crew, wait: Wait) -> None:
    """All but those that a checkpoint made final."""
    await crew.start(1)
    first = await crew.one()
    await crew.keys(first, "a", "b")
    assert (await crew.say(first, "heartbeat", checkpoint={"n": 2})).status_code == 200
    await crew.keys(first, "c")
    await wait(LATE)
    again = await crew.one()

    assert await crew.keys(again, "a", "b", "c", "d") == (["c", "d"], ["a", "b"], [])


async def test_a_heartbeat_without_a_checkpoint_makes_nothing_final(crew: Crew, wait: Wait) -> None:
    """Staying alive is not having processed anything."""
    await crew.start(1)
    first = await crew.one()
    await crew.keys(first, "a")
    await crew.say(first, "heartbeat", events={"processed": 1})
    await wait(LATE)

    assert await crew.keys(await crew.one(), "a") == (["a"], [], [])


async def test_a_checkpoint_settles_keys_while_the_attempt_lives(crew: Crew) -> None:
    """To others they are duplicates and no longer busy."""
    first, second = await two(crew)
    await crew.keys(first, "a")
    await crew.say(first, "heartbeat", checkpoint=1)
    await crew.keys(first, "b")

    assert await crew.keys(second, "a", "b") == ([], ["a"], ["b"])


async def test_a_cancel_sets_keys_free_with_the_batch(crew: Crew) -> None:
    """A backfill that was canceled has processed nothing of what it did not settle."""
    made = await crew.start(1)
    batch = await crew.one()
    await crew.keys(batch, "a")
    await crew.moved(made, "cancel")
    await crew.fail(batch)

    await crew.start(1)
    assert await crew.keys(await crew.one(), "a") == (["a"], [], [])


@pytest.mark.parametrize("changes", [{"source": "invoices"}, {"params": {"a": 1}}, {"job_type": "patient"}])
async def test_a_key_of_other_work_is_another_key(crew: Crew, changes: Json) -> None:
    """Job type, source and parameters tell keys apart, as they tell backfills apart."""
    first, _ = await two(crew)
    await crew.keys(first, "a")
    await crew.done(first)
    other = await crew.start(1, **changes)
    batch = next(
        batch for batch in await crew.claim(9, "external", "patient") if batch["backfill_id"] == other["backfill_id"]
    )

    assert await crew.keys(batch, "a") == (["a"], [], [])


async def test_a_key_of_another_tenant_is_another_key(crew: Crew, stranger: Api) -> None:
    """Two tenants that run the same work share no event."""
    theirs = await make_crew(stranger)
    for one in (crew, theirs):
        first, _ = await two(one)
        assert await one.keys(first, "a") == (["a"], [], [])
        await one.done(first)


async def test_all_processes_everything_once_more_and_only_once(crew: Crew) -> None:
    """For its own backfill: not twice in it, and to others the keys stay processed."""
    first, second = await two(crew)
    await crew.keys(first, "a", "b")
    await crew.done(first)
    await crew.done(second)
    once, twice = await two(crew, reprocess="all")

    assert await crew.keys(once, "a", "b", "a") == (["a", "b"], [], [])
    assert await crew.keys(once, "a", "b") == (["a", "b"], [], [])
    assert await crew.keys(twice, "a", "c") == (["c"], [], ["a"])
    await crew.done(once)
    assert await crew.keys(twice, "a", "c") == (["c"], ["a"], [])
    beside = await crew.start(0, window=days(5, 6))
    other = await crew.one()
    assert other["backfill_id"] == beside["backfill_id"]
    assert await crew.keys(other, "a", "b", "c") == ([], ["a", "b"], ["c"])


async def test_a_key_stays_processed_when_doing_it_again_fails(crew: Crew) -> None:
    """An attempt with ``all`` takes the key over and is lost: to everybody else it was processed all the time."""
    first, _ = await two(crew)
    await crew.keys(first, "a")
    await crew.done(first)
    beside = await crew.start(0, window=days(5, 7), reprocess="all")
    again, once_more = [batch for batch in await crew.claim(9) if batch["backfill_id"] == beside["backfill_id"]]
    assert await crew.keys(again, "a") == (["a"], [], [])
    await crew.fail(again)

    await crew.start(0, window=days(8, 9))
    assert await crew.keys(await crew.one(), "a") == ([], ["a"], [])
    assert await crew.keys(once_more, "a") == (["a"], [], [])


async def test_a_repeated_call_settles_nothing_it_got_later(crew: Crew, wait: Wait) -> None:
    """What was busy at the first call and fresh at its repeat is not covered by the checkpoint between the two."""
    first, second = await two(crew)
    await crew.keys(first, "b")
    assert await crew.keys(second, "a", "b") == (["a"], [], ["b"])
    await crew.say(second, "heartbeat", checkpoint=1)
    await crew.fail(first)
    assert await crew.keys(second, "a", "b") == (["a", "b"], [], [])
    await wait(LATE)

    assert await crew.keys(await crew.one(), "a", "b") == (["b"], ["a"], [])


async def test_all_of_two_backfills_process_a_key_once_each(crew: Crew) -> None:
    """Whoever touched the shared ledger last, each backfill knows what it has done itself."""
    one = await crew.start(2, reprocess="all")
    other = await crew.start(0, window=days(2, 4), reprocess="all")
    hand = await crew.claim(4)
    [first, again], [beside, _] = (
        [batch for batch in hand if batch["backfill_id"] == made["backfill_id"]] for made in (one, other)
    )

    assert await crew.keys(first, "a") == (["a"], [], [])
    assert await crew.keys(beside, "a") == ([], [], ["a"])
    await crew.done(first)
    assert await crew.keys(beside, "a") == (["a"], [], [])
    await crew.done(beside)
    assert await crew.keys(again, "a") == ([], ["a"], [])


async def test_ten_thousand_keys_are_one_call(crew: Crew) -> None:
    """As many as allowed and as long as allowed, within the body that is allowed, and the same again."""
    first, second = await two(crew)
    for _ in range(2):
        fresh, duplicates, busy = await crew.keys(first, *MANY)
        assert (fresh, duplicates, busy) == (MANY, [], [])
    await crew.done(first)

    assert await crew.keys(second, *reversed(MANY)) == ([], MANY[::-1], [])


@pytest.mark.parametrize("keys", [["x" * 257], [""], ["é" * 129], [1], [None], ["a"] * 10_001])
async def test_a_key_out_of_bounds_claims_nothing(crew: Crew, keys: list[object]) -> None:
    """The call is refused as a whole."""
    first, _ = await two(crew)

    expect_problem(await crew.say(first, "events/claim", keys=["good", *keys]), 422, "validation_failed")

    assert await crew.keys(first, "good") == (["good"], [], [])


async def test_the_bound_of_a_key_is_counted_in_bytes(crew: Crew) -> None:
    """256 bytes are fine, in one character each or in four."""
    first, _ = await two(crew)
    keys = ["x" * 256, "é" * 128, "🐍" * 64]

    assert await crew.keys(first, *keys) == (keys, [], [])


async def test_many_attempts_that_claim_the_same_keys_share_them_out(crew: Crew) -> None:
    """Whatever order they name them in: no key is fresh to two, none is lost, and nobody waits for ever."""
    await crew.start(8)
    batches = await crew.claim(8)
    keys = [f"k{number}" for number in range(300)]

    answers = await asyncio.gather(
        *[
            crew.keys(batch, *(keys[turn * 30 :] + keys[: turn * 30])[:: 1 if turn % 2 else -1])
            for turn, batch in enumerate(batches)
        ]
    )

    fresh = [key for found, _, _ in answers for key in found]
    assert sorted(fresh) == sorted(keys)
    assert all(duplicates == [] for _, duplicates, _ in answers)


async def test_keys_that_two_take_over_at_once_have_one_owner(crew: Crew, owner: Connection) -> None:
    """The second comes while the first has locked and not yet changed the rows, waits, and finds them busy."""
    await crew.start(3)
    lost, first, second = await crew.claim(3)
    await crew.keys(lost, "a", "b")
    await crew.fail(lost, retryable=True)
    database, tenant_id = crew.api.plane.database, crew.api.tenant_id

    async def claim_as_second() -> tuple[list[str], list[str]]:
        async with database.transaction(tenant_id) as tx:
            found = await claim_events(tx, second["batch_id"], second["fencing_token"], ["a", "b", "c"])
        return found.fresh, found.busy

    scope = scope_digest("external", "orders", params_digest({}))
    async with database.transaction(tenant_id) as tx:
        assert len(await tx.all("event_lock", scope=scope, events=[event_digest("a"), event_digest("b")])) == 2
        waiting = asyncio.create_task(claim_as_second())
        await somebody_waits(owner)
        taken = await claim_events(tx, first["batch_id"], first["fencing_token"], ["a", "b"])

    assert taken.fresh == ["a", "b"]
    assert await waiting == (["c"], ["a", "b"])


async def somebody_waits(owner: Connection) -> None:
    """Return when a transaction of the shared database waits for the lock of another."""
    question = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if await (await owner.execute(question)).fetchone():
            return
    pytest.fail("nobody waits")
