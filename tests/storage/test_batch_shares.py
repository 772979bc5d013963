"""Contract sections 5 and 6: what backfills may hold beside live work, and how they share it among themselves."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from tests.backfilling import Crew, days
from tests.factories import Api, expect_problem

LATE = 16


@pytest.fixture
def crew(api: Api) -> Crew:
    """Somebody with no more room than the test gives them."""
    return Crew(api)


async def room(crew: Crew, most: int, job_type: str | None = "external", **changes: float) -> None:
    """Allow *most* slots and plenty of everything else."""
    limits = {"max_active": most, "max_per_hour": 10_000, "burst": 1_000, "refill_per_second": 100} | changes
    await crew.api.quota(job_type, **limits)


@pytest.mark.parametrize(("most", "share"), [(1, 1), (2, 1), (3, 1), (4, 2), (9, 4), (10, 5)])
async def test_backfills_hold_half_of_the_slots(crew: Crew, most: int, share: int) -> None:
    """Rounded down, and never less than one."""
    await room(crew, most)
    made = await crew.start(20)

    assert len(await crew.claim(20)) == share
    assert await crew.claim(1) == []
    waiting = [item["why_waiting"] for item in await crew.batches(made) if item["status"] == "pending"]
    assert set(waiting) == {"share"} if share < most else {"quota", "share"}
    assert await crew.drift() == 0


async def test_the_share_of_the_whole_tenant_counts_too(crew: Crew) -> None:
    """Two job types with room of their own share what the tenant's quota leaves to backfills."""
    await room(crew, 100)
    await room(crew, 100, "patient")
    await room(crew, 6, None)
    await crew.start(9)
    await crew.start(9, job_type="patient")

    assert len(await crew.claim(9, "external", "patient")) == 3


async def test_live_work_leaves_a_waiting_batch_one_slot(crew: Crew) -> None:
    """While a batch is eligible and none runs, live work stops one short; a paused backfill claims no floor."""
    await room(crew, 4)
    made = await crew.start(3)
    for _ in range(3):
        assert (await crew.api.admit("external")).status_code == 201
    problem = expect_problem(await crew.api.admit("external"), 429, "admission_denied")
    assert [(item["limit"], item["maximum"]) for item in problem["blocking"]] == [("max_active", 3)]

    await crew.moved(made, "pause")
    assert (await crew.api.admit("external")).status_code == 201
    await crew.moved(made, "resume")
    assert await crew.claim(1) == []
    assert await crew.drift() == 0


async def test_the_floor_is_gone_while_a_batch_runs(crew: Crew) -> None:
    """One runs, so live work may take all the rest."""
    await room(crew, 4)
    await crew.start(3)
    assert len(await crew.claim(1)) == 1

    for _ in range(3):
        assert (await crew.api.admit("external")).status_code == 201
    expect_problem(await crew.api.admit("external"), 429, "admission_denied")


async def test_a_single_slot_has_no_floor(crew: Crew) -> None:
    """One slot cannot be shared: whoever is first has it."""
    await room(crew, 1)
    await crew.start(3)

    assert (await crew.api.admit("external")).status_code == 201
    assert await crew.claim(1) == []


@pytest.mark.parametrize("limits", [{"max_per_hour": 2}, {"burst": 2, "refill_per_second": 0}])
async def test_the_hour_and_the_bucket_bound_batches_as_well(crew: Crew, limits: dict[str, float]) -> None:
    """Every attempt is an admission, and these limits know no floor."""
    await room(crew, 100, **limits)
    made = await crew.start(9)

    assert len(await crew.claim(9)) == 2
    [*_, last] = await crew.batches(made)
    assert last["why_waiting"] == "quota"


async def test_a_paused_quota_hands_out_nothing(crew: Crew) -> None:
    """Until it is resumed."""
    quota = await crew.api.quota("external")
    await crew.start(3)
    await crew.api.post(f"/quotas/{quota['quota_id']}/pause")
    assert await crew.claim(3) == []

    await crew.api.post(f"/quotas/{quota['quota_id']}/resume")
    assert len(await crew.claim(2)) == 2


async def test_a_backfill_runs_no_more_than_its_own_maximum(crew: Crew) -> None:
    """Whatever room the quota leaves; one that ends makes room for the next."""
    await room(crew, 100)
    made = await crew.start(9, max_active=2)

    hand = await crew.claim(9)
    assert len(hand) == 2
    assert await crew.claim(9) == []
    waiting = {item["why_waiting"] for item in await crew.batches(made) if item["status"] == "pending"}
    assert waiting == {"max_active"}
    await crew.done(hand[0])
    assert len(await crew.claim(9)) == 1


async def test_backfills_of_one_tenant_take_turns(crew: Crew) -> None:
    """Whoever has the fewest running comes next, so that a large one does not keep a small one waiting."""
    await room(crew, 24)
    large = await crew.start(500, source="large")
    small = [await crew.start(4, source=f"small-{number}") for number in range(3)]

    hand = await crew.claim(12)

    assert Counter(batch["backfill_id"] for batch in hand) == {made["backfill_id"]: 3 for made in (large, *small)}


async def test_a_slot_is_free_again_however_its_batch_ends(
    crew: Crew, later: Callable[[str, float], Awaitable[None]]
) -> None:
    """Completed, failed, lost, forced out or canceled: nothing leaks, and kept use is what the leases say."""
    await room(crew, 20)
    made = await crew.start(50)
    done, failed, retried, forced, *lost = await crew.claim(10)
    await crew.done(done)
    await crew.fail(failed)
    await crew.fail(retried, retryable=True)
    leases = (await crew.api.get("/admissions")).json()["items"]
    [lease] = [lease for lease in leases if lease["fencing_token"] == forced["fencing_token"]]
    await crew.api.delete(f"/admissions/{lease['lease_id']}")
    assert (await crew.active(), await crew.drift()) == (len(lost), 0)

    await later(crew.api.tenant_id, LATE)
    assert (await crew.active(), await crew.drift()) == (0, 0)
    assert len(await crew.claim(50)) == 10
    await crew.moved(made, "cancel")
    await later(crew.api.tenant_id, LATE)
    await crew.claim(1)

    assert (await crew.show(made))["status"] == "canceled"
    assert (await crew.active(), await crew.drift()) == (0, 0)


async def test_live_and_backfill_work_that_race_never_pass_a_limit(crew: Crew) -> None:
    """Claims and admissions at once: together they hold what is allowed, and backfills no more than their share."""
    await room(crew, 10)
    await crew.start(200)

    answers = await asyncio.gather(
        *[crew.claim(2) for _ in range(6)], *[crew.api.admit("external") for _ in range(20)], return_exceptions=False
    )

    batches = [batch for answer in answers if isinstance(answer, list) for batch in answer]
    live = [answer for answer in answers if not isinstance(answer, list) and answer.status_code == 201]
    assert 1 <= len(batches) <= 5
    assert len(batches) + len(live) <= 10
    assert await crew.active() == len(batches) + len(live)
    assert await crew.drift() == 0
    assert all(batch["window"] in [days(k, k + 1) for k in range(200)] for batch in batches)
