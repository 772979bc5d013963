"""The ledger of event keys forgets by the time of processing, in small steps, and never what is still held."""

from datetime import timedelta

import pytest
from tests.backfilling import Crew, Json, make_crew
from tests.factories import Api, Connection

from jobengine.storage.events import forget_events

RETENTION = timedelta(days=400)


@pytest.fixture
async def crew(api: Api) -> Crew:
    """Somebody with room for their batches."""
    return await make_crew(api)


async def age(owner: Connection, crew: Crew, batch: Json, days: int) -> None:
    """Let the attempt at a batch have begun, and have ended if it has, some days ago."""
    await owner.execute(
        """update batch_attempts set started_at = started_at - %(days)s * interval '1 day',
            ended_at = ended_at - %(days)s * interval '1 day'
            where tenant_id = %(tenant)s and batch_id = %(batch)s""",
        {"days": days, "tenant": crew.api.tenant_id, "batch": batch["batch_id"]},
    )


async def kept(owner: Connection, crew: Crew, table: str) -> int:
    """Count the rows of the crew's tenant."""
    query = f"select count(*) as rows from {table} where tenant_id = %s".encode()
    [row] = await (await owner.execute(query, (crew.api.tenant_id,))).fetchall()
    return row["rows"]


async def test_what_was_processed_longer_ago_than_the_retention_is_forgotten(crew: Crew, owner: Connection) -> None:
    """With the attempt that did it; what is younger, or held however long, stays."""
    await crew.start(5)
    old, young, live, later = await crew.claim(4)
    for batch, keys in ((old, "abc"), (young, "de"), (live, "f")):
        assert await crew.keys(batch, *keys) == ([*keys], [], [])
    await crew.done(old)
    await crew.done(young)
    for batch, days in ((old, 401), (young, 399), (live, 999)):
        await age(owner, crew, batch, days)

    assert await forget_events(crew.api.plane.database, RETENTION) >= 1

    assert await kept(owner, crew, "event_keys") == 3
    assert await kept(owner, crew, "batch_attempts") == 3
    assert await crew.keys(later, "a", "d", "f") == (["a"], ["d"], ["f"])
    assert (await crew.show({"backfill_id": old["backfill_id"]}))["progress"]["batches"]["succeeded"] == 2


async def test_the_calls_of_an_attempt_are_kept_as_long_as_it_lives(crew: Crew, owner: Connection) -> None:
    """Only a live attempt may make the same call again."""
    await crew.start(2)
    done, live = await crew.claim(2)
    await crew.keys(done, "a")
    await crew.keys(live, "b")
    await crew.done(done)

    await forget_events(crew.api.plane.database, RETENTION)

    assert await kept(owner, crew, "event_calls") == 1
    assert await crew.keys(live, "b") == (["b"], [], [])


async def test_a_key_that_was_taken_over_is_as_old_as_its_last_attempt(crew: Crew, owner: Connection) -> None:
    """The attempt that lost it is forgotten, the key is not."""
    await crew.start(2)
    lost, heir = await crew.claim(2)
    await crew.keys(lost, "a")
    await crew.fail(lost)
    assert await crew.keys(heir, "a") == (["a"], [], [])
    await age(owner, crew, lost, 500)

    await forget_events(crew.api.plane.database, RETENTION)

    assert (await kept(owner, crew, "event_keys"), await kept(owner, crew, "batch_attempts")) == (1, 1)


async def test_a_retention_of_centuries_forgets_nothing(crew: Crew, owner: Connection) -> None:
    """It has no date to count from, and none is needed."""
    await crew.start(1)
    [batch] = await crew.claim(1)
    await crew.keys(batch, "a")
    await crew.done(batch)

    await forget_events(crew.api.plane.database, timedelta(days=999_999))

    assert await kept(owner, crew, "event_keys") == 1
