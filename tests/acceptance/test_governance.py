"""Contract section 9 on a real server: pools, kills in the middle of an apply, second persons; soak kills more."""

import asyncio
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from secrets import token_hex
from time import sleep
from typing import Any, Self

import httpx2
import pytest
from tests.acceptance.callers import REASON, ROOMY, SMALL, Caller, done
from tests.acceptance.conftest import Clients
from tests.acceptance.serving import EVERY_ROLE, Installation, Server, eventually, new_tenants, serving
from tests.acceptance.test_concurrency import at_once, statuses
from tests.factories import expect_problem

KILLS = int(os.environ.get("JOBENGINE_TEST_KILLS", "10"))
MOMENTS = [byte / 200 for byte in os.urandom(KILLS)]
TENANTS, CAPACITY = 40, 600
APPLY_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Pool:
    """One job type of several tenants, and who governs it."""

    governor: Caller
    tenants: tuple[str, ...]
    job_type: str = field(default_factory=lambda: f"pool-{token_hex(6)}")

    @property
    def path(self) -> str:
        """Where it is."""
        return f"/allocations/{self.job_type}"

    def put(self, *said: dict[str, int], **pool: Any) -> dict[str, Any]:
        """Write it down; *said* are further members of each tenant."""
        named = [{"tenant_id": one, **more} for one, more in zip(self.tenants, said, strict=True)]
        answer = self.governor.send("PUT", self.path, json={"tenants": named, **pool})
        assert answer.is_success, answer.text
        return answer.json()

    def plan(self) -> dict[str, Any]:
        """Plan."""
        return done(self.governor.post(f"{self.path}/plan"), 200)

    def start(self) -> None:
        """Plan and apply, and do not wait."""
        done(self.governor.post(f"{self.path}/apply", {"plan_token": self.plan()["plan_token"]}), 202)

    def ended(self) -> dict[str, Any]:
        """Return it when nothing of it is under way."""

        def look() -> dict[str, Any] | None:
            found: dict[str, Any] = self.governor.get(self.path)
            return found if found["status"] != "applying" else None

        return eventually(look, APPLY_SECONDS, "an apply that has ended")

    def limits(self) -> list[int]:
        """Return the slots of each tenant, all read at one moment."""
        found = {tenant["tenant_id"]: tenant["from"] for tenant in self.plan()["tenants"]}
        return [found[tenant] for tenant in self.tenants]

    def at(self, url: str) -> "Pool":
        """Return the same pool at another server of the installation."""
        return replace(self, governor=self.governor.at(url))


@pytest.fixture
def shared(caller: Caller, clients: Clients, governor: Caller) -> Iterator[Pool]:
    """A pool of the caller's tenant and two more."""
    pool = Pool(governor, (caller.tenant, next(clients.fresh), next(clients.fresh)))
    yield pool
    assert governor.send("DELETE", pool.path).status_code in {204, 404}


