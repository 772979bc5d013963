"""Several servers on one database: each decision sees what every other server committed before it."""

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest
from tests.conftest import PassTime
from tests.factories import ROOMY, Api, Connection

from jobengine.bootstrap import Plane
from jobengine.errors import Conflict
from jobengine.quota.admission import Ask, Denied
from jobengine.storage.admission import Lease, Repeated
from jobengine.storage.admission_group import Acquire, AcquireMany, Answers, Release, Released
from jobengine.storage.admission_tidying import tidy_admissions
from jobengine.storage.committer import AdmissionCommitter
from jobengine.storage.database import Database


@pytest.fixture
async def elsewhere(database_url: str, plane: Plane) -> AsyncIterator[AdmissionCommitter]:
    """Another server's committer: connections of its own, and nothing in memory that the first one knows."""
    assert plane
    database = Database(database_url, app_connections=4, system_connections=1)
    await database.open()
    yield AdmissionCommitter(database)
    await database.close()


@pytest.fixture
def here(plane: Plane) -> AdmissionCommitter:
    """The first server's committer."""
    return AdmissionCommitter(plane.database)


def ask(job_type: str, job_id: str | None = None) -> Acquire:
    return Acquire(Ask(job_type, job_id=job_id), "jec_test")


async def drift(api: Api) -> int:
    return (await api.get("/quotas/drift")).json()["drift"]


async def test_crossing_job_types_never_deadlock_and_lose_no_slot(
    api: Api, here: AdmissionCommitter, elsewhere: AdmissionCommitter
) -> None:
    """One asks in one order and the other in the opposite one; every row is taken behind the tenant's lock."""
    names = [f"type-{index}" for index in range(6)]
    for name in names:
        await api.quota(name, **ROOMY | {"max_active": 20})

    def batch(order: list[str]) -> AcquireMany:
        return AcquireMany(tuple(Ask(name) for name in order), "jec_test")

    calls = [
        (here if turn % 2 else elsewhere).carry_out(api.tenant_id, batch(names if turn % 2 else names[::-1]))
        for turn in range(40)
    ]
    outcomes = await asyncio.gather(*calls)

    leases = [
        item for found in outcomes if isinstance(found, Answers) for item in found.items if isinstance(item, Lease)
    ]
    assert {name: sum(lease.job_type == name for lease in leases) for name in names} == dict.fromkeys(names, 20)
    tokens = {(lease.job_type, lease.fencing_token) for lease in leases}
    assert tokens == {(name, token) for name in names for token in range(1, 21)}
    gone = [Release(lease.lease_id, lease.fencing_token) for lease in leases]
    released = await asyncio.gather(
        *[(here if index % 2 else elsewhere).carry_out(api.tenant_id, item) for index, item in enumerate(gone)]
    )
    assert all(isinstance(item, Released) for item in released)
    assert await drift(api) == 0


async def test_a_raise_a_pause_and_a_cut_show_in_the_next_decision_of_every_server(
    api: Api, here: AdmissionCommitter, elsewhere: AdmissionCommitter
) -> None:
    """Nothing about limits is remembered between two decisions."""
    quota = await api.quota(**ROOMY | {"max_active": 1})
    path, both = f"/quotas/{quota['quota_id']}", (here, elsewhere)
    first = await here.carry_out(api.tenant_id, ask("scan"))
    assert isinstance(first, Lease)
    assert isinstance(await elsewhere.carry_out(api.tenant_id, ask("scan")), Denied)

    await api.patch(path, {"limits": {"max_active": 3}})
    second, third = [await server.carry_out(api.tenant_id, ask("scan")) for server in both]
    assert isinstance(second, Lease)
    assert isinstance(third, Lease)

    await api.patch(path, {"limits": {"max_active": 2}})
    for server in both:
        assert isinstance(await server.carry_out(api.tenant_id, ask("scan")), Denied)
    for lease in (first, second):
        assert isinstance(await elsewhere.carry_out(api.tenant_id, ask("scan")), Denied)
        await here.carry_out(api.tenant_id, Release(lease.lease_id, lease.fencing_token))
    await api.post(f"{path}/pause")
    for server in both:
        denied = await server.carry_out(api.tenant_id, ask("scan"))
        assert isinstance(denied, Denied)
        assert [found.limit.value for found in denied.blocking] == ["paused"]
    await api.post(f"{path}/resume")
    assert isinstance(await elsewhere.carry_out(api.tenant_id, ask("scan")), Lease)
    assert isinstance(await here.carry_out(api.tenant_id, ask("scan")), Denied)
    assert await drift(api) == 0


