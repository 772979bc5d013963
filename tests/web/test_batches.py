"""Contract section 6: what workers of external job types may do with batches, and what they are refused."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.backfilling import Crew, Json, days, make_crew
from tests.factories import Api, expect_problem

LATE = 16
"""Seconds after which a lease of 15 is over."""


@pytest.fixture
async def crew(api: Api) -> Crew:
    """Somebody with room for their batches."""
    return await make_crew(api)


@pytest.fixture
def wait(crew: Crew, later: Callable[[str, float], Awaitable[None]]) -> Callable[[float], Awaitable[None]]:
    """What lets seconds pass for the crew's tenant."""

    async def let(seconds: float) -> None:
        await later(crew.api.tenant_id, seconds)

    return let


async def test_a_claimed_batch_says_all_a_worker_needs(crew: Crew) -> None:
    """Window, parameters, attempt, fencing token, and until when it is held."""
    made = await crew.start(2, params={"region": "eu"})

    batch = await crew.one()

    assert batch.keys() == {
        "batch_id", "backfill_id", "job_type", "source", "window", "params", "attempt", "fencing_token",
        "lease_expires_at", "checkpoint",
    }  # fmt: skip
    assert (batch["backfill_id"], batch["window"], batch["params"]) == (
        made["backfill_id"],
        days(0, 1),
        {"region": "eu"},
    )
    assert (batch["attempt"], batch["fencing_token"], batch["checkpoint"]) == (1, 1, None)
    assert await crew.counts(made) == {"total": 2, "pending": 1, "running": 1}
    assert (await crew.show(made))["status"] == "running"
    assert (await crew.active(), await crew.drift()) == (1, 0)


@pytest.mark.parametrize("order", ["forward", "backward"])
async def test_batches_come_in_the_order_that_was_asked_for(crew: Crew, order: str) -> None:
    """Oldest or newest first, also past the 64 that are made ready ahead."""
    await crew.start(70, order=order)
    expected = [days(day, day + 1) for day in range(70)]

    claimed: list[Json] = []
    for _ in range(2):
        hand = await crew.claim(50)
        await asyncio.gather(*[crew.done(batch) for batch in hand])
        claimed += hand

    assert [batch["window"] for batch in claimed] == (expected if order == "forward" else expected[::-1])


async def test_a_claim_takes_no_more_than_it_asks_for(crew: Crew) -> None:
    """One without ``max``, and nothing of a job type that nobody named or whose workers are our own."""
    await crew.start(5)

    assert len(await crew.claim()) == 1
    assert len(await crew.claim(3)) == 3
    assert await crew.claim(9, "patient", "no-such-type") == []
    assert len(await crew.claim(9, "patient", "external")) == 1


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "validation_failed"),
        ({"job_types": []}, "validation_failed"),
        ({"job_types": ["external"], "max": 0}, "validation_failed"),
        ({"job_types": ["external"], "max": 65}, "validation_failed"),
        ({"job_types": ["no such"]}, "validation_failed"),
        ({"job_types": ["external"], "tenant": "x"}, "unknown_field"),
    ],
)
async def test_a_bad_claim_is_refused(api: Api, body: Json, code: str) -> None:
    """From 1 to 64 batches of well-formed job types."""
    expect_problem(await api.post("/batches/claim", body), 422, code)


