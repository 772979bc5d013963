"""Section 1, the sentences that hold for every resource at once."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx2
import pytest
from tests.backfilling import Crew
from tests.contract.furnishing import every_resource
from tests.factories import LIMITS, Api, expect_problem

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.(?!000000)\d{6})?Z")
TIMES = re.compile(r"(.*_)?(at|until|start|end|eta)")
ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
IDS = {"quota_id", "lease_id", "override_id", "backfill_id", "batch_id", "entry_id", "audit_entry_id", "token_id"}
NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
# Members whose names are somebody's own words.
FREE = {"properties", "params", "denials_last_hour"}


def members(document: Any) -> Iterator[tuple[str, Any]]:
    """Yield every member of every object, but those that people name."""
    if isinstance(document, dict):
        for name, value in document.items():
            yield name, value
            if name not in FREE:
                yield from members(value)
    elif isinstance(document, list):
        for item in document:
            yield from members(item)


@pytest.fixture
async def resources(api: Api) -> dict[str, Any]:
    """One answer of every kind, by the path that gave it."""
    return await every_resource(api)


async def test_root_paths_are_open_to_everybody(client: httpx2.AsyncClient) -> None:
    """Health, readiness, metrics, documents and keys need no token."""
    kinds = {
        "/healthz": "application/json",
        "/metrics": "text/plain",
        "/openapi.json": "application/json",
        "/docs": "text/html",
        "/.well-known/jwks.json": "application/json",
        "/.well-known/oauth-authorization-server": "application/json",
    }
    for path, kind in kinds.items():
        answer = await client.get(path)
        assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, kind), path
    # Whether it is ready at this moment depends on what others do on the same database; that it answers does not.
    assert (await client.get("/readyz")).status_code in {200, 503}


def test_every_member_is_written_in_snake_case(resources: dict[str, Any]) -> None:
    """Whatever answers it stands in."""
    for path, document in resources.items():
        assert [name for name, _ in members(document) if not NAME.fullmatch(name)] == [], path


def test_every_time_is_rfc_3339_in_utc(resources: dict[str, Any]) -> None:
    """With six fractional digits, or none when they would be zero."""
    found = [
        (path, name, value)
        for path, document in resources.items()
        for name, value in members(document)
        if TIMES.fullmatch(name) and isinstance(value, str)
    ]

    assert len(found) > 30
    assert [each for each in found if not TIME.fullmatch(each[2])] == []


def test_every_id_is_a_uuid_of_version_seven(resources: dict[str, Any]) -> None:
    """Quotas, overrides, leases, backfills, batches, entries and tokens."""
    found = {
        (name, value) for document in resources.values() for name, value in members(document) if name in IDS and value
    }

    assert {name for name, _ in found} == IDS
    assert [each for each in found if not ID.fullmatch(each[1])] == []


@pytest.mark.usefixtures("any_policy")
async def test_a_change_answers_the_resource_as_it_is_read_afterwards(api: Api, governor: Api) -> None:
    """Of POST, PATCH and PUT alike."""
    made = await api.quota()
    path = f"/quotas/{made['quota_id']}"
    assert made == (await api.get(path)).json()

    for change in (
        api.patch(path, {"limits": {"burst": 9}}),
        api.post(f"{path}/pause", {"pause_reason": "a rest"}),
        api.post(f"{path}/resume"),
    ):
        assert (await change).json() == (await api.get(path)).json()
    policy = await governor.put("/policy", {"max_raise_factor": 9})
    assert policy.json() == (await api.get("/policy")).json()


async def walk(api: Api, path: str, between: Callable[[int], Awaitable[Any]], *, size: int = 4) -> list[Any]:
    """Return a list page by page, with something written before each further one."""
    items: list[Any] = []
    token: str | None = None
    for number in range(100):
        more = {} if token is None else {"page_token": token}
        page = (await api.get(path, params={"page_size": size, **more})).json()
        items += page["items"]
        if (token := page["next_page_token"]) is None:
            return items
        await asyncio.gather(*[between(number * 10 + each) for each in range(2)])
    pytest.fail("the list has no end")


async def lists(api: Api) -> dict[str, tuple[str, Callable[[int], Awaitable[Any]]]]:
    """Return every list that grows: its path, its id, and what makes it grow."""
    crew = Crew(api)
    quota = f"/quotas/{(await api.quota('history'))['quota_id']}"
    for number in range(9):
        await asyncio.gather(
            api.quota(f"first-{number}"),
            api.admit("busy", lease_seconds=3600),
            crew.start(1, source=f"first-{number}"),
            api.patch(quota, {"limits": {"burst": number + 5}}),
        )
    return {
        "/quotas": ("quota_id", lambda n: api.quota(f"later-{n}")),
        "/admissions": ("lease_id", lambda n: api.admit("busier", job_id=f"later-{n}")),
        "/backfills": ("backfill_id", lambda n: crew.start(1, source=f"later-{n}")),
        f"{quota}/history": ("version", lambda n: api.patch(quota, {"limits": {"burst": n + 14}})),
    }


async def test_a_list_that_grows_while_it_is_read_shows_everything_once(api: Api) -> None:
    """What was there when the walk began comes exactly once and in a stable order, whatever is made meanwhile."""
    for path, (name, grow) in (await lists(api)).items():
        before = [item[name] for item in (await api.get(path, params={"page_size": 500})).json()["items"]]

        walked = [item[name] for item in await walk(api, path, _a_few(grow))]

        assert len(before) > 8, path
        assert len(walked) == len(set(walked)), path
        assert [known for known in walked if known in set(before)] == before, path


def _a_few(grow: Callable[[int], Awaitable[Any]]) -> Callable[[int], Awaitable[Any]]:
    made = iter(range(4))

    async def once(number: int) -> None:
        if next(made, None) is not None:
            await grow(number)

    return once


async def test_concurrent_repeats_of_a_failure_are_each_judged(api: Api) -> None:
    """The first one frees the key, so that the next is no replay; none of them waits for ever."""
    await api.quota()
    body = {"job_type": "scan", "limits": LIMITS}

    answers = await asyncio.gather(*[api.post("/quotas", body, headers={"Idempotency-Key": "again"}) for _ in range(8)])

    for answer in answers:
        expect_problem(answer, 409, "quota_exists")
        assert "idempotent-replayed" not in answer.headers


async def test_a_repeated_start_of_a_backfill_is_no_duplicate_of_itself(api: Api) -> None:
    """Under its key it gets the first answer; without the key it is refused."""
    ask = {
        "job_type": "external",
        "source": "s3",
        "window": {"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z"},
    }
    first, again = [await api.post("/backfills", ask, headers={"Idempotency-Key": "start"}) for _ in range(2)]

    assert (first.status_code, again.status_code, again.json()) == (202, 202, first.json())
    assert again.headers["location"] == first.headers["location"]
    expect_problem(await api.post("/backfills", ask), 409, "duplicate_backfill")


@pytest.mark.usefixtures("any_policy")
async def test_limits_may_be_as_large_as_their_range(api: Api, governor: Api) -> None:
    """10^12, and 10^9 with six decimals, come back to the digit."""
    largest = {"max_active": 10**12, "max_per_hour": 10**12, "burst": 10**12, "refill_per_second": 10**9}
    assert (await governor.put("/policy", {"ceilings": largest})).status_code == 200
    wanted = largest | {"refill_per_second": 999_999_999.999999}

    answer = await api.post("/quotas", {"job_type": "vast", "limits": wanted})

    assert (answer.status_code, answer.json()["limits"]) == (201, wanted)
    assert (await api.admit("vast", slots=10**12)).status_code == 201