async def test_a_batch_that_contradicts_a_lease_grants_nothing_and_harms_no_neighbour(
    api: Api, here: AdmissionCommitter
) -> None:
    """All of it is taken back, down to the fencing tokens; what stood beside it in the group is granted."""
    await api.quota("scan", **ROOMY | {"max_active": 4})
    held = await here.carry_out(api.tenant_id, ask("load", "job-1"))
    poisoned = AcquireMany((Ask("scan"), Ask("scan", job_id="job-2"), Ask("scan", job_id="job-1")), "jec_test")

    before, refused, after, again = await asyncio.gather(
        here.carry_out(api.tenant_id, ask("scan")),
        here.carry_out(api.tenant_id, poisoned),
        here.carry_out(api.tenant_id, AcquireMany((Ask("scan"), Ask("scan", job_id="job-2")), "jec_test")),
        here.carry_out(api.tenant_id, ask("load", "job-1")),
        return_exceptions=True,
    )

    assert isinstance(held, Lease)
    assert isinstance(refused, Conflict)
    assert (refused.problem_code, refused.detail.split(":")[0]) == ("job_id_conflict", "requests[2]")
    assert isinstance(before, Lease)
    assert isinstance(after, Answers)
    assert [item.fencing_token for item in (before, *after.items) if isinstance(item, Lease)] == [1, 2, 3]
    assert again == Repeated(held)
    shown = (await api.get("/admissions", params={"job_type": "scan"})).json()["items"]
    assert len(shown) == 3
    assert await drift(api) == 0


async def test_a_batch_that_contradicts_itself_is_refused_as_a_whole(api: Api) -> None:
    """409 `job_id_conflict` with the place of the question, over HTTP too."""
    answer = await api.post(
        "/admissions/batch",
        {"requests": [{"job_type": "scan", "job_id": "job-1"}, {"job_type": "load", "job_id": "job-1"}]},
    )

    assert (answer.status_code, answer.json()["code"]) == (409, "job_id_conflict")
    assert answer.json()["detail"].startswith("requests[1]: ")
    assert (await api.get("/admissions")).json()["items"] == []
    assert await drift(api) == 0


async def test_a_tenant_that_nobody_asks_for_any_more_is_tidied(
    api: Api, plane: Plane, owner: Connection, later: PassTime
) -> None:
    """What is over leaves the tables an hour later, and the sums with it, without another request."""
    await api.quota(**ROOMY)
    await api.post("/admissions/batch", {"requests": [{"job_type": "scan", "lease_seconds": 5}] * 30})
    await later(api.tenant_id, 3_700)

    await tidy_admissions(plane.database)

    rows = await owner.execute("select count(*) as n from admission_grants where tenant_id = %s", (api.tenant_id,))
    assert await rows.fetchall() == [{"n": 0}]
    kept = "select account, active, granted_hour from admission_accounts where tenant_id = %s order by account"
    assert await (await owner.execute(kept, (api.tenant_id,))).fetchall() == [
        {"account": name, "active": 0, "granted_hour": 0} for name in ("", "scan")
    ]
    await later(api.tenant_id, 3_700)
    await tidy_admissions(plane.database)
    leases = await owner.execute("select count(*) as n from leases where tenant_id = %s", (api.tenant_id,))
    assert await leases.fetchall() == [{"n": 0}]


async def test_a_sum_that_was_tampered_with_shows_as_drift(api: Api, owner: Connection) -> None:
    """The recount reads the leases alone, and neither the sums nor what the hour was counted by."""
    await api.quota(**ROOMY)
    await api.post("/admissions/batch", {"requests": [{"job_type": "scan"}] * 3})
    assert await drift(api) == 0

    for change in ("active = active + 1", "granted_hour = granted_hour - 1"):
        statement = f"update admission_accounts set {change} where tenant_id = %s and account = 'scan'"
        await owner.execute(statement.encode(), (api.tenant_id,))

    assert await drift(api) == 2


async def test_the_tenants_lock_is_the_first_row_that_a_decision_takes(
    api: Api, here: AdmissionCommitter, owner: Connection, database_url: str
) -> None:
    """Whoever holds another of its rows cannot stand in its way in the opposite order."""
    await here.carry_out(api.tenant_id, ask("scan"))
    options = "-c search_path=jobengine"
    async with await psycopg.AsyncConnection.connect(database_url, options=options) as holder:
        lock = "select account from admission_accounts where tenant_id = %s and account = '' for update"
        await holder.execute(lock, (api.tenant_id,))
        waiting = asyncio.create_task(here.carry_out(api.tenant_id, ask("scan")))
        await waits(owner)
        # Behind the first lock every other row is still free.
        rest = "select account from admission_accounts where tenant_id = %s for update nowait"
        assert len(await (await holder.execute(rest, (api.tenant_id,))).fetchall()) == 2
        assert not waiting.done()
    assert isinstance(await waiting, Lease)


async def waits(owner: Connection) -> None:
    """Return once somebody waits for a lock of the accounts."""
    query = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and query like '%admission_accounts%'"
    for _ in range(3_000):
        if await (await owner.execute(query)).fetchone():
            return
        await asyncio.sleep(0.02)
    pytest.fail("nobody waits")
