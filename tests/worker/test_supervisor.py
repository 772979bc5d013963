"""The supervisor: whose batches come next, what happens when it leaves, and when nobody hears it."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from tests.backfilling import Json
from tests.worker.conftest import Shop

from jobengine.authority.tokens import EMBEDDED_WORKER
from jobengine.backfill.attempts import ClaimedBatch, Events
from jobengine.errors import LeaseLost, LostRace, Unavailable, ValidationFailed
from jobengine.storage.batch_committer import BatchCommitter
from jobengine.storage.batches import claim
from jobengine.storage.database import Database, Transaction
from jobengine.worker import link as link_module
from jobengine.worker.link import Link
from jobengine.worker.runner import BatchRunner
from jobengine.worker.supervisor import Supervisor, workplace

OpenShop = Callable[[Supervisor], Awaitable[Shop]]


async def running(shop: Shop, made: Json) -> int:
    """Return how many batches of a backfill run."""
    return (await shop.crew.counts(made)).get("running", 0)


async def test_tenants_take_turns_however_much_one_asks_for(open_shop: OpenShop, idle: Supervisor) -> None:
    """One look gives each its share of the slots; a tenant that comes later is the next to be served."""
    shops = [await open_shop(idle) for _ in range(3)]
    greedy, *modest = [await shop.start("py", "hold", last=last) for shop, last in zip(shops, (9, 1, 1), strict=True)]

    await idle.step()
    assert [await running(shop, made) for shop, made in zip(shops, (greedy, *modest), strict=True)] == [1, 1, 1]
    await idle.step()
    assert await running(shops[0], greedy) == 2
    await idle.step()
    assert await running(shops[0], greedy) == 2

    late = await open_shop(idle)
    last = await late.start("py", "hold")
    late.open_gate()
    await late.until(lambda: served(late, last))


async def served(shop: Shop, made: Json) -> bool:
    """Let the supervisor look once, and tell whether a backfill has completed."""
    await shop.supervisor.step()
    return (await shop.crew.show(made))["status"] == "completed"


async def test_a_supervisor_that_leaves_gives_its_batches_back(shop: Shop) -> None:
    """At once claimable, with no attempt counted and no process left; it takes no more itself."""
    made = await shop.start("py", "sleep", last=2)
    first = await shop.note(lambda note: "child" in note)

    await shop.supervisor.close()

    await shop.gone(first["pid"], first["child"])
    assert await shop.crew.counts(made) == {"total": 2, "pending": 2}
    batches = await shop.crew.batches(made)
    assert [(batch["attempts"], batch["why_waiting"]) for batch in batches] == [(0, "no worker")] * 2
    await shop.supervisor.step()
    assert await running(shop, made) == 0
    assert (await shop.crew.active(), await shop.crew.drift()) == (0, 0)
    await shop.crew.moved(made, "cancel")


@pytest.mark.parametrize(("cause", "left"), [("silence", "pending"), ("forced out", "pending"), ("cancel", "canceled")])
async def test_one_look_takes_back_what_nobody_may_hold(lonely: Shop, cause: str, left: str) -> None:
    """A lease that is over, an admission that was ended, a cancel that has waited for ten seconds: of any worker."""
    made = await lonely.crew.start(1)
    batch = await lonely.crew.one()
    if cause == "cancel":
        await lonely.crew.moved(made, "cancel")
        await lonely.pass_time(8)
        assert (await lonely.crew.say(batch, "heartbeat")).json()["cancel_requested"] is True
        await lonely.pass_time(3)
    elif cause == "silence":
        await lonely.pass_time(16)
    else:
        [lease] = (await lonely.crew.api.get("/admissions")).json()["items"]
        await lonely.crew.api.delete(f"/admissions/{lease['lease_id']}")

    await lonely.supervisor.step()

    assert await lonely.crew.counts(made) == {"total": 1, left: 1}
    assert (await lonely.crew.say(batch, "complete")).status_code == 409
    assert (await lonely.crew.active(), await lonely.crew.drift()) == (0, 0)


async def test_what_one_tenant_breaks_holds_up_no_other(open_shop: OpenShop, workers: Supervisor) -> None:
    """A tenant whose rows cannot be read is skipped, and tried again."""
    broken, sound = [await open_shop(workers) for _ in range(2)]
    made = await broken.start("py", "work")
    where = {"id": made["backfill_id"]}
    await broken.owner.execute("update backfills set params = '{' where backfill_id = %(id)s", where)

    assert (await sound.ended(await sound.start("py", "work")))["status"] == "completed"
    await broken.owner.execute(
        "update backfills set params = '{\"parts\": []}', status = 'canceled' where backfill_id = %(id)s", where
    )


class Deaf(Database):
    """A database that does not answer at first."""

    def __init__(self, database: Database, *errors: Exception) -> None:
        self._database = database
        self._errors = list(errors)

    @asynccontextmanager
    async def transaction(self, tenant_id: str) -> AsyncGenerator[Transaction]:
        """Fail as often as was said, and then be the real one."""
        if self._errors:
            raise self._errors.pop(0)
        async with self._database.transaction(tenant_id) as tx:
            yield tx


def heard_by(database: Database, batch: ClaimedBatch) -> Link:
    """Return the line of an attempt to a database."""
    return Link(database, BatchCommitter(database), batch)


@pytest.fixture
async def lonely(open_shop: OpenShop, idle: Supervisor) -> Shop:
    """A tenant whose batches nobody runs by himself."""
    return await open_shop(idle)


async def held(shop: Shop, part: str) -> ClaimedBatch:
    """Start a backfill and hold its batch as an embedded worker would."""
    await shop.start("py", part)
    async with shop.plane.database.transaction(shop.crew.api.tenant_id) as tx:
        [batch] = await claim(tx, "embedded", ["py"], 1, EMBEDDED_WORKER)
    return batch


async def test_a_report_is_said_again_until_it_is_heard(lonely: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a handler has done is not done again because the database was away for a moment."""
    monkeypatch.setattr(link_module, "AGAIN_SECONDS", 0)
    database = lonely.plane.database
    batch = await held(lonely, "work")
    away = [Unavailable("away"), LostRace("busy"), Unavailable("away")]

    assert (await heard_by(Deaf(database, *away), batch).claim(["a"])).fresh == ["a"]
    await heard_by(Deaf(database, *away), batch).save({"at": 1}, Events(1))
    await heard_by(Deaf(database, *away), batch).complete(None)

    [made] = (await lonely.crew.api.get("/backfills")).json()["items"]
    assert (made["status"], made["progress"]["events"]["processed"]) == ("completed", 1)
    with pytest.raises(ValidationFailed):
        await heard_by(database, batch).claim([""])
    with pytest.raises(LeaseLost):
        await heard_by(database, batch).beat()


async def test_a_worker_that_nobody_hears_stops_when_its_lease_is_over(lonely: Shop) -> None:
    """By its own clock: another may have the batch by then, although no database told it so."""
    batch = replace(await held(lonely, "sleep"), lease_seconds=1)
    deaf = Deaf(lonely.plane.database, *[Unavailable("away")] * 1_000)
    runner = BatchRunner(workplace(lonely.plane))

    running_batch = asyncio.create_task(runner.run(heard_by(deaf, batch)))
    note = await lonely.note(lambda note: "child" in note)
    await running_batch

    await lonely.gone(note["pid"], note["child"])
    [made] = (await lonely.crew.api.get("/backfills")).json()["items"]
    assert await running(lonely, made) == 1
