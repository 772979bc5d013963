"""Contract section 4: a raise that ends by itself."""

from datetime import datetime, timedelta

import pytest
from tests.conftest import PassTime
from tests.factories import LIMITS, Api, expect_problem

from jobengine.clock import format_time


@pytest.fixture
async def clock(api: Api) -> datetime:
    """The database's time, by which overrides begin and end."""
    async with api.plane.database.transaction(api.tenant_id) as tx:
        return tx.now


@pytest.fixture
async def path(api: Api) -> str:
    """A quota of 5 slots."""
    return f"/quotas/{(await api.quota())['quota_id']}"


def at(moment: datetime, **later: float) -> str:
    return format_time(moment + timedelta(**later))


async def test_an_override_raises_what_is_in_force_and_not_the_limit(api: Api, path: str, clock: datetime) -> None:
    """``limits`` stay, ``effective_limits`` rise, and the next decision counts with them."""
    answer = await api.post(f"{path}/overrides", {"limits": {"max_active": 7}, "until": at(clock, hours=1)})

    override = answer.json()
    assert (answer.status_code, override["limits"], override["active"]) == (201, {"max_active": 7}, True)
    assert (override["until"], override["created_by"]) == (at(clock, hours=1), "ops")
    quota = (await api.get(path)).json()
    assert (quota["limits"], quota["effective_limits"]) == (LIMITS, LIMITS | {"max_active": 7})
    assert quota["version"] == 1
    assert (await api.admit(slots=7)).status_code == 201
    denied = await api.admit()
    assert expect_problem(denied, 429, "admission_denied")["blocking"][0]["maximum"] == 7


async def test_an_override_ends_by_itself(api: Api, path: str, clock: datetime, later: PassTime) -> None:
    """At ``until`` the base holds again; leases taken meanwhile run on."""
    await api.post(f"{path}/overrides", {"limits": {"max_active": 7}, "until": at(clock, minutes=30)})
    await api.admit(slots=7, lease_seconds=3600)

    await later(api.tenant_id, 1_700)
    assert (await api.get(path)).json()["effective_limits"]["max_active"] == 7
    await later(api.tenant_id, 100)
    quota = (await api.get(path)).json()

    assert (quota["effective_limits"], quota["usage"]["active"]) == (LIMITS, 7)
    assert (await api.get(f"{path}/overrides")).json()["items"] == []
    denied = await api.admit()
    assert expect_problem(denied, 429, "admission_denied")["blocking"][0]["maximum"] == 5


async def test_a_wait_counts_with_the_end_of_an_override(api: Api, path: str, clock: datetime, later: PassTime) -> None:
    """The first lease ends after the override: one slot back is not enough by then."""
    await api.post(f"{path}/overrides", {"limits": {"max_active": 7}, "until": at(clock, minutes=5)})
    for lease_seconds in (200, 400, 500, 600):
        await api.admit(lease_seconds=lease_seconds)
    await api.admit(slots=3, lease_seconds=3_600)

    soon, late = await api.admit(), await api.admit(slots=2)

    assert 190 < int(soon.headers["retry-after"]) <= 200
    assert 490 < int(late.headers["retry-after"]) <= 600
    await later(api.tenant_id, int(late.headers["retry-after"]) - 30)
    assert (await api.admit(slots=2)).status_code == 429
    await later(api.tenant_id, 30)
    assert (await api.admit(slots=2)).status_code == 201


async def test_an_override_begins_when_it_says(api: Api, path: str, clock: datetime, later: PassTime) -> None:
    """Before ``starts_at`` it is listed and not in force."""
    span = {"starts_at": at(clock, hours=1), "until": at(clock, hours=2)}
    override = (await api.post(f"{path}/overrides", {"limits": {"burst": 20}} | span)).json()

    assert (override["active"], override["starts_at"]) == (False, span["starts_at"])
    assert [item["active"] for item in (await api.get(f"{path}/overrides")).json()["items"]] == [False]
    assert (await api.get(path)).json()["effective_limits"] == LIMITS
    await later(api.tenant_id, 3_600)
    assert [item["active"] for item in (await api.get(f"{path}/overrides")).json()["items"]] == [True]
    assert (await api.get(path)).json()["effective_limits"] == LIMITS | {"burst": 20}


async def test_the_highest_of_several_overrides_holds_for_each_limit(api: Api, path: str, clock: datetime) -> None:
    """Ending one never takes another away."""
    made = [
        (await api.post(f"{path}/overrides", {"limits": limits, "until": at(clock, hours=1)})).json()["override_id"]
        for limits in ({"max_active": 20, "burst": 11}, {"max_active": 30}, {"refill_per_second": 2.5})
    ]

    effective = (await api.get(path)).json()["effective_limits"]
    assert effective == LIMITS | {"max_active": 30, "burst": 11, "refill_per_second": 2.5}
    assert (await api.delete(f"{path}/overrides/{made[1]}")).status_code == 204
    assert (await api.get(path)).json()["effective_limits"]["max_active"] == 20


