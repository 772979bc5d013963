"""Two serving processes on one data folder, and one of several workers: they decide as one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx2
import pytest
from tests.acceptance.callers import ROOMY, Caller, backfill_ask, done
from tests.acceptance.serving import EVERY_ROLE, Credentials, Installation, Server, eventually, new_tenants, serving
from tests.acceptance.test_concurrency import at_once, statuses
from tests.factories import expect_problem


@dataclass(frozen=True, slots=True)
class Pair:
    """Two servers of one installation; the second has two workers."""

    first: Server
    second: Server
    credentials: Credentials
    tenants: Iterator[str]

    @property
    def urls(self) -> tuple[str, str]:
        """Where they are reached."""
        return self.first.url, self.second.url


@contextmanager
def two_servers(folder: Path) -> Iterator[Pair]:
    """Start both; the database is the first one's, and the second joins it."""
    installation = Installation.make(folder)
    try:
        with serving(installation) as first, serving(installation, "--workers", "2") as second:
            credentials = installation.create_client("ours", new_tenants(12), EVERY_ROLE)
            yield Pair(first, second, credentials, iter(credentials.tenants))
            if second.process.poll() is None:
                assert second.stop() == 0
    finally:
        installation.clean_up()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The two servers of all tests that leave them running."""
    with two_servers(tmp_path_factory.mktemp("pair")) as started:
        yield started


@pytest.fixture
def caller(http: httpx2.Client, pair: Pair) -> Caller:
    """Somebody with every role in a new tenant, who calls the first server."""
    return Caller(http, pair.first.url, pair.credentials, next(pair.tenants))


async def test_one_of_forty_identical_backfills_through_both_servers_wins(caller: Caller, pair: Pair) -> None:
    """The other 39 are duplicates, at whichever server they arrived."""
    answers = await at_once(caller, "/backfills", [backfill_ask()] * 40, pair.urls)

    assert statuses(answers) == {202: 1, 409: 39}
    for answer in answers:
        if answer.status_code == 409:
            expect_problem(answer, 409, "duplicate_backfill")


async def test_five_of_sixty_acquires_through_both_servers_are_granted(caller: Caller, pair: Pair) -> None:
    """Five slots are five slots, and both servers see the same use."""
    quota = done(caller.post("/quotas", {"job_type": "scan", "limits": ROOMY | {"max_active": 5}}), 201)

    answers = await at_once(caller, "/admissions", [{"job_type": "scan"}] * 60, pair.urls)

    assert statuses(answers) == {201: 5, 429: 55}
    for url in pair.urls:
        assert caller.at(url).get(f"/quotas/{quota['quota_id']}")["usage"]["active"] == 5
        assert caller.at(url).get("/quotas/drift")["drift"] == 0


async def test_one_idempotency_key_through_both_servers_acts_once(caller: Caller, pair: Pair) -> None:
    """Whoever comes second waits for the first, at whichever server it is."""
    body = {"job_type": "scan", "limits": ROOMY}

    answers = await at_once(caller, "/quotas", [body] * 20, pair.urls, **{"Idempotency-Key": "once"})

    assert statuses(answers) == {201: 20}
    assert len({answer.content for answer in answers}) == 1


async def test_batches_claimed_through_both_servers_go_to_one_worker_each(caller: Caller, pair: Pair) -> None:
    """No batch is handed out twice."""
    done(caller.post("/quotas", {"job_type": "external", "limits": ROOMY}), 201)
    done(caller.backfill(partition="PT1H"), 202)

    answers = await at_once(caller, "/batches/claim", [{"job_types": ["external"]}] * 30, pair.urls)

    claimed = [batch["batch_id"] for answer in answers for batch in done(answer)["batches"]]
    assert len(claimed) == len(set(claimed)) == 24


async def test_events_claimed_through_both_servers_are_fresh_once(caller: Caller, pair: Pair) -> None:
    """Two batches of overlapping sources name the same thousand keys; each key goes to one of them."""
    done(caller.post("/quotas", {"job_type": "external", "limits": ROOMY}), 201)
    done(caller.backfill(partition="PT12H"), 202)
    batches = done(caller.post("/batches/claim", {"job_types": ["external"], "max": 2}))["batches"]
    keys = [f"event-{number}" for number in range(1_000)]
    paths = [f"/batches/{batch['batch_id']}/events/claim" for batch in batches]
    bodies = [{"fencing_token": batch["fencing_token"], "keys": keys} for batch in batches]

    first = await at_once(caller, paths[0], [bodies[0]] * 4, pair.urls)
    second = await at_once(caller, paths[1], [bodies[1]] * 4, pair.urls[::-1])

    assert [done(answer)["fresh"] for answer in first] == [keys] * 4
    assert [done(answer)["busy"] for answer in second] == [keys] * 4


def test_change_at_one_server_holds_at_the_other_at_once(caller: Caller, pair: Pair) -> None:
    """A raise, a pause and a deletion are true everywhere with their answer."""
    there = caller.at(pair.second.url)
    path = f"/quotas/{caller.quota(max_active=1)['quota_id']}"
    done(caller.post("/admissions", {"job_type": "scan"}), 201)
    assert there.post("/admissions", {"job_type": "scan"}).status_code == 429

    done(caller.patch(path, {"limits": {"max_active": 2}}), 200)
    done(there.post("/admissions", {"job_type": "scan"}), 201)
    done(there.post(f"{path}/pause"), 200)

    problem = expect_problem(caller.post("/admissions", {"job_type": "scan"}), 429, "admission_denied")
    assert "paused" in {blocking["limit"] for blocking in problem["blocking"]}
    done(caller.send("DELETE", path), 204)
    assert there.send("GET", path).status_code == 404


def test_token_revoked_at_one_server_is_refused_by_the_other_within_a_second(caller: Caller, pair: Pair) -> None:
    """Every process refuses it by then, each worker too."""
    token = caller.token()
    there = caller.at(pair.second.url).bearing(token)
    assert there.send("GET", "/quotas").is_success

    auth = (pair.credentials.client_id, pair.credentials.secret)
    revoked = caller.http.post(f"{caller.url}/oauth2/revoke", data={"token": token}, auth=auth)

    assert revoked.status_code == 200
    assert caller.send("GET", "/quotas").status_code == 401

    def refused_everywhere() -> bool:
        # Fresh connections, so that both workers are met.
        with httpx2.Client(trust_env=False, headers={"Connection": "close", **there.authorization()}) as fresh:
            return all(fresh.get(f"{there.url}/api/v1/quotas").status_code == 401 for _ in range(6))

    eventually(refused_everywhere, 1.5, "a revoked token that is refused everywhere")


def test_client_disabled_on_the_command_line_is_refused_by_both_servers_within_a_second(
    http: httpx2.Client, pair: Pair
) -> None:
    """Its secret and its tokens stop working everywhere."""
    installation = pair.first.installation
    credentials = installation.create_client("leaving", new_tenants(1), EVERY_ROLE)
    leaving = Caller(http, pair.first.url, credentials, credentials.tenants[0])
    leaving.token()

    assert installation.run("client", "disable", credentials.client_id).returncode == 0

    for url in pair.urls:
        at = leaving.at(url)
        eventually(partial(lambda at: at.send("GET", "/quotas").status_code == 401, at), 1.5, "a refused token")
        assert at.ask_token("orch:read").json()["error"] == "invalid_client"


def test_audit_log_written_through_both_servers_is_one_tree(caller: Caller, pair: Pair) -> None:
    """Entries of both stand in one sequence without a gap, and either server finds it intact."""
    there = caller.at(pair.second.url)
    made = [(caller, there)[number % 2].quota(f"type-{number}") for number in range(10)]

    caller.logged(len(made), action="quota.created")

    sequences = [entry["sequence"] for entry in there.items("/audit/entries")]
    assert sequences == list(range(len(sequences)))
    found = [who.get("/audit/verify") for who in (caller, there)]
    assert found[0] == found[1]
    assert found[0]["ok"] is True


def test_killed_servers_take_nobody_with_them_and_leave_nothing_behind(http: httpx2.Client, tmp_path: Path) -> None:
    """The database outlives whoever started it; when the last supervisor is shot, its workers end, and it with them."""
    with two_servers(tmp_path) as pair:
        there = Caller(http, pair.second.url, pair.credentials, next(pair.tenants))
        quota = there.at(pair.first.url).quota()

        pair.first.kill()

        assert there.get(f"/quotas/{quota['quota_id']}")["limits"] == quota["limits"]
        changed = done(there.patch(f"/quotas/{quota['quota_id']}", {"limits": {"max_active": 8}}), 200)
        # The shards of the log that the dead server owned are taken over.
        there.entry(changed["last_change"]["audit_entry_id"])

        pair.second.kill()

        eventually(lambda: not pair.second.is_ready(), 20, "a port that nobody answers on")
        eventually(lambda: not pair.second.installation.postgres_pids(), 20, "an end of the database")
