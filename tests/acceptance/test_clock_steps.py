"""A server whose clock is wrong by an hour decides like one whose clock is right: time is the database's."""

import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.acceptance.callers import ROOMY, Caller, done
from tests.acceptance.serving import EVERY_ROLE, Installation, new_tenants, serving
from tests.factories import expect_problem

STEPPED = Path(__file__).parent / "stepped_clock"
HALF_AN_HOUR = timedelta(minutes=30)


@pytest.fixture(scope="module", params=["3600", "-3600"], ids=["an hour fast", "an hour slow"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, http: httpx2.Client
) -> Iterator[tuple[Caller, Caller]]:
    """Somebody at a server whose clock is right, and at another of the same installation whose clock is wrong."""
    installation = Installation.make(tmp_path_factory.mktemp("clocks"))
    path = os.pathsep.join([str(STEPPED), installation.environ()["PYTHONPATH"]])
    try:
        with (
            serving(installation) as right,
            serving(installation, PYTHONPATH=path, TEST_CLOCK_STEP=request.param) as wrong,
        ):
            credentials = installation.create_client("ours", new_tenants(1), EVERY_ROLE)
            # Each with a token of the server it calls: the lives of tokens are told by the authority's own clock.
            yield tuple(Caller(http, server.url, credentials, credentials.tenants[0]) for server in (right, wrong))
    finally:
        installation.clean_up()


def moment(lease: dict[str, Any]) -> datetime:
    """Return when a lease ends."""
    return datetime.fromisoformat(lease["expires_at"])


def test_a_wrong_clock_is_seen_where_it_is_shown(pair: tuple[Caller, Caller]) -> None:
    """The clock is wrong in that process indeed: its answers are dated by it."""
    dates = [datetime.strptime(who.send("GET", "/quotas").headers["date"], "%a, %d %b %Y %H:%M:%S %Z") for who in pair]  # noqa: DTZ007 - both in GMT

    assert abs(dates[0] - dates[1]) > HALF_AN_HOUR


def test_a_lease_ends_when_the_database_says(pair: tuple[Caller, Caller]) -> None:
    """Granted, renewed, listed and released at either server, whatever it takes for now."""
    right, wrong = pair
    right.quota("leases")
    leases = [done(who.post("/admissions", {"job_type": "leases", "lease_seconds": 60}), 201) for who in pair]

    assert abs(moment(leases[0]) - moment(leases[1])) < HALF_AN_HOUR
    for who, lease in zip((wrong, right), leases, strict=True):
        path, token = f"/admissions/{lease['lease_id']}", {"fencing_token": lease["fencing_token"]}
        assert len(who.items("/admissions", job_type="leases")) == 2
        assert abs(moment(done(who.post(f"{path}/renew", token), 200)) - moment(lease)) < HALF_AN_HOUR
    for who, lease in zip((wrong, right), leases, strict=True):
        done(who.post(f"/admissions/{lease['lease_id']}/release", {"fencing_token": lease["fencing_token"]}), 204)


@pytest.mark.parametrize(
    ("name", "limits", "limit"),
    [
        ("slots", {"max_active": 1}, "max_active"),
        ("hourly", {"max_per_hour": 1}, "max_per_hour"),
        ("bucket", {"burst": 1, "refill_per_second": 0.001}, "rate"),
    ],
)
def test_no_limit_gives_way_to_a_wrong_clock(
    pair: tuple[Caller, Caller], name: str, limits: dict[str, float], limit: str
) -> None:
    """An hour would end leases, roll the hour on and refill buckets; the wait is the same at both."""
    right, wrong = pair
    quota = done(right.post("/quotas", {"job_type": name, "limits": {**ROOMY, **limits}}), 201)
    done(right.post("/admissions", {"job_type": name, "lease_seconds": 600}), 201)

    found = [expect_problem(who.post("/admissions", {"job_type": name}), 429, "admission_denied") for who in pair]

    for problem in found:
        assert [blocking["limit"] for blocking in problem["blocking"]] == [limit]
    waits = [problem["blocking"][0]["retry_after_seconds"] for problem in found]
    assert abs(waits[0] - waits[1]) < HALF_AN_HOUR.total_seconds()
    assert wrong.get("/quotas/drift")["drift"] == 0
    usage = [who.get(f"/quotas/{quota['quota_id']}")["usage"]["granted_last_hour"] for who in pair]
    assert usage == [1, 1]


def test_an_override_holds_by_the_databases_clock(pair: tuple[Caller, Caller]) -> None:
    """Asked of the wrong server for a few minutes of the right time, it holds at once, and at both."""
    right, wrong = pair
    quota = right.quota("raised", max_active=1)
    lease = done(right.post("/admissions", {"job_type": "raised", "lease_seconds": 900}), 201)
    assert right.post("/admissions", {"job_type": "raised"}).status_code == 429

    done(
        wrong.post(
            f"/quotas/{quota['quota_id']}/overrides", {"limits": {"max_active": 3}, "until": lease["expires_at"]}
        ),
        201,
    )

    assert [who.post("/admissions", {"job_type": "raised"}).status_code for who in pair] == [201, 201]