@pytest.mark.parametrize(
    ("strategy", "said", "expected"),
    [
        ("unlimited", ({}, {}, {"max_limit": 40}), [1_000, 1_000, 40]),
        ("proportional", ({"weight": 2}, {"weight": 1}, {"weight": 4}), [29, 14, 57]),
        ("priority", ({"priority": 1}, {"priority": 9, "demand": 70}, {"priority": 5, "max_limit": 20}), [10, 70, 20]),
        ("reserved", ({"reserved": 30}, {"reserved": 10}, {"weight": 2}), [45, 25, 30]),
        ("max_limit", ({"max_limit": 5}, {"weight": 3}, {}), [5, 71, 24]),
    ],
)
def test_three_tenants_share_a_pool_by_each_strategy(
    caller: Caller, shared: Pool, strategy: str, said: tuple[dict[str, int], ...], expected: list[int]
) -> None:
    """From the plan to what a scheduler of each tenant is admitted to, under the new limits at once."""
    pool, tenants = shared, shared.tenants
    callers = [replace(caller, tenant=tenant, _tokens={}) for tenant in tenants]
    quotas = [one.quota(pool.job_type, **{**ROOMY, "max_active": 12}) for one in callers]
    pool.put(*said, strategy=strategy, capacity=100)
    plan = pool.plan()
    assert [tenant["to"] for tenant in sorted(plan["tenants"], key=lambda t: tenants.index(t["tenant_id"]))] == expected

    pool.start()
    ended = pool.ended()

    assert (ended["status"], pool.limits()) == ("applied", expected)
    for one, quota, share in zip(callers, quotas, expected, strict=True):
        held = done(one.post("/admissions", {"job_type": pool.job_type, "slots": share}), 201)
        expect_problem(one.post("/admissions", {"job_type": pool.job_type}), 429, "admission_denied")
        assert held["quota_id"] == quota["quota_id"]
        shown = one.get(f"/quotas/{quota['quota_id']}")
        assert (shown["allocation"]["strategy"], shown["last_change"]["reason"]) == (strategy, "platform review")
        refused = one.patch(f"/quotas/{quota['quota_id']}", {"limits": {"max_active": share + 1}})
        assert refused.status_code == 422, refused.text
        assert one.get("/audit/verify")["ok"] is True


class Watcher:
    """Somebody who reads the limits of a pool again and again, whichever server answers; all tenants at one moment."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.url = ""
        self.sums: list[int] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        with httpx2.Client(trust_env=False, timeout=10) as http:
            watching = replace(self._pool.governor, http=http, _tokens={})
            while not self._stop.wait(0.05):
                if self.url:
                    with suppress(httpx2.HTTPError, AssertionError):
                        self.sums.append(sum(replace(self._pool, governor=watching.at(self.url)).limits()))


def weights(turn: int) -> list[dict[str, int]]:
    """Return a weight for each tenant, in the other order every other turn."""
    found = [{"weight": number + 1} for number in range(TENANTS)]
    return found if turn % 2 else found[::-1]


def test_an_apply_whose_server_is_shot_at_random_moments_is_carried_on_and_never_exceeds_the_capacity(
    http: httpx2.Client, tmp_path: Path
) -> None:
    """Forty tenants change places; whatever was done before the shot is not done again after it."""
    installation = Installation.make(tmp_path / "shot")
    credentials = installation.create_client("ours", new_tenants(TENANTS), EVERY_ROLE)
    chief = installation.create_client("governor", new_tenants(1), ["Orch.Governor"])
    governor = Caller(http, "", chief, chief.tenants[0], ("orch:govern",))
    pool = Pool(governor, credentials.tenants)
    try:
        with Watcher(pool) as watcher:
            for turn in range(KILLS + 1):
                with serving(installation) as server:
                    watcher.url, pool = server.url, pool.at(server.url)
                    if turn == 0:
                        pool.put(*weights(0), strategy="proportional", capacity=CAPACITY)
                        pool.start()
                    assert (pool.ended()["status"], pool.limits()) == ("applied", shares(pool))
                    if turn < KILLS:
                        pool.put(*weights(turn + 1), strategy="proportional", capacity=CAPACITY)
                        pool.start()
                        sleep(MOMENTS[turn])
                        server.kill()
                    else:
                        told = [changes(http, server, credentials, one, pool.job_type) for one in pool.tenants[::7]]
    finally:
        installation.clean_up()

    assert len(watcher.sums) > KILLS
    assert max(watcher.sums) <= CAPACITY
    for versions in told:
        assert versions == list(range(1, len(versions) + 1))
        assert len(versions) <= 2 + KILLS


def shares(pool: Pool) -> list[int]:
    """Return what the pool as it is written gives each tenant."""
    found = {tenant["tenant_id"]: tenant["to"] for tenant in pool.plan()["tenants"]}
    return [found[tenant] for tenant in pool.tenants]


def changes(http: httpx2.Client, server: Server, credentials: Any, tenant: str, job_type: str) -> list[int]:
    """Return the versions in the history of a tenant's quota."""
    caller = Caller(http, server.url, credentials, tenant, ("orch:read",))
    [quota] = caller.items("/quotas", job_type=job_type)
    return [change["version"] for change in caller.items(f"/quotas/{quota['quota_id']}/history")]