async def test_a_batch_that_completes_is_counted_once(crew: Crew) -> None:
    """The same token may say so again; the events that count are those of the completing call."""
    made = await crew.start(1)
    batch = await crew.one()
    beat = await crew.say(batch, "heartbeat", events={"processed": 7, "failed": 7})
    assert (beat.status_code, beat.json()["cancel_requested"]) == (200, False)

    for _ in range(2):
        await crew.done(batch, processed=3, duplicates=2, failed=1)

    shown = await crew.show(made)
    assert (shown["status"], shown["progress"]["events"]) == (
        "completed",
        {"processed": 3, "duplicates": 2, "failed": 1},
    )
    assert await crew.counts(made) == {"total": 1, "succeeded": 1}
    assert (await crew.active(), await crew.drift()) == (0, 0)


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        ("heartbeat", {"checkpoint": {"page": 2}}),
        ("events/claim", {"keys": ["a"]}),
        ("complete", {}),
        ("fail", {"error": "x", "retryable": True}),
    ],
)
@pytest.mark.parametrize("token", [0, -1, 2, 10**30, "late"])
async def test_a_lost_lease_keeps_nothing_that_is_said(
    crew: Crew, wait: Callable[[float], Awaitable[None]], verb: str, body: Json, token: int | str
) -> None:
    """Another's token and a lease past its end are the same conflict, before anybody else took the batch."""
    made = await crew.start(1)
    batch = await crew.one()
    if token == "late":
        await wait(LATE)
    named = {} if token == "late" else {"fencing_token": token}

    expect_problem(await crew.say(batch, verb, **body, **named), 409, "lease_lost")

    assert (await crew.show(made))["status"] == "running"
    if token == "late":
        batch = await crew.one()
    assert (batch["checkpoint"], batch["attempt"]) == (None, 2 if token == "late" else 1)
    assert await crew.keys(batch, "a") == (["a"], [], [])


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        ("heartbeat", {}),
        ("events/claim", {"keys": []}),
        ("complete", {}),
        ("fail", {"error": "x", "retryable": True}),
    ],
)
async def test_a_batch_of_nobody_is_not_found(crew: Crew, stranger: Api, verb: str, body: Json) -> None:
    """An id that names nothing, and one of another tenant, are the same."""
    await crew.start(1)
    batch = await crew.one()
    for batch_id in ("nonsense", "0198c0de-0000-7000-8000-000000000000"):
        expect_problem(await crew.say(batch | {"batch_id": batch_id}, verb, **body), 404, "not_found")
    expect_problem(await Crew(stranger).say(batch, verb, **body), 404, "not_found")


async def test_a_failure_is_tried_again_after_a_while(crew: Crew, wait: Callable[[float], Awaitable[None]]) -> None:
    """With ``retryable`` up to three attempts, each after a longer wait; the error of the last one is kept."""
    made = await crew.start(1)
    for attempt, pause in ((1, 1), (2, 2)):
        batch = await crew.one()
        assert batch["attempt"] == attempt
        await crew.fail(batch, retryable=True)
        [waiting] = await crew.batches(made)
        assert (waiting["status"], waiting["why_waiting"], waiting["attempts"]) == ("pending", "backoff", attempt)
        assert await crew.claim() == []
        await wait(pause)
    await crew.fail(await crew.one(), retryable=True)

    [quarantined] = await crew.batches(made)
    assert (quarantined["status"], quarantined["attempts"], quarantined["error"]) == ("failed", 3, "no luck")
    assert (await crew.show(made))["status"] == "failed"
    assert (await crew.active(), await crew.drift()) == (0, 0)


async def test_a_lost_lease_counts_and_is_claimable_at_once(
    crew: Crew, wait: Callable[[float], Awaitable[None]]
) -> None:
    """Three workers that die leave a batch that is given up."""
    made = await crew.start(1)
    tokens: list[int] = []
    for attempt in (1, 2, 3):
        batch = await crew.one()
        assert batch["attempt"] == attempt
        tokens.append(batch["fencing_token"])
        await wait(LATE)

    assert await crew.claim() == []
    assert tokens == sorted(set(tokens))
    assert await crew.counts(made) == {"total": 1, "failed": 1}
    assert (await crew.active(), await crew.drift()) == (0, 0)


async def test_a_failure_that_is_not_retryable_is_final(crew: Crew) -> None:
    """Saying so again is too late, for the lease has ended."""
    made = await crew.start(2)
    first, second = await crew.claim(2)
    await crew.fail(first)
    expect_problem(await crew.say(first, "fail", error="x", retryable=False), 409, "lease_lost")
    await crew.done(second)

    assert (await crew.show(made))["status"] == "failed"
    assert await crew.counts(made) == {"total": 2, "succeeded": 1, "failed": 1}


async def test_the_story_of_a_failure_is_cut_and_kept(crew: Crew) -> None:
    """A worker with much to tell is heard all the same."""
    made = await crew.start(1)
    answer = await crew.say(await crew.one(), "fail", error="e" * 50_000, retryable=False)

    assert answer.status_code == 204
    [batch] = await crew.batches(made)
    assert batch["error"] == "e" * 4_096


async def test_a_heartbeat_keeps_a_batch(crew: Crew, wait: Callable[[float], Awaitable[None]]) -> None:
    """Each gives it another lease, and the admission with it."""
    made = await crew.start(1)
    batch = await crew.one()
    for _ in range(4):
        await wait(10)
        answer = await crew.say(batch, "heartbeat")
        assert answer.status_code == 200, answer.text
    assert await crew.claim() == []
    assert await crew.active() == 1
    await crew.done(batch)
    assert (await crew.show(made))["status"] == "completed"


