"""What the queries that run all the time touch, beside thousands of backfills and one of a hundred thousand batches."""

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from tests.backfilling import Crew, Json, days, make_crew
from tests.factories import Api, Connection

from jobengine.storage.database import Transaction
from jobengine.storage.queries import QUERIES

FINISHED = 100_000
MOST_PAGES = 60
"""Of eight kilobytes; the table alone has thousands of them."""

GROWN = (
    """update batches set partition_index = partition_index + %(finished)s where backfill_id = %(id)s""",
    """update backfill_ranges set first_index = first_index + %(finished)s, last_index = last_index + %(finished)s
        where backfill_id = %(id)s""",
    """insert into batches (tenant_id, batch_id, backfill_id, partition_index, job_type, window_start, window_end,
            status, finished_at)
        select %(tenant)s, gen_random_uuid(), %(id)s, k, 'external', s, s + interval '5 min', 'succeeded', s
        from generate_series(0, %(finished)s - 1) k,
            lateral (select timestamptz '2018-01-01Z' + k * interval '5 min') t(s)""",
    """update backfills set total = total + %(finished)s, succeeded = %(finished)s where backfill_id = %(id)s""",
    """insert into backfills
        select (jsonb_populate_record(f, jsonb_build_object('backfill_id', gen_random_uuid(), 'status', 'failed'))).*
        from backfills f, generate_series(1, 3000) where f.backfill_id = %(id)s""",
    # What other tests left behind in the indexes is not what is counted here.
    """vacuum (analyze) batches, backfills, backfill_ranges""",
)


@pytest.fixture
async def crew(api: Api) -> Crew:
    """Somebody with room for their batches."""
    return await make_crew(api)


@pytest.fixture
async def long_run(crew: Crew, owner: Connection) -> Json:
    """A backfill with 100,000 batches that succeeded, and some that wait, after thousands of others."""
    made = await crew.start(
        0, window={"start": "2018-01-01T00:00:00Z", "end": "2019-01-01T00:00:00Z"}, partition="PT5M"
    )
    where = {"id": made["backfill_id"], "tenant": crew.api.tenant_id, "finished": FINISHED}
    for statement in GROWN:
        # Each statement takes its own parameters only.
        await owner.execute(statement, {name: value for name, value in where.items() if f"%({name})s" in statement})
    return made


async def pages(opened: AbstractAsyncContextManager[Transaction], query: str, **values: object) -> int:
    """Return how many pages a query touches when it runs."""
    async with opened as tx:
        explained = await tx._connection.execute(
            b"explain (analyze, buffers, format json) " + QUERIES[query], tx._values(values)
        )
        row = await explained.fetchone()
    assert row
    [[plan]] = row.values()
    return int(plan["Plan"]["Shared Hit Blocks"]) + int(plan["Plan"]["Shared Read Blocks"])


def asked(made: Json) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return what a claim, a completion, a look and a later request ask."""
    now = "2026-01-01T00:00:00Z"
    yield "backfill_fairest", {"job_types": ["external"], "handler_kind": "external", "most": 64}
    yield "batch_candidates", {"backfill_ids": [made["backfill_id"]], "most": 64}
    yield "batch_due_types", {"job_types": ["external"], "handler_kind": "external"}
    yield "batch_overdue", {"now": now, "most": 100}
    yield "backfill_open", {"backfill_ids": [made["backfill_id"]]}
    yield "backfill_first_ranges", {"backfill_id": made["backfill_id"], "most": 64}
    yield "backfill_last_ranges", {"backfill_id": made["backfill_id"], "most": 64}
    yield "batch_list", {"backfill_id": made["backfill_id"], "after": 50_000, "most": 51}
    yield "backfill_list", {
        **dict.fromkeys(("status", "job_type", "source", "after")), "backfill_id": made["backfill_id"], "most": 1,
    }  # fmt: skip
    elsewhere = {"window_start": days(5_000, 5_001)["start"], "window_end": days(5_000, 5_001)["end"]}
    for query in ("backfill_succeeded", "backfill_ended", "backfill_earlier"):
        yield query, {"job_type": "external", "source": "orders", "params_digest": b"another", **elsewhere}


async def test_a_long_run_costs_no_more_with_every_batch(crew: Crew, owner: Connection, long_run: Json) -> None:
    """What is finished is not looked at again by those who work on the rest, watch it, or ask for something else."""
    database = crew.api.plane.database

    found = {
        query: await pages(database.transaction(crew.api.tenant_id), query, **values)
        for query, values in asked(long_run)
    }
    assert {query: count for query, count in found.items() if count > MOST_PAGES} == {}

    # This one looks at every tenant's backfills at work, those of other tests too, and at few pages of each.
    active = "select count(*) as active from backfills where status in ('pending', 'running', 'paused', 'canceling')"
    [row] = await (await owner.execute(active)).fetchall()
    looked = await pages(database.system(), "system_find_batch_work", job_types=["external"])
    assert looked <= MOST_PAGES + 10 * row["active"]
