"""What earlier batches leave to a later backfill, and how ranges become batches, a few at a time."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

import pytest
from tests.backfilling import Crew, Json, days, make_crew
from tests.factories import Api, Connection

from jobengine.storage.course import go_on, lock_row
from jobengine.storage.database import Transaction


@pytest.fixture
async def crew(api: Api) -> Crew:
    """Somebody with room for their batches."""
    return await make_crew(api)


@dataclass(frozen=True)
class Past:
    """Backfills that ran to their end, longer ago than they suppress others."""

    crew: Crew
    later: Callable[[str, float], Awaitable[None]]

    async def run(self, last: int, bad: set[int] | None = None, **changes: object) -> Json:
        """Run a backfill of which the batches of the days *bad* fail, and let more than a day pass."""
        made = await self.crew.start(last, **changes)
        failing = [days(day, day + 1)["start"] for day in bad or ()]
        while hand := await self.crew.claim(50):
            for batch in hand:
                failed = batch["window"]["start"] in failing
                await (self.crew.fail(batch) if failed else self.crew.done(batch))
        shown = await self.crew.show(made)
        await self.later(self.crew.api.tenant_id, 25 * 3600)
        return shown


@pytest.fixture
def past(crew: Crew, later: Callable[[str, float], Awaitable[None]]) -> Past:
    """What has become of earlier backfills of the crew's tenant."""
    return Past(crew, later)


async def stretches(crew: Crew, made: Json) -> list[tuple[str, int, str]]:
    """Return the stretches that no batch stands for, and the batches joined to stretches, as (status, count, start)."""
    found: list[tuple[str, int, str]] = []
    for item in await crew.batches(made, page_size=500):
        if found and found[-1][0] == item["status"]:
            found[-1] = (item["status"], found[-1][1] + item["count"], found[-1][2])
        else:
            found.append((item["status"], item["count"], item["window"]["start"][:10]))
    return found


async def test_missing_skips_what_batches_covered_together(crew: Crew, past: Past) -> None:
    """Days that succeeded one by one make a finished week; a day that failed leaves its whole week to be run."""
    assert (await past.run(21, bad={15}))["status"] == "failed"

    made = await crew.start(28, partition="P1W")

    assert await stretches(crew, made) == [("skipped", 2, "2020-01-01"), ("pending", 2, "2020-01-15")]


async def test_missing_does_not_skip_what_is_covered_in_part(crew: Crew, past: Past) -> None:
    """Half a partition is not a partition."""
    await past.run(10)
    await past.run(0, window={"start": "2020-01-11T00:00:00Z", "end": "2020-01-11T12:00:00Z"}, partition="PT12H")

    made = await crew.start(0, window=days(10, 12))

    assert await stretches(crew, made) == [("pending", 2, "2020-01-11")]


async def test_failed_runs_those_whose_latest_batch_failed(crew: Crew, past: Past) -> None:
    """Neither what never ran, nor what another backfill repaired since, in whatever pieces."""
    await past.run(6, bad={1, 2, 4})
    await past.run(0, window=days(2, 3), partition="PT6H", reprocess="all")

    made = await crew.start(8, reprocess="failed")

    assert await stretches(crew, made) == [
        ("skipped", 1, "2020-01-01"),
        ("pending", 1, "2020-01-02"),
        ("skipped", 2, "2020-01-03"),
        ("pending", 1, "2020-01-05"),
        ("skipped", 3, "2020-01-06"),
    ]


async def test_a_repair_that_failed_later_is_failed_again(crew: Crew, past: Past) -> None:
    """The latest batch counts, not the best one."""
    await past.run(2, bad={0})
    assert (await past.run(1, reprocess="failed"))["status"] == "completed"
    assert (await past.run(1, bad={0}, reprocess="all"))["status"] == "failed"

    assert await stretches(crew, await crew.start(2, reprocess="failed")) == [
        ("pending", 1, "2020-01-01"),
        ("skipped", 1, "2020-01-02"),
    ]


async def test_nothing_left_to_do_completes_at_once(crew: Crew, past: Past) -> None:
    """A backfill of which every partition is skipped has ended when it is answered."""
    await past.run(2)

    made = await crew.start(0, window=days(1, 3), reprocess="failed")

    assert (made["status"], made["progress"]["batches"]["skipped"]) == ("completed", 2)
    assert made["started_at"] == made["finished_at"] == made["created_at"]


@pytest.mark.parametrize("order", ["forward", "backward"])
async def test_many_retries_are_made_ready_a_few_at_a_time(crew: Crew, owner: Connection, order: str) -> None:
    """What failed waits as stretches again; each batch comes back in its order, under its own id, with its attempts."""
    made = await crew.start(200, order=order)
    first = await crew.claim(50)
    await asyncio.gather(*[crew.done(batch) for batch in first])
    await broken(owner, made)
    before = {batch["window"]["start"]: batch["batch_id"] for batch in await crew.batches(made, page_size=500)}
    assert await crew.counts(made) == {"total": 200, "succeeded": 50, "failed": 150}

    await crew.moved(made, "retry-failed")

    assert await crew.counts(made) == {"total": 200, "succeeded": 50, "pending": 150}
    listed = await crew.batches(made, page_size=500)
    assert (len(listed), sum(item["count"] for item in listed)) == (50 + 64 + 1, 200)
    assert {item["why_waiting"] for item in listed if item["batch_id"] is None} == {"no worker"}
    for _ in range(3):
        hand = await crew.claim(50)
        assert [batch["window"] for batch in hand] == sorted(
            (batch["window"] for batch in hand), key=lambda window: window["start"], reverse=order == "backward"
        )
        assert all(before[batch["window"]["start"]] == batch["batch_id"] for batch in hand)
        assert {batch["attempt"] for batch in hand} == {1}
        await asyncio.gather(*[crew.done(batch) for batch in hand])
    assert (await crew.show(made))["status"] == "completed"


