"""Group commit: what comes together is decided together, and nobody pays for a neighbour."""

import asyncio
from collections.abc import Sequence

import pytest
from tests.factories import Api, new_tenant

from jobengine.bootstrap import Plane
from jobengine.errors import Conflict, LeaseLost, LostRace, NotFound, Unavailable
from jobengine.ids import new_id
from jobengine.quota.admission import Ask, Denied
from jobengine.storage import admission_group, committer
from jobengine.storage.admission import Lease, Repeated
from jobengine.storage.admission_group import Acquire, Operation, Outcome, Release, Released, Renew
from jobengine.storage.committer import AdmissionCommitter
from jobengine.storage.database import Transaction

SCAN = Acquire(Ask("scan"), "jec_test")
POISON = Release("no uuid at all", 1)


@pytest.fixture
def desk(plane: Plane) -> AdmissionCommitter:
    """A committer of its own, with nothing in its queues."""
    return AdmissionCommitter(plane.database)


async def together(desk: AdmissionCommitter, tenant: str, *operations: Operation) -> list[Outcome | BaseException]:
    return await asyncio.gather(*[desk.carry_out(tenant, item) for item in operations], return_exceptions=True)


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many operations each transaction decided."""
    seen: list[int] = []

    async def counted(tx: Transaction, operations: Sequence[Operation]) -> list[Outcome]:
        seen.append(len(operations))
        return await admission_group.decide_group(tx, operations)

    monkeypatch.setattr(committer, "decide_group", counted)
    return seen


async def test_what_arrives_together_is_one_transaction(
    desk: AdmissionCommitter, plane: Plane, tenant: str, groups: list[int]
) -> None:
    """And what arrives while it runs is the next one."""
    async with plane.database.transaction(tenant) as tx:
        await tx.run("admission_start")
        first = asyncio.create_task(together(desk, tenant, *[SCAN] * 3))
        # Another tenant's whole transaction later, the first group waits for the lock.
        await desk.carry_out(await new_tenant(plane), SCAN)
        second = asyncio.create_task(together(desk, tenant, *[SCAN] * 4))
        await asyncio.sleep(0)

    assert all(isinstance(outcome, Lease) for outcome in [*await first, *await second])
    assert groups[-1] == 4


async def test_a_group_has_a_size(
    desk: AdmissionCommitter, tenant: str, groups: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long queue is worked off in pieces, in its order."""
    monkeypatch.setattr(committer, "MOST_IN_A_GROUP", 4)

    outcomes = await together(desk, tenant, *[SCAN] * 10)

    assert groups == [4, 4, 2]
    assert [outcome.fencing_token for outcome in outcomes if isinstance(outcome, Lease)] == list(range(1, 11))


async def test_tenants_are_served_side_by_side(desk: AdmissionCommitter, plane: Plane, groups: list[int]) -> None:
    """A transaction is one tenant's; nobody waits for another's lock."""
    busy, free = await new_tenant(plane), await new_tenant(plane)
    await desk.carry_out(busy, SCAN)
    async with plane.database.transaction(busy) as tx:
        await tx.one("admission_lock")
        waiting = asyncio.create_task(desk.carry_out(busy, SCAN))
        assert isinstance(await desk.carry_out(free, SCAN), Lease)
        assert not waiting.done()
    assert isinstance(await waiting, Lease)
    assert groups == [1, 1, 1]


async def test_each_operation_of_a_group_has_its_own_outcome(
    desk: AdmissionCommitter, tenant: str, groups: list[int]
) -> None:
    """Granted, repeated, refused, lost, unknown: none of them touches the others."""
    held = await desk.carry_out(tenant, Acquire(Ask("scan", job_id="job-1"), "jec_test"))
    assert isinstance(held, Lease)

    outcomes = await together(
        desk,
        tenant,
        Acquire(Ask("scan", job_id="job-1"), "jec_test"),
        Acquire(Ask("load", job_id="job-1"), "jec_test"),
        Renew(held.lease_id, held.fencing_token, 600),
        Renew(held.lease_id, 99, None),
        Renew(new_id(), 1, None),
        Acquire(Ask("scan", slots=10), "jec_test"),
        Release(held.lease_id, held.fencing_token),
        Release(held.lease_id, held.fencing_token),
        Renew(held.lease_id, held.fencing_token, None),
        Acquire(Ask("scan", slots=10, job_id="job-1"), "jec_test"),
    )

    kinds = [Repeated, Conflict, Lease, LeaseLost, NotFound, Denied, Released, Released, LeaseLost, Lease]
    assert [type(outcome) for outcome in outcomes] == kinds
    assert groups == [1, 10]