async def test_an_override_below_a_new_base_changes_nothing(api: Api, path: str, clock: datetime) -> None:
    """It raises; it never lowers."""
    await api.post(f"{path}/overrides", {"limits": {"max_active": 7}, "until": at(clock, hours=1)})
    await api.patch(path, {"limits": {"max_active": 9}})

    assert (await api.get(path)).json()["effective_limits"]["max_active"] == 9


async def test_a_removed_override_is_gone_at_once(api: Api, path: str, clock: datetime) -> None:
    """Removing it again finds nothing."""
    body = {"limits": {"max_active": 7}, "until": at(clock, hours=1)}
    override = (await api.post(f"{path}/overrides", body)).json()
    target = f"{path}/overrides/{override['override_id']}"

    assert (await api.delete(target)).status_code == 204

    assert (await api.get(path)).json()["effective_limits"] == LIMITS
    assert (await api.get(f"{path}/overrides")).json()["items"] == []
    expect_problem(await api.delete(target), 404, "not_found")


async def test_an_override_belongs_to_one_quota(api: Api, path: str, clock: datetime) -> None:
    """Under another quota's path it is not found."""
    body = {"limits": {"max_active": 7}, "until": at(clock, hours=1)}
    override = (await api.post(f"{path}/overrides", body)).json()
    other = (await api.quota("load"))["quota_id"]

    expect_problem(await api.delete(f"/quotas/{other}/overrides/{override['override_id']}"), 404, "not_found")
    assert (await api.get(f"/quotas/{other}/overrides")).json()["items"] == []
    assert (await api.get(path)).json()["effective_limits"]["max_active"] == 7


async def test_the_past_remembers_what_an_override_made_of_the_limits(
    api: Api, path: str, clock: datetime, later: PassTime
) -> None:
    """``history?at=`` counts the overrides that held then, ended ones and removed ones too."""
    await api.post(f"{path}/overrides", {"limits": {"max_active": 7}, "until": at(clock, hours=1)})
    removed = (await api.post(f"{path}/overrides", {"limits": {"burst": 50}, "until": at(clock, hours=9)})).json()
    await later(api.tenant_id, 1_800)
    await api.delete(f"{path}/overrides/{removed['override_id']}")
    await later(api.tenant_id, 3_600)

    async def effective(**ago: float) -> dict[str, float]:
        now = {name: -value for name, value in ago.items()}
        asked = await api.get(f"{path}/history", params={"at": at(clock, **now)})
        return asked.json()["as_of"]["effective_limits"]

    assert await effective(seconds=5_000) == LIMITS | {"max_active": 7, "burst": 50}
    assert await effective(seconds=3_000) == LIMITS | {"max_active": 7}
    assert await effective(seconds=100) == LIMITS


@pytest.mark.parametrize(
    ("starts", "until"),
    [(None, -1), (60, 60), (120, 60), (-600, -60)],
)
async def test_a_span_that_is_empty_or_over_is_a_wrong_value(
    api: Api, path: str, clock: datetime, starts: float | None, until: float
) -> None:
    """``starts_at`` before ``until``, and ``until`` in the future."""
    body = {"limits": {"max_active": 7}, "until": at(clock, seconds=until)}
    if starts is not None:
        body["starts_at"] = at(clock, seconds=starts)

    answer = await api.post(f"{path}/overrides", body)
    assert expect_problem(answer, 422, "validation_failed")["errors"][0]["path"] == "until"


@pytest.mark.parametrize("limits", [{}, {"max_active": 5}, {"max_active": 1, "burst": 10}])
async def test_an_override_that_raises_nothing_is_a_wrong_value(
    api: Api, path: str, clock: datetime, limits: dict[str, int]
) -> None:
    """Lowering is what PATCH is for."""
    answer = await api.post(f"{path}/overrides", {"limits": limits, "until": at(clock, hours=1)})

    assert expect_problem(answer, 422, "validation_failed")["errors"][0]["path"] == "limits"


async def test_overrides_come_in_pages(api: Api, path: str, clock: datetime) -> None:
    """In the order they were made."""
    for number in (6, 7, 8):
        body = {"limits": {"max_active": number}, "until": at(clock, hours=1)}
        assert (await api.post(f"{path}/overrides", body)).status_code == 201

    first = (await api.get(f"{path}/overrides", params={"page_size": 2})).json()
    query = {"page_size": 2, "page_token": first["next_page_token"]}
    second = (await api.get(f"{path}/overrides", params=query)).json()

    assert [item["limits"]["max_active"] for item in first["items"] + second["items"]] == [6, 7, 8]
    assert second["next_page_token"] is None