async def test_retries_that_wait_are_canceled_with_the_rest(crew: Crew, owner: Connection) -> None:
    """And retried by nobody: a cancel is for good."""
    made = await crew.start(200)
    await broken(owner, made)
    await crew.moved(made, "retry-failed")
    assert await crew.counts(made) == {"total": 200, "pending": 200}

    assert (await crew.moved(made, "cancel"))["status"] == "canceled"

    assert await crew.counts(made) == {"total": 200, "canceled": 200}
    assert sum(item["count"] for item in await crew.batches(made, page_size=500)) == 200


async def broken(owner: Connection, made: Json) -> None:
    """Let every batch of a backfill that has not succeeded have failed."""
    where = {"id": made["backfill_id"], "tenant": made["tenant_id"]}
    for statement in (
        """insert into batches (tenant_id, batch_id, backfill_id, partition_index, job_type, window_start, window_end,
                status)
            select f.tenant_id, gen_random_uuid(), f.backfill_id, k, f.job_type, f.window_start + k * interval '1 day',
                f.window_start + (k + 1) * interval '1 day', 'pending'
            from backfills f, backfill_ranges r, generate_series(r.first_index, r.last_index) k
            where f.backfill_id = %(id)s and r.backfill_id = f.backfill_id""",
        """delete from backfill_ranges where tenant_id = %(tenant)s and backfill_id = %(id)s""",
        """update batches set status = 'failed', attempts = 3, error = 'no luck', finished_at = now()
            where backfill_id = %(id)s and status = 'pending'""",
        """update backfills set status = 'failed', untouched = 0, failed = total - succeeded, finished_at = now()
            where backfill_id = %(id)s""",
    ):
        await owner.execute(statement, {name: value for name, value in where.items() if f"%({name})s" in statement})


@pytest.mark.parametrize("order", ["forward", "backward"])
async def test_a_checkerboard_is_made_ready_a_few_at_a_time(crew: Crew, owner: Connection, order: str) -> None:
    """However many stretches are left, making 64 batches ready writes no more than 64 of them anew."""
    made = await crew.start(0, window=days(0, 1), partition="PT1M", order=order)
    await checkerboard(owner, made)
    expected = [minute for minute in range(1440) if minute % 2 == 0][:: 1 if order == "forward" else -1]

    taken: list[int] = []
    for _ in range(2):
        async with crew.api.plane.database.transaction(crew.api.tenant_id) as tx:
            before = await written(tx)
            await go_on(tx, [await lock_row(tx, made["backfill_id"])])
            assert await written(tx) - before <= 64
        hand = await crew.claim(40)
        taken += map(minute_of, hand)
        await asyncio.gather(*[crew.done(batch) for batch in hand])

    assert taken == expected[:80]
    assert (await crew.counts(made)) == {"total": 1440, "pending": 640, "succeeded": 80, "skipped": 720}


def minute_of(batch: Json) -> int:
    """Return which minute of the day a batch works on."""
    moment = datetime.fromisoformat(batch["window"]["start"])
    return moment.hour * 60 + moment.minute


async def checkerboard(owner: Connection, made: Json) -> None:
    """Let every other minute of an untouched backfill be skipped, as earlier work may leave it."""
    where = {"id": made["backfill_id"], "tenant": made["tenant_id"]}
    for statement in (
        "delete from batches where tenant_id = %(tenant)s and backfill_id = %(id)s",
        "delete from backfill_ranges where tenant_id = %(tenant)s and backfill_id = %(id)s",
        "insert into backfill_ranges select %(tenant)s, %(id)s, k, k, 'pending' from generate_series(0, 1439) k",
        "update backfill_ranges set status = 'skipped' where backfill_id = %(id)s and first_index %% 2 = 1",
        "update backfills set untouched = 720, skipped = 720 where tenant_id = %(tenant)s and backfill_id = %(id)s",
    ):
        await owner.execute(statement, where)


async def written(tx: Transaction) -> int:
    """Return how many rows of ranges this session has written since it last told."""
    question = (
        "select n_tup_ins + n_tup_upd + n_tup_del from pg_stat_xact_user_tables where relname = 'backfill_ranges'"
    )
    row = await (await tx._connection.execute(question)).fetchone()
    assert row
    return sum(row.values())


async def test_every_item_of_a_long_list_comes_once(crew: Crew) -> None:
    """Page by page, batches and stretches tile the window, while batches are made ready between the pages."""
    made = await crew.start(300, order="backward")
    edges: list[str] = []
    token: str | None = None
    for _ in range(100):
        query = {"page_size": 7} | ({"page_token": token} if token else {})
        page = (await crew.api.get(f"/backfills/{made['backfill_id']}/batches", params=query)).json()
        for item in page["items"]:
            edges += [item["window"]["start"], item["window"]["end"]]
        token = page["next_page_token"]
        if token is None:
            break
        for batch in await crew.claim(3):
            await crew.done(batch)

    assert (edges[0], edges[-1]) == (days(0, 300)["start"], days(0, 300)["end"])
    assert edges[1:-1:2] == edges[2::2]