async def test_a_poisoned_operation_fails_alone(desk: AdmissionCommitter, tenant: str, groups: list[int]) -> None:
    """The group is split, and everybody else gets an answer that is durable."""
    outcomes = await together(desk, tenant, SCAN, POISON, SCAN, SCAN)

    assert [isinstance(outcome, Lease) for outcome in outcomes] == [True, False, True, True]
    assert isinstance(outcomes[1], Exception)
    # What fails before anything is decided is not counted: four, then two, then one.
    assert groups == [1, 2]


async def test_a_lost_race_is_run_again(desk: AdmissionCommitter, tenant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller of a transaction that a deadlock ended never hears of it."""
    tried: list[int] = []

    async def loses_once(tx: Transaction, operations: Sequence[Operation]) -> list[Outcome]:
        tried.append(len(operations))
        outcomes = await admission_group.decide_group(tx, operations)
        if len(tried) == 1:
            raise LostRace("the other one goes first")
        return outcomes

    monkeypatch.setattr(committer, "decide_group", loses_once)

    outcomes = await together(desk, tenant, SCAN, SCAN)

    assert [outcome.fencing_token for outcome in outcomes if isinstance(outcome, Lease)] == [1, 2]
    assert tried == [2, 2]


async def test_a_caller_who_has_gone_takes_no_slot(desk: AdmissionCommitter, tenant: str, groups: list[int]) -> None:
    """Cancelled before its turn, a question is not asked."""
    gone = asyncio.create_task(desk.carry_out(tenant, SCAN))
    await asyncio.sleep(0)
    gone.cancel()
    lease = await desk.carry_out(tenant, SCAN)

    assert gone.cancelled()
    assert isinstance(lease, Lease)
    assert lease.fencing_token == 1
    assert sum(groups) == 1


@pytest.mark.parametrize("limit", ["MOST_WAITING", "MOST_WAITING_OF_A_TENANT"])
async def test_a_full_queue_refuses_and_costs_nothing(
    desk: AdmissionCommitter, tenant: str, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`overloaded`, with a time to come again; those in the queue are served."""
    monkeypatch.setattr(committer, limit, 3)

    outcomes = await together(desk, tenant, *[SCAN] * 6)

    refused = [outcome for outcome in outcomes if isinstance(outcome, Unavailable)]
    assert {error.problem_code for error in refused} == {"overloaded"}
    assert len([outcome for outcome in outcomes if isinstance(outcome, Lease)]) == 6 - len(refused) >= 3
    assert refused
    assert isinstance(await desk.carry_out(tenant, SCAN), Lease)


async def test_an_overloaded_service_says_when_to_come_again(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 with `Retry-After`."""
    monkeypatch.setattr(committer, "MOST_WAITING_OF_A_TENANT", 1)

    answers = await asyncio.gather(*[api.admit() for _ in range(8)])

    refused = [answer for answer in answers if answer.status_code == 503]
    assert {(answer.json()["code"], answer.headers["retry-after"]) for answer in refused} == {("overloaded", "1")}
    assert sum(answer.status_code == 201 for answer in answers) == 8 - len(refused)


async def test_closing_finishes_what_waits(desk: AdmissionCommitter, tenant: str) -> None:
    """What was accepted is answered."""
    asked = [asyncio.create_task(desk.carry_out(tenant, SCAN)) for _ in range(5)]
    await asyncio.sleep(0)

    await desk.close()

    assert all(isinstance(task.result(), Lease) for task in asked if task.done())
    assert len([task for task in await asyncio.gather(*asked) if isinstance(task, Lease)]) == 5