@pytest.fixture
def _above_double(governor: Caller) -> Iterator[None]:
    """Whatever more than doubles a limit waits, as long as a test runs."""
    done(governor.send("PUT", "/policy", json={"approval_above": 2}), 200)
    yield
    done(governor.send("PUT", "/policy", json={"approval_above": None, "approval_expires": "PT24H"}), 200)


def raised(caller: Caller) -> tuple[str, str]:
    """Ask for a raise that waits, and return where the quota and the change are."""
    path = f"/quotas/{caller.quota()['quota_id']}"
    change = done(caller.patch(path, {"limits": {"max_active": 9}}), 202)
    return path, f"/quota-changes/{change['change_id']}"


@pytest.mark.usefixtures("_above_double")
async def test_of_two_approvers_racing_one_wins(caller: Caller, served: Server) -> None:
    """The raise is made once, under both names."""
    bosses = [served.installation.create_client(f"boss-{n}", [caller.tenant], ["Orch.Admin"]) for n in range(2)]
    path, where = raised(caller)
    racing = [replace(caller, credentials=boss, scopes=("orch:quota",), _tokens={}) for boss in bosses]
    for boss in racing:
        boss.token()

    both = await asyncio.gather(*[at_once(boss, f"{where}/approve", [{}] * 8) for boss in racing])

    assert statuses([answer for answers in both for answer in answers]) == {200: 1, 409: 15}
    quota = caller.get(path)
    assert (quota["limits"]["max_active"], quota["version"]) == (9, 2)
    [entry] = caller.logged(1, action="quota.adjusted")
    assert entry["properties"]["approved_by"] in {"boss-0", "boss-1"}
    assert entry["properties"]["requested_by"] == caller.get(where)["requested_by"]


@pytest.mark.usefixtures("_above_double")
def test_nobody_approves_their_own_raise_with_a_second_client_either(caller: Caller, served: Server) -> None:
    """Owners are compared, not clients."""
    path, where = raised(caller)
    owner = caller.get(where)["requested_by"]
    again = served.installation.create_client("again", [caller.tenant], ["Orch.Admin"], owner)
    second = replace(caller, credentials=again, scopes=("orch:quota",), _tokens={})

    for somebody in (caller, second):
        expect_problem(somebody.post(f"{where}/approve"), 403, "same_person")

    assert caller.get(path)["limits"]["max_active"] == SMALL["max_active"]
    assert caller.get(where)["status"] == "pending"


@pytest.mark.usefixtures("_above_double")
def test_a_raise_that_nobody_approves_in_time_expires(caller: Caller, governor: Caller) -> None:
    """It says so itself, in the log too, and cannot be approved any more."""
    done(governor.send("PUT", "/policy", json={"approval_expires": "PT1S"}), 200)
    path, where = raised(caller)

    eventually(lambda: caller.get(where)["status"] == "expired", 30, "an expired change")

    there = {"X-StellaOps-Tenant": caller.tenant}
    expect_problem(governor.post(f"{where}/approve", headers=there), 409, "change_expired")
    assert caller.get(path)["version"] == 1
    eventually(lambda: caller.items("/audit/entries", action="quota.change_expired"), 30, "an entry that says so")


@pytest.mark.usefixtures("_above_double")
def test_an_emergency_raise_is_made_at_once_and_listed(caller: Caller) -> None:
    """With a ticket, under its own name in the log."""
    path = f"/quotas/{caller.quota()['quota_id']}"

    quota = done(caller.patch(path, {"limits": {"max_active": 9}, "emergency": True}), 200)

    assert quota["limits"]["max_active"] == 9
    [entry] = caller.logged(1, action="quota.emergency")
    [listed] = caller.items("/quota-changes", status="emergency")
    assert (listed["audit_entry_id"], listed["ticket"]) == (entry["entry_id"], entry["ticket"])


