"""What others got wrong in public, one test each: the condition is in the name, where it was seen in the sentence."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from psycopg import sql
from tests.conftest import MakeDatabase
from tests.factories import Api, expect_problem, new_tenant
from tests.model.told_clock import Servers, servers_on

SECOND = 10**6
ROOMY = {"max_active": 100, "max_per_hour": 10_000, "burst": 10_000, "refill_per_second": 1_000}


@pytest.fixture
async def servers(migrated_database: MakeDatabase, tmp_path: Path) -> AsyncIterator[Servers]:
    """Two servers on one database whose clock stands still until it is moved."""
    async with servers_on(await migrated_database(), tmp_path) as opened:
        yield opened


@pytest.fixture
async def pair(servers: Servers) -> tuple[Api, Api]:
    """Somebody of one tenant, at either server."""
    tenant_id = await new_tenant(servers.planes[0])
    return servers.at(0, tenant_id), servers.at(1, tenant_id)


async def end(api: Api, lease: dict[str, Any], verb: str = "release") -> httpx2.Response:
    """Give a lease back, or renew it."""
    return await api.post(f"/admissions/{lease['lease_id']}/{verb}", {"fencing_token": lease["fencing_token"]})


async def active(api: Api) -> int:
    """Return the slots in use of the one quota; what is kept never differs from what the leases say."""
    assert (await api.get("/quotas/drift")).json()["drift"] == 0
    [quota] = (await api.get("/quotas")).json()["items"]
    return quota["usage"]["active"]


def statuses(answers: Sequence[httpx2.Response]) -> list[int]:
    return sorted(answer.status_code for answer in answers)


async def test_a_restart_with_a_held_lease_loses_neither_lease_nor_slot(
    servers: Servers, pair: tuple[Api, Api]
) -> None:
    """Prefect 3.8: leases lived in the process and their count did not; a limit of one was dead after a restart."""
    here, _ = pair
    await here.quota(max_active=1)
    lease = (await here.admit()).json()

    for number in (0, 1):
        await servers.restart(number)
    after = servers.at(0, here.tenant_id)

    assert (await after.admit()).status_code == 429
    assert ((await end(after, lease, "renew")).status_code, (await end(after, lease)).status_code) == (200, 204)
    assert (await after.admit()).status_code == 201


async def test_a_release_while_paused_frees_its_slot(pair: tuple[Api, Api]) -> None:
    """Prefect 3.8: the count of a limit that was switched off stayed; Kueue 1651: a held queue still admitted."""
    here, there = pair
    quota = await here.quota(max_active=1)
    lease = (await here.admit()).json()
    assert (await here.post(f"/quotas/{quota['quota_id']}/pause")).status_code == 200
    problem = expect_problem(await there.admit(), 429, "admission_denied")
    assert {found["limit"] for found in problem["blocking"]} == {"max_active", "paused"}
    assert (await end(there, lease, "renew")).status_code == 200

    assert (await end(there, lease)).status_code == 204

    assert await active(here) == 0
    assert (await here.admit()).status_code == 429
    assert (await there.post(f"/quotas/{quota['quota_id']}/resume")).status_code == 200
    assert (await here.admit()).status_code == 201


async def test_a_grant_that_fails_at_its_commit_leaves_neither_count_nor_lease(
    servers: Servers, pair: tuple[Api, Api]
) -> None:
    """Prefect 17415 and 21794, Kubernetes 71450: the counter and what it counts were written apart."""
    here, there = pair
    quota = await here.quota(max_active=2, burst=2)
    servers.clock.execute(
        """create function jobengine.fail() returns trigger language plpgsql as
           $$begin if new.job_id = 'doomed' then raise 'no'; end if; return new; end$$;
           create constraint trigger doom after insert on jobengine.leases deferrable initially deferred
           for each row execute function jobengine.fail()"""
    )

    answers = await asyncio.gather(
        here.admit(job_id="doomed"), here.admit(job_id="blessed"), there.admit(job_id="doomed")
    )

    assert statuses(answers) == [201, 500, 500]
    assert await active(there) == 1
    usage = (await here.get(f"/quotas/{quota['quota_id']}")).json()["usage"]
    assert (usage["granted_last_hour"], usage["tokens"]) == (1, 1)
    assert statuses([await here.admit(), await here.admit()]) == [201, 429]


async def test_denials_do_not_eat_what_a_raise_gives(pair: tuple[Api, Api]) -> None:
    """Envoy ratelimit 185 and 744: denied calls were counted too, so that a raise within the window helped nobody."""
    here, there = pair
    quota = await here.quota(max_per_hour=2, max_active=50, burst=50)
    assert statuses([await here.admit() for _ in range(12)]) == [201] * 2 + [429] * 10

    assert (await there.patch(f"/quotas/{quota['quota_id']}", {"limits": {"max_per_hour": 5}})).status_code == 200

    assert statuses([await here.admit() for _ in range(5)]) == [201] * 3 + [429] * 2


async def test_no_server_decides_on_what_it_saw_before(pair: tuple[Api, Api]) -> None:
    """Milo 527, Kueue 5276 and oslo.limit: caches of limits and of use granted twice, or what had been lowered."""
    here, there = pair
    quota = await here.quota(max_active=2)
    path = f"/quotas/{quota['quota_id']}"
    assert statuses([await here.admit(), await there.admit(), await here.admit()]) == [201, 201, 429]

    await here.patch(path, {"limits": {"max_active": 3}})
    assert statuses([await there.admit(), await there.admit()]) == [201, 429]
    await there.patch(path, {"limits": {"max_active": 1}})
    leases = (await here.get("/admissions")).json()["items"]
    assert statuses([await end(here, lease) for lease in leases[:2]]) == [204, 204]

    assert (await here.admit()).status_code == 429
    assert (await end(there, leases[2])).status_code == 204
    assert (await here.admit()).status_code == 201


async def test_a_quota_that_is_deleted_while_its_slots_are_held_comes_back_with_them(pair: tuple[Api, Api]) -> None:
    """Kueue 2678 and 10579: use was forgotten with the resource, and admitted over again."""
    here, there = pair
    quota = await here.quota(max_active=3)
    leases = [(await here.admit()).json() for _ in range(3)]

    assert (await there.delete(f"/quotas/{quota['quota_id']}")).status_code == 204

    [blocking] = expect_problem(await here.admit(slots=8), 429, "admission_denied")["blocking"]
    assert (blocking["used"], blocking["maximum"]) == (3, 10)
    await here.quota(max_active=3)
    assert (await there.admit()).status_code == 429
    assert statuses([await end(there, lease) for lease in leases]) == [204] * 3
    assert await active(here) == 0


async def test_neither_a_denial_nor_a_lost_database_opens_the_gate(servers: Servers, pair: tuple[Api, Api]) -> None:
    """rate-limiter-flexible 337: the insurance for a lost store stepped in for plain denials as well."""
    here, there = pair
    await here.quota(max_active=1)
    lease = (await here.admit()).json()
    assert statuses([await there.admit() for _ in range(3)]) == [429] * 3

    await servers.planes[1].database.close()

    assert (await there.admit()).status_code in {500, 503}
    assert (await end(here, lease)).status_code == 204
    assert (await there.admit()).status_code in {500, 503}
    assert await active(here) == 0


async def test_a_repeat_after_a_time_out_takes_no_second_slot_at_any_server(pair: tuple[Api, Api]) -> None:
    """Prefect has no name for a request: whoever did not hear the answer held a slot that nobody knew."""
    here, there = pair
    await here.quota(max_active=2)
    unheard = asyncio.create_task(here.admit(job_id="nightly"))
    await asyncio.sleep(0)
    unheard.cancel()
    await asyncio.gather(unheard, return_exceptions=True)

    first, second = await there.admit(job_id="nightly"), await here.admit(job_id="nightly")

    assert {first.status_code, second.status_code} <= {200, 201}
    assert first.json() == second.json()
    assert await active(there) == 1


async def test_a_stricter_default_isolation_of_the_database_wedges_nothing(
    migrated_database: MakeDatabase, tmp_path: Path
) -> None:
    """Prefect 22597: under repeatable read concurrent acquires failed again and again."""
    url = await migrated_database()
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as owner:
        name = sql.Identifier(owner.info.dbname)
        await owner.execute(
            sql.SQL("alter database {} set default_transaction_isolation = 'serializable'").format(name)
        )
    async with servers_on(url, tmp_path) as servers:
        tenant_id = await new_tenant(servers.planes[0])
        pair = servers.at(0, tenant_id), servers.at(1, tenant_id)
        assert (await pair[0].post("/quotas", {"job_type": "scan", "limits": ROOMY})).status_code == 201

        async def take_and_give(number: int) -> list[int]:
            api, seen = pair[number % 2], list[int]()
            for _ in range(5):
                lease = await api.admit()
                seen += [lease.status_code, (await end(api, lease.json())).status_code]
            return seen

        seen = await asyncio.gather(*(take_and_give(number) for number in range(12)))

        assert seen == [[201, 204] * 5] * 12
        assert await active(pair[1]) == 0


async def test_a_fraction_of_a_token_is_never_lost_under_steady_demand(servers: Servers, pair: tuple[Api, Api]) -> None:
    """Prefect 3.8 floored the refill at each grant: one a second, a burst of five, an ask each 0.9 s gave 24 of 44."""
    await pair[0].quota(burst=5, refill_per_second=1, max_active=100)
    answers: list[httpx2.Response] = []

    for number in range(44):
        answers.append(await pair[number % 2].admit())
        servers.let_pass(SECOND * 9 // 10)

    assert statuses(answers) == [201] * 43 + [429]


async def test_a_backup_that_is_restored_counts_the_leases_that_still_live(
    migrated_database: MakeDatabase, empty_database: Any, tmp_path: Path
) -> None:
    """Counters and leases of two stores come back from two moments; ours are one, and only time has gone on."""
    url = await migrated_database()
    async with AsyncExitStack() as stack:
        servers = await stack.enter_async_context(servers_on(url, tmp_path))
        tenant_id = await new_tenant(servers.planes[0])
        api = servers.at(0, tenant_id)
        await api.quota(max_active=2)
        brief, long = [(await api.admit(lease_seconds=seconds)).json() for seconds in (60, 600)]
    restored = await empty_database(psycopg.conninfo.conninfo_to_dict(url)["dbname"])

    async with servers_on(restored, tmp_path) as servers:
        api = servers.at(0, tenant_id)
        assert (await api.admit()).status_code == 429
        servers.let_pass(61 * SECOND)

        assert (await api.admit()).status_code == 201
        assert ((await end(api, brief)).status_code, (await end(api, long, "renew")).status_code) == (409, 200)
        assert await active(api) == 2
