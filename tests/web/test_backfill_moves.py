"""Contract section 6: every move of a backfill in every state, and what becomes of its batches."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from tests.backfilling import Crew, Json, ask, days, make_crew
from tests.factories import Api, expect_problem

MOVES = ("pause", "resume", "cancel", "retry-failed")
ALLOWED = {
    "pending": {"pause", "cancel"},
    "running": {"pause", "cancel"},
    "paused": {"resume", "cancel"},
    "canceling": set[str](),
    "canceled": set[str](),
    "completed": set[str](),
    "failed": {"retry-failed"},
}

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


async def bring(crew: Crew, status: str) -> Json:
    """Return a backfill of two batches that stands there."""
    made = await crew.start(2)
    match status:
        case "running" | "canceling":
            await crew.one()
        case "completed" | "failed":
            for batch in await crew.claim(2):
                await (crew.done(batch) if status == "completed" else crew.fail(batch))
        case _:
            pass
    if status in {"paused", "canceling", "canceled"}:
        await crew.moved(made, "pause" if status == "paused" else "cancel")
    shown = await crew.show(made)
    assert shown["status"] == status
    return shown


@pytest.mark.parametrize("status", ALLOWED)
async def test_a_move_that_a_state_forbids_changes_nothing(crew: Crew, status: str) -> None:
    """The problem names the state, and the backfill is as it was."""
    before = await bring(crew, status)

    for move in MOVES:
        if move not in ALLOWED[status]:
            problem = expect_problem(await crew.move(before, move), 409, "invalid_state")
            assert f" {status} " in problem["detail"]
    after = await crew.show(before)
    assert after | {"progress": after["progress"] | {"rate": None, "eta": None}} == before | {
        "progress": before["progress"] | {"rate": None, "eta": None}
    }


async def test_a_paused_backfill_hands_nothing_out(crew: Crew) -> None:
    """Running batches may finish, even the last one; resumed, it goes on where it stood."""
    made = await crew.start(3)
    batch = await crew.one()

    assert (await crew.moved(made, "pause"))["status"] == "paused"

    assert await crew.claim(9) == []
    assert {item["why_waiting"] for item in await crew.batches(made)} == {None, "pause"}
    assert (await crew.say(batch, "heartbeat")).json()["cancel_requested"] is False
    await crew.done(batch)
    assert await crew.claim(9) == []
    assert (await crew.moved(made, "resume"))["status"] == "running"
    for batch in await crew.claim(9):
        await crew.done(batch)
    assert (await crew.show(made))["status"] == "completed"


async def test_what_ends_while_paused_is_judged_when_resumed(crew: Crew) -> None:
    """The last batch may end in a pause: then resuming is what completes the backfill."""
    made = await crew.start(1)
    batch = await crew.one()
    await crew.moved(made, "pause")
    await crew.done(batch)
    assert (await crew.show(made))["status"] == "paused"

    await crew.moved(made, "resume")

    assert (await crew.show(made))["status"] == "completed"


async def test_resumed_before_it_began_it_is_pending(crew: Crew) -> None:
    """Nothing ran yet, so nothing is running."""
    made = await crew.start()
    await crew.moved(made, "pause")

    assert (await crew.moved(made, "resume"))["status"] == "pending"


async def test_no_pause_is_answered_before_the_last_batch_is_out(crew: Crew) -> None:
    """Claims and pauses that race end in one order: a batch of a paused backfill was handed out before the pause."""
    made = await crew.start(60)

    async def claim_on() -> list[Json]:
        return [batch for _ in range(6) for batch in await crew.claim(2)]

    async def pause() -> int:
        shown = await crew.moved(made, "pause")
        return int(shown["progress"]["batches"]["running"])

    *hands, running = await asyncio.gather(*[claim_on() for _ in range(4)], pause())

    assert isinstance(running, int)
    assert sum(len(hand) for hand in hands if isinstance(hand, list)) == running
    assert (await crew.counts(made)).get("running", 0) == running
    assert await crew.drift() == 0


async def test_canceled_with_nothing_running_it_ends_at_once(crew: Crew) -> None:
    """Untouched stretches and batches made ready are canceled together."""
    made = await crew.start(200)

    answer = await crew.moved(made, "cancel")

    assert (answer["status"], answer["progress"]["batches"]["canceled"]) == ("canceled", 200)
    assert answer["finished_at"] is not None
    assert await crew.claim(9) == []


async def test_a_cancel_waits_for_running_batches_and_tells_them(crew: Crew) -> None:
    """Their workers hear of it with a heartbeat, and whatever they end with is kept."""
    made = await crew.start(5)
    done, failed, lost = await crew.claim(3)
    await crew.keys(failed, "a")

    assert (await crew.moved(made, "cancel"))["status"] == "canceling"

    assert (await crew.say(lost, "heartbeat", checkpoint=1)).json()["cancel_requested"] is True
    await crew.done(done, processed=4)
    await crew.fail(failed, retryable=True)
    assert await crew.counts(made) == {"total": 5, "running": 1, "succeeded": 1, "canceled": 3}
    await crew.done(lost)
    shown = await crew.show(made)
    assert (shown["status"], shown["progress"]["events"]["processed"]) == ("canceled", 4)
    assert (await crew.active(), await crew.drift()) == (0, 0)


async def test_a_cancel_ends_batches_whose_leases_go_on(api: Api, wait_for: Wait) -> None:
    """A lease of a minute that is kept alive is fenced out ten seconds after the cancel."""
    crew = await make_crew(api, "patient")
    made = await crew.start(1, job_type="patient")
    batch = await crew.one("patient")
    await crew.moved(made, "cancel")
    await wait_for(9)
    assert (await crew.say(batch, "heartbeat")).json()["cancel_requested"] is True
    assert await crew.claim(1, "patient") == []
    assert (await crew.show(made))["status"] == "canceling"

    await wait_for(2)
    await crew.claim(1, "patient")

    assert (await crew.show(made))["status"] == "canceled"
    expect_problem(await crew.say(batch, "complete"), 409, "lease_lost")
    assert (await crew.active(), await crew.drift()) == (0, 0)


@pytest.fixture
def wait_for(api: Api, later: Callable[[str, float], Awaitable[None]]) -> Wait:
    """What lets seconds pass for the tenant."""

    async def let(seconds: float) -> None:
        await later(api.tenant_id, seconds)

    return let


async def test_retry_failed_runs_what_failed_and_only_that(crew: Crew) -> None:
    """With all its attempts anew, from its checkpoint, under the same id."""
    made = await crew.start(3)
    good, *bad = await crew.claim(3)
    await crew.done(good, processed=1)
    for batch in bad:
        await crew.say(batch, "heartbeat", checkpoint={"at": 1})
        await crew.fail(batch)

    assert (await crew.moved(made, "retry-failed"))["status"] == "running"

    again = await crew.claim(9)
    assert {batch["batch_id"] for batch in again} == {batch["batch_id"] for batch in bad}
    assert [(batch["attempt"], batch["checkpoint"]) for batch in again] == [(1, {"at": 1})] * 2
    for batch in again:
        await crew.done(batch, processed=1)
    shown = await crew.show(made)
    assert (shown["status"], shown["progress"]["events"]["processed"]) == ("completed", 3)
    assert await crew.counts(made) == {"total": 3, "succeeded": 3}


async def test_a_retry_of_a_window_that_another_has_is_refused(crew: Crew) -> None:
    """A failed backfill suppresses nobody, so its window may be taken by now."""
    made = await crew.start(2)
    for batch in await crew.claim(2):
        await crew.fail(batch)
    other = await crew.start(1)

    expect_problem(await crew.move(made, "retry-failed"), 409, "invalid_state")

    await crew.moved(other, "cancel")
    await crew.moved(made, "retry-failed")
    expect_problem(await crew.api.post("/backfills", ask(1)), 409, "duplicate_backfill")


async def test_retry_and_start_of_one_window_never_both_win(crew: Crew) -> None:
    """They decide under the same lock, whichever comes first."""
    for round_ in range(4):
        source = f"round-{round_}"
        made = await crew.start(1, source=source)
        await crew.fail(await crew.one())
        retried, started = await asyncio.gather(
            crew.move(made, "retry-failed"), crew.api.post("/backfills", ask(1, source=source))
        )
        assert (retried.status_code == 200) != (started.status_code == 202)
        winner = made if retried.status_code == 200 else started.json()
        await crew.moved(winner, "cancel")


async def test_too_many_failures_stop_a_backfill(crew: Crew) -> None:
    """One more than allowed cancels what waits; running batches end, and none is tried again."""
    made = await crew.start(100, max_failures=1)
    first, second, third, fourth = await crew.claim(4)
    await crew.fail(first)
    assert (await crew.show(made))["stop_reason"] is None
    await crew.fail(second)

    assert await crew.claim(9) == []
    assert (await crew.show(made))["stop_reason"] == "2 of 100 batches failed"
    await crew.fail(third, retryable=True)
    assert (await crew.show(made))["status"] == "running"
    await crew.done(fourth)
    assert (await crew.show(made))["status"] == "failed"
    assert await crew.counts(made) == {"total": 100, "succeeded": 1, "failed": 2, "canceled": 97}


async def test_a_retry_goes_on_where_a_stop_rule_ended_it(crew: Crew) -> None:
    """What the rule canceled never ran: it runs now, in order, and the backfill can complete."""
    made = await crew.start(80, max_failure_rate=0.0, order="backward")
    assert (await crew.show(made))["max_failure_rate"] == 0
    await crew.fail(await crew.one())
    assert await crew.counts(made) == {"total": 80, "failed": 1, "canceled": 79}

    await crew.moved(made, "retry-failed")

    assert await crew.counts(made) == {"total": 80, "pending": 80}
    claimed: list[Json] = []
    for _ in range(2):
        hand = await crew.claim(50)
        await asyncio.gather(*[crew.done(batch) for batch in hand])
        claimed += hand
    assert [batch["window"] for batch in claimed] == [days(day, day + 1) for day in reversed(range(80))]
    assert (await crew.show(made))["status"] == "completed"


async def test_moves_and_ends_that_race_lose_no_batch(crew: Crew) -> None:
    """Pausing, resuming, claiming and completing at once leave counts that sum up, and no lease without its batch."""
    made = await crew.start(40)

    async def work() -> None:
        for _ in range(6):
            for batch in await crew.claim(2):
                await crew.done(batch, processed=1)

    async def flip() -> None:
        for move in ("pause", "resume") * 4:
            assert (await crew.move(made, move)).status_code in {200, 409}

    await asyncio.gather(work(), work(), work(), flip())
    # The last move resumed it: whoever met nothing but pauses before meets work now.
    await work()

    shown = await crew.show(made)
    counts = shown["progress"]["batches"]
    assert counts["running"] == counts["failed"] == 0
    assert shown["progress"]["events"]["processed"] == counts["succeeded"] > 0
    assert (await crew.active(), await crew.drift()) == (0, 0)
