"""The client for asyncio against a real server: the same words, carried out by tasks."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial

import pytest
from tests.acceptance.callers import Caller, done
from tests.acceptance.serving import Server, free_port
from tests.client.test_client import active
from tests.client.wire import wire_to

from jobengine.client import AsyncClient, AuthError, Denied, LeaseLost, Unavailable


@pytest.fixture
async def crowd(admin: Caller) -> AsyncIterator[AsyncClient]:
    """The client in a new tenant."""
    async with in_tenant(admin) as opened:
        yield opened


def in_tenant(admin: Caller, url: str | None = None) -> AsyncClient:
    """Return a client in the tenant of *admin*, perhaps over another address."""
    known = admin.credentials
    return AsyncClient(url or admin.url, known.client_id, known.secret, tenant=admin.tenant)


async def soon(condition: Callable[[], bool]) -> None:
    """Wait until *condition* holds, and let the tasks run meanwhile."""
    # What is waited for is a clock and a server, and neither has an event.
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.05)


async def test_a_lease_is_kept_by_a_task_and_given_back(admin: Caller, crowd: AsyncClient) -> None:
    """Its end moves on while the block waits for something else; at its end the slot is free and no task is left."""
    admin.quota(max_active=1)
    async with crowd.lease("scan", lease_seconds=5) as lease:
        first = lease.grant
        await soon(lambda: lease.grant.valid_until > first.valid_until + 3)
        lease.check()
        assert (lease.lost, active(admin)) == (False, 1)

    left = [task for task in asyncio.all_tasks() if task.get_name() == f"lease {lease.grant.lease_id}"]
    assert (active(admin), left) == (0, [])


async def test_many_tasks_share_a_client_and_never_a_slot_too_many(admin: Caller, crowd: AsyncClient) -> None:
    """Two slots, eight tasks: all get their turn."""
    admin.quota(max_active=2, max_per_hour=1000, burst=1000, refill_per_second=1000)
    inside = most = 0

    async def work() -> int:
        nonlocal inside, most
        async with crowd.lease("scan", wait=90) as lease:
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1
            return lease.grant.fencing_token

    tokens = await asyncio.gather(*(work() for _ in range(16)))

    assert (sorted(tokens), most <= 2, active(admin)) == (list(range(1, 17)), True, 0)


async def test_a_task_whose_lease_was_forced_out_learns_of_it(admin: Caller, crowd: AsyncClient) -> None:
    """From the flag, from the check, and from the end of its block unless something else went wrong."""
    admin.quota(max_active=1)

    async def work(last: Callable[[], None]) -> None:
        async with crowd.lease("scan", lease_seconds=5) as lease:
            done(admin.send("DELETE", f"/admissions/{lease.grant.lease_id}"), 204)
            await soon(lambda: lease.lost)
            last()

    for last, raised in ((lambda: None, LeaseLost), (partial(divmod, 1, 0), ZeroDivisionError)):
        with pytest.raises(raised):
            await work(last)


async def test_a_canceled_block_gives_its_slot_back(admin: Caller, crowd: AsyncClient) -> None:
    """The cancellation goes on after it."""
    admin.quota(max_active=1)
    entered = asyncio.Event()

    async def work() -> None:
        async with crowd.lease("scan"):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.wait_for(entered.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert active(admin) == 0


async def test_the_plain_calls_say_what_the_others_say(admin: Caller, crowd: AsyncClient) -> None:
    """Acquire, renew, release; denied, None, lost."""
    admin.quota(max_active=1)
    grant = await crowd.acquire("scan", job_id="nightly")

    assert (await crowd.renew(grant)).fencing_token == grant.fencing_token
    assert (await crowd.acquire("scan", job_id="nightly")).repeated
    assert await crowd.try_acquire("scan") is None
    with pytest.raises(Denied):
        await crowd.acquire("scan")
    await crowd.release(grant)
    with pytest.raises(LeaseLost):
        await crowd.renew(grant)


async def test_a_lost_answer_takes_no_second_slot_of_a_task(admin: Caller, running: Server) -> None:
    """The repeat brings the same lease."""
    admin.quota(max_active=1)

    with wire_to(running.port) as wire:
        async with in_tenant(admin, wire.url) as crowd:
            wire.losing = b"POST /api/v1/admissions HTTP"
            async with crowd.lease("scan") as lease:
                assert (wire.lost, lease.grant.fencing_token) == (1, 1)

    assert active(admin) == 0


async def test_errors_are_those_of_the_one_tree(admin: Caller, crowd: AsyncClient) -> None:
    """Nobody there, nobody let in, nobody left; a lease that is not entered knows nothing."""
    async with AsyncClient(f"http://127.0.0.1:{free_port()}", "jec_1", "jes_1") as nobody:
        with pytest.raises(Unavailable):
            await nobody.try_acquire("scan")
    async with AsyncClient(admin.url, "jec_1", "jes_1") as stranger:
        with pytest.raises(AuthError):
            await stranger.acquire("scan")
    with pytest.raises(RuntimeError, match="enter"):
        crowd.lease("scan").check()
    await crowd.close()
    with pytest.raises(Unavailable, match="closed"):
        await crowd.acquire("scan")