def typed(served: Server, caller: Caller, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command as the caller."""
    ours = {"URL": served.url, "CLIENT_ID": caller.credentials.client_id, "TENANT": caller.tenant}
    secret = {"CLIENT_SECRET": caller.credentials.secret, "QUOTA_REASON": REASON}
    return served.installation.run(*words, **{f"JOBENGINE_{name}": value for name, value in (ours | secret).items()})


def test_simulating_the_limits_of_the_time_gives_history_again(caller: Caller, served: Server) -> None:
    """The API and the installed command tell the same under the same hash: what became of each ask, and no more."""
    path = f"/quotas/{caller.quota(**{**ROOMY, 'max_active': 6})['quota_id']}"
    granted = denied = 0
    for slots in (1, 2, 3, 4, 1, 2, 5, 1, 1, 3):
        asked = caller.post("/admissions", {"job_type": "scan", "slots": slots})
        granted, denied = granted + asked.is_success, denied + (not asked.is_success)
        if asked.is_success and slots != 2:
            lease = asked.json()
            back = caller.post(f"/admissions/{lease['lease_id']}/release", {"fencing_token": lease["fencing_token"]})
            assert back.status_code == 204

    same = done(caller.post(f"{path}/simulate", {"limits": {"max_active": 6}}), 200)
    typed_in = typed(served, caller, "quota", "simulate", "scan", "--max-active", "6", "--output", "json")
    tighter = done(caller.post(f"{path}/simulate", {"limits": {"max_active": 2}}), 200)

    assert (granted > 0, denied > 0) == (True, True)
    assert (same["asks"], same["granted"], same["denied"]) == (10, granted, denied)
    assert (same["would_grant"], same["would_deny"]) == (granted, denied)
    assert json.loads(typed_in.stdout) == same, typed_in.stderr
    assert tighter["would_deny"] > denied
    assert (tighter["peak_active"], tighter["result_hash"] != same["result_hash"]) == (2, True)


def test_a_file_of_quotas_is_applied_once_and_plans_nothing_the_second_time(
    caller: Caller, served: Server, tmp_path: Path
) -> None:
    """The installed command: a plan ends with 2, an apply with 0, and then plan and apply find nothing to do."""
    caller.quota(**SMALL)
    file = tmp_path / "quotas.toml"
    exported = typed(served, caller, "quota", "export").stdout
    file.write_text(exported.replace("max_active = 4", "max_active = 7"), "utf-8")

    ended = [
        typed(served, caller, "quota", *words, "-f", str(file)) for words in (["plan"], ["apply"], ["plan"], ["apply"])
    ]

    assert [one.returncode for one in ended] == [2, 0, 0, 0], ended
    assert "max_active 4 → 7" in ended[0].stdout
    assert ended[1].stdout == "adjusted: scan\n"
    assert ended[3].stdout == f"tenant {caller.tenant}: nothing to change\n"
    assert typed(served, caller, "quota", "export").stdout == file.read_text("utf-8")


@pytest.mark.usefixtures("_above_double")
def test_an_applied_raise_that_waits_says_so_and_is_pending_in_the_next_plan(
    caller: Caller, served: Server, tmp_path: Path
) -> None:
    """Exit code 0, for it was asked for; the plan names the change that waits, and a second apply asks for no other."""
    caller.quota(**SMALL)
    file = tmp_path / "quotas.toml"
    file.write_text(
        typed(served, caller, "quota", "export").stdout.replace("max_active = 4", "max_active = 9"), "utf-8"
    )

    first, plan, second = (typed(served, caller, "quota", word, "-f", str(file)) for word in ("apply", "plan", "apply"))

    [change] = caller.items("/quota-changes", status="pending")
    waits = f"waits for a second person: scan (change {change['change_id']})\n"
    assert (first.returncode, first.stdout, second.stdout) == (0, waits, waits)
    assert plan.returncode == 2
    assert f"    waits for a second person: change {change['change_id']}\n" in plan.stdout