async def test_the_next_attempt_begins_at_the_checkpoint(crew: Crew, wait: Callable[[float], Awaitable[None]]) -> None:
    """The last one that was saved, whatever JSON it is; null saves nothing."""
    await crew.start(1)
    batch = await crew.one()
    for checkpoint in ({"page": 1}, [1, {"b": None}], None):
        assert (await crew.say(batch, "heartbeat", checkpoint=checkpoint)).status_code == 200
    await wait(LATE)

    assert (await crew.one())["checkpoint"] == [1, {"b": None}]


@pytest.mark.parametrize("text", ['{"a": 1e400}', f'"{"x" * 65_536}"'])
async def test_a_checkpoint_that_cannot_be_kept_is_refused(crew: Crew, text: str) -> None:
    """An infinity that JSON can spell, and more than 64 KiB."""
    await crew.start(1)
    batch = await crew.one()
    answer = await crew.api.send(
        "POST",
        f"/batches/{batch['batch_id']}/heartbeat",
        content=f'{{"fencing_token": {batch["fencing_token"]}, "checkpoint": {text}}}',
        headers={"Content-Type": "application/json"},
    )
    expect_problem(answer, 422, "validation_failed")


async def test_an_admission_forced_out_takes_its_batch_along(crew: Crew) -> None:
    """An operator who ends the lease ends the attempt: the worker is told, and the batch goes to another."""
    await crew.start(1)
    batch = await crew.one()
    [lease] = (await crew.api.get("/admissions")).json()["items"]

    assert (await crew.api.delete(f"/admissions/{lease['lease_id']}")).status_code == 204

    for verb, body in (("heartbeat", {}), ("events/claim", {"keys": ["a"]}), ("complete", {})):
        expect_problem(await crew.say(batch, verb, **body), 409, "lease_lost")
    again = await crew.one()
    assert (again["batch_id"], again["attempt"]) == (batch["batch_id"], 2)
    assert again["fencing_token"] > batch["fencing_token"]
    assert (await crew.active(), await crew.drift()) == (1, 0)


async def test_many_workers_never_hold_the_same_batch(crew: Crew) -> None:
    """Whatever they claim at once, each batch has one holder and each token one batch."""
    made = await crew.start(60)

    hands = await asyncio.gather(*[crew.claim(4) for _ in range(20)])

    batches = [batch for hand in hands for batch in hand]
    assert len({batch["batch_id"] for batch in batches}) == len(batches) == 50
    assert len({batch["fencing_token"] for batch in batches}) == 50
    assert await crew.counts(made) == {"total": 60, "running": 50, "pending": 10}
    await asyncio.gather(*[crew.done(batch, processed=1) for batch in batches])
    shown = await crew.show(made)
    assert (shown["progress"]["batches"]["succeeded"], shown["progress"]["events"]["processed"]) == (50, 50)
    assert (await crew.active(), await crew.drift()) == (0, 0)


async def test_a_token_for_one_batch_speaks_for_no_other(crew: Crew) -> None:
    """A handler's token claims nothing and ends nothing but its own attempt."""
    await crew.start(2)
    mine, other = await crew.claim(2)
    bound = crew.api.speaking("orch:execute", batch=f"{mine['batch_id']}:{mine['fencing_token']}")
    theirs = Crew(bound)

    expect_problem(await bound.post("/batches/claim", {"job_types": ["external"]}), 403, "forbidden")
    for verb, body in (("heartbeat", {}), ("events/claim", {"keys": []}), ("complete", {})):
        expect_problem(await theirs.say(other, verb, **body), 403, "forbidden")
        expect_problem(await theirs.say(mine, verb, fencing_token=99, **body), 403, "forbidden")
    assert await theirs.keys(mine, "a") == (["a"], [], [])
    await theirs.done(mine)


@pytest.mark.parametrize("verb", ["heartbeat", "complete", "fail", "events/claim"])
async def test_only_workers_work_on_batches(crew: Crew, verb: str) -> None:
    """Whoever may start a backfill may not speak for its workers."""
    await crew.start(1)
    batch = await crew.one()
    admin: Any = crew.api.speaking("orch:backfill", "orch:read", backfill_reason="lost a day")

    expect_problem(await Crew(admin).say(batch, verb), 403, "insufficient_scope")
    expect_problem(await admin.post("/batches/claim", {"job_types": ["external"]}), 403, "insufficient_scope")
