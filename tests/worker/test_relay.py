"""The relay: what it sends, to how many, what it sends again, and when it keeps still."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from tests.backfilling import Json
from tests.worker.conftest import PATIENCE_SECONDS, Shop

from jobengine.errors import Unavailable
from jobengine.storage.outbox import Outbox, WakeUp
from jobengine.worker import relay as relay_module
from jobengine.worker.relay import Relay
from jobengine.worker.supervisor import Supervisor

SLOTS = 4
JOB_TYPE = "woken"

OpenShop = Callable[[Supervisor], Awaitable[Shop]]


@dataclass
class Shelf:
    """A broker that keeps what it is sent until a test takes it away; it is *silent* when told to be."""

    lying: list[WakeUp] = field(default_factory=list[WakeUp])
    silent: bool = False

    async def depths(self, job_types: Sequence[str]) -> Mapping[str, int]:
        """Count."""
        if self.silent:
            raise Unavailable("silent")
        return {name: sum(lies.job_type == name for lies in self.lying) for name in job_types}

    async def send(self, wake_ups: Sequence[WakeUp]) -> None:
        """Keep."""
        self.lying += wake_ups

    async def close(self) -> None:
        """Nothing to hang up."""

    def take(self) -> list[WakeUp]:
        """Take everything away."""
        taken, self.lying = self.lying, []
        return taken


@pytest.fixture
async def shop(open_shop: OpenShop, idle: Supervisor) -> Shop:
    """A tenant with batches for workers on Celery."""
    return await open_shop(idle)


@pytest.fixture
async def make_relay(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[[str], tuple[Relay, Shelf]]]:
    """Relays by the names of their servers; in the end none of them is the one that sends."""
    monkeypatch.setattr(relay_module, "TAKE_EVERY_SECONDS", 0)
    monkeypatch.setattr(relay_module, "LONGEST_PAUSE_SECONDS", 0)
    made: list[Relay] = []

    def make(name: str) -> tuple[Relay, Shelf]:
        shelf = Shelf()
        made.append(Relay(Outbox(shop.plane.database, name), shelf, [JOB_TYPE], SLOTS))
        return made[-1], shelf

    yield make
    for relay in made:
        await relay.close()


async def started(shop: Shop, batches: int) -> Json:
    """Start a backfill of so many batches for workers on Celery."""
    return await shop.crew.start(batches, job_type=JOB_TYPE)


async def grow_old(shop: Shop, seconds: int) -> int:
    """Let seconds pass for what was sent; return how many wake-ups of the tenant are out."""
    ago = "update batch_wakeups set sent_at = sent_at - make_interval(secs => %s) where tenant_id = %s"
    return (await shop.owner.execute(ago, (seconds, shop.crew.api.tenant_id))).rowcount


async def test_no_more_wake_ups_lie_there_than_workers_have_slots_and_tenants_take_turns(
    open_shop: OpenShop, idle: Supervisor, shop: Shop, make_relay: Callable[[str], tuple[Relay, Shelf]]
) -> None:
    """However much one tenant asks for, the other's only batch is among the first."""
    relay, shelf = make_relay("a")
    modest = await open_shop(idle)
    await started(shop, 30)
    await started(modest, 1)

    await relay.step()
    await relay.step()

    assert Counter(lies.tenant_id for lies in shelf.lying) == {shop.crew.api.tenant_id: 3, modest.crew.api.tenant_id: 1}
    assert len({lies.batch_id for lies in shelf.take()}) == SLOTS
    await relay.step()
    assert {lies.tenant_id for lies in shelf.lying} == {shop.crew.api.tenant_id}


async def test_what_was_sent_is_sent_again_after_a_while_and_never_sooner(
    shop: Shop, make_relay: Callable[[str], tuple[Relay, Shelf]]
) -> None:
    """A message may be lost; one second later that is too early to tell."""
    relay, shelf = make_relay("a")
    await started(shop, 2)
    await relay.step()
    first = shelf.take()

    # Back to the moment of sending, however slow this machine is, and into the past from there.
    await grow_old(shop, -600)
    await relay.step()
    assert shelf.take() == []
    assert await grow_old(shop, 603) == 2
    await relay.step()
    assert {again.batch_id for again in shelf.take()} == {sent.batch_id for sent in first}


async def test_wake_ups_of_batches_that_wait_no_longer_are_forgotten(
    shop: Shop, make_relay: Callable[[str], tuple[Relay, Shelf]]
) -> None:
    """Claimed, paused or canceled: nothing is left to be sent again."""
    relay, shelf = make_relay("a")
    made = await started(shop, 3)
    await relay.step()
    assert await grow_old(shop, 3) == 3

    [claimed] = await shop.crew.claim(1, JOB_TYPE)
    shelf.take()
    await relay.step()
    assert claimed["batch_id"] not in {lies.batch_id for lies in shelf.take()}
    assert await grow_old(shop, 3) == 2
    await shop.crew.moved(made, "pause")
    await relay.step()
    assert (shelf.take(), await grow_old(shop, 3)) == ([], 0)
    await shop.crew.moved(made, "resume")
    await relay.step()
    assert len(shelf.take()) == 2


async def test_a_backfill_that_may_run_one_batch_wakes_one_worker(
    shop: Shop, make_relay: Callable[[str], tuple[Relay, Shelf]]
) -> None:
    """Its own limit is looked at, so that nobody comes for nothing."""
    relay, shelf = make_relay("a")
    await shop.crew.start(9, job_type=JOB_TYPE, max_active=1)

    await relay.step()
    assert len(shelf.take()) == 1
    await shop.crew.claim(1, JOB_TYPE)
    await relay.step()
    assert shelf.take() == []


async def test_one_of_several_servers_sends_until_it_leaves(
    shop: Shop, make_relay: Callable[[str], tuple[Relay, Shelf]]
) -> None:
    """The other takes over when the first has gone, or has not been heard of for five seconds."""
    (first, shelf), (second, other) = make_relay("a"), make_relay("b")
    await started(shop, 2)

    await first.step()
    await second.step()
    assert (len(shelf.take()), other.take()) == (2, [])
    await shop.owner.execute("update relay_turn set lease_until = clock_timestamp() - interval '1 second'")
    await grow_old(shop, 3)
    await second.step()
    await first.step()
    assert (shelf.take(), len(other.take())) == ([], 2)
    await second.close()
    await grow_old(shop, 3)
    await first.step()
    assert len(shelf.take()) == 2


async def test_a_broker_that_keeps_silent_is_asked_again_and_nothing_counts_as_sent(
    shop: Shop, make_relay: Callable[[str], tuple[Relay, Shelf]]
) -> None:
    """What could not be sent is sent as soon as somebody takes it."""
    relay, shelf = make_relay("a")
    await started(shop, 2)
    shelf.silent = True
    await relay.step()
    await relay.step()
    assert await grow_old(shop, 0) == 0

    shelf.silent = False
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not shelf.lying:
            await relay.step()
    assert len(shelf.take()) == 2
