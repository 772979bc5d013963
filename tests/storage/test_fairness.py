"""Tenants take turns at the database: who floods it waits behind everybody who does not."""

import asyncio
from collections.abc import Sequence

import pytest
from tests.factories import new_tenant

from jobengine.bootstrap import Plane
from jobengine.errors import Unavailable
from jobengine.quota.admission import Ask
from jobengine.storage import admission_group, committer
from jobengine.storage.admission import Lease
from jobengine.storage.admission_group import Acquire, AcquireMany, Answers, Operation, Outcome
from jobengine.storage.committer import AdmissionCommitter
from jobengine.storage.database import Transaction

SCAN = Acquire(Ask("scan"), "jec_test")


@pytest.fixture
def desk(plane: Plane) -> AdmissionCommitter:
    """A committer of its own, with nothing in its queues."""
    return AdmissionCommitter(plane.database)


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Whose groups were decided, in their order, and how many operations each had."""
    seen: list[tuple[str, int]] = []

    async def noted(tx: Transaction, operations: Sequence[Operation]) -> list[Outcome]:
        seen.append((tx.tenant_id, len(operations)))
        return await admission_group.decide_group(tx, operations)

    monkeypatch.setattr(committer, "decide_group", noted)
    return seen


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One transaction at a time, of at most ten decisions: turns are seen in their order."""
    monkeypatch.setattr(committer, "MOST_AT_ONCE", 1)
    monkeypatch.setattr(committer, "MOST_IN_A_GROUP", 10)


@pytest.mark.usefixtures("one_at_a_time")
async def test_a_flood_waits_behind_everybody_else(
    desk: AdmissionCommitter, plane: Plane, groups: list[tuple[str, int]]
) -> None:
    """Three quiet tenants that come after two hundred requests of another are served within one turn of it."""
    flood = await new_tenant(plane)
    quiet = [await new_tenant(plane) for _ in range(3)]
    flooding = [asyncio.create_task(desk.carry_out(flood, SCAN)) for _ in range(200)]
    await asyncio.sleep(0)

    await asyncio.gather(*[desk.carry_out(tenant, SCAN) for tenant in quiet])

    assert [tenant for tenant, _ in groups if tenant != flood] == quiet
    last = max(index for index, (tenant, _) in enumerate(groups) if tenant == quiet[-1])
    assert sum(tenant == flood for tenant, _ in groups[:last]) <= 2
    assert all(size <= 10 for _, size in groups)
    await asyncio.gather(*flooding)


@pytest.mark.usefixtures("one_at_a_time")
async def test_two_floods_share_evenly(desk: AdmissionCommitter, plane: Plane, groups: list[tuple[str, int]]) -> None:
    """Turn by turn, whoever asked more."""
    many, more = await new_tenant(plane), await new_tenant(plane)
    asked = [asyncio.create_task(desk.carry_out(many, SCAN)) for _ in range(50)]
    asked += [asyncio.create_task(desk.carry_out(more, SCAN)) for _ in range(100)]

    await asyncio.gather(*asked)

    assert [tenant for tenant, _ in groups[:10]] == [many, more] * 5
    assert {tenant for tenant, _ in groups[10:]} == {more}


@pytest.mark.usefixtures("one_at_a_time")
async def test_a_call_that_asks_for_much_is_a_turn_of_its_own(
    desk: AdmissionCommitter, plane: Plane, groups: list[tuple[str, int]]
) -> None:
    """What is too big for a group is not split, and takes nobody with it."""
    tenant, other = await new_tenant(plane), await new_tenant(plane)
    big = AcquireMany(tuple([Ask("scan")] * 25), "jec_test")

    outcomes = await asyncio.gather(
        desk.carry_out(tenant, SCAN), desk.carry_out(tenant, big), desk.carry_out(tenant, Acquire(Ask("load"), "jec")),
        desk.carry_out(other, SCAN),
    )  # fmt: skip

    assert [type(outcome) for outcome in outcomes] == [Lease, Answers, Lease, Lease]
    assert groups == [(tenant, 1), (other, 1), (tenant, 1), (tenant, 1)]


async def test_a_tenant_with_a_full_queue_takes_no_place_of_others(
    desk: AdmissionCommitter, plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`overloaded` is said to the one who floods; questions of a batch count one by one."""
    monkeypatch.setattr(committer, "MOST_WAITING_OF_A_TENANT", 30)
    flood, quiet = await new_tenant(plane), await new_tenant(plane)
    batch = AcquireMany(tuple([Ask("scan")] * 20), "jec_test")
    flooding = [asyncio.create_task(desk.carry_out(flood, batch)) for _ in range(3)]
    await asyncio.sleep(0)

    assert isinstance(await desk.carry_out(quiet, SCAN), Lease)

    told = await asyncio.gather(*flooding, return_exceptions=True)
    assert [isinstance(outcome, Unavailable) for outcome in told] == [False, True, True]


async def test_no_more_transactions_run_at_once_than_there_are_turns(
    desk: AdmissionCommitter, plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many tenants ask, other requests find a connection too."""
    running, most = 0, 0

    async def counted(tx: Transaction, operations: Sequence[Operation]) -> list[Outcome]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        outcomes = await admission_group.decide_group(tx, operations)
        await tx.all("account_names")
        running -= 1
        return outcomes

    monkeypatch.setattr(committer, "decide_group", counted)
    tenants = [await new_tenant(plane) for _ in range(12)]

    leases = await asyncio.gather(*[desk.carry_out(tenant, SCAN) for tenant in tenants])

    assert all(isinstance(lease, Lease) for lease in leases)
    assert 1 <= most <= committer.MOST_AT_ONCE
