"""Sentences of sections 2 to 7 that no other test proves: what lies in the database, what fails together, and when."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

import httpx2
import pytest
from tests.backfilling import Crew, make_crew
from tests.conftest import PassTime
from tests.factories import BASE_URL, LIMITS, Api, Connection, audit_trail, expect_problem, make_api, new_tenant
from tests.web.authority_desk import Desk, open_desk

from jobengine.authority.scopes import Scope
from jobengine.bootstrap import Plane, background, open_plane
from jobengine.cli.main import COMMANDS
from jobengine.cli.main import app as command_line
from jobengine.settings import Settings
from jobengine.web.app import make_app

SOON_SECONDS = 1.0
CHANGE = {"limits": {"burst": 9}}


@pytest.fixture
async def desk(app: Any, plane: Plane, tenant: str) -> Desk:
    """A client with every role in the new tenant."""
    return await open_desk(app, plane, [tenant])


async def test_no_secret_lies_in_the_database(desk: Desk, owner: Connection) -> None:
    """Neither a client's secret nor the private half of a key, in any row of any table."""
    await desk.granted()
    private = [key.private for key in desk.plane.keys]
    secrets = [desk.secret, *(str(key.as_dict(private=True)["d"]) for key in private)]
    tables = await (
        await owner.execute("select table_name from information_schema.tables where table_schema = 'jobengine'")
    ).fetchall()

    assert len(tables) > 20
    for table in tables:
        cursor = await owner.execute(f"select row::text from jobengine.{table['table_name']} row".encode())
        text = "\n".join([str(found["row"]) for found in await cursor.fetchall()])
        assert [secret for secret in secrets if secret in text or secret.encode().hex() in text] == []


async def test_readiness_is_503_until_the_sequencer_is_there(
    migrated_database: Callable[[], Awaitable[str]], tmp_path: Path
) -> None:
    """The process is up, its database answers, and yet nothing would get its place in the log."""
    wanted = Settings(data_dir=tmp_path, database_url=await migrated_database(), issuer=BASE_URL)
    async with open_plane(wanted, serving=True) as plane:
        app = make_app(lambda: pytest.fail("the plane is open"))
        app.state.plane = plane
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url=BASE_URL) as http:
            assert (await http.get("/healthz")).status_code == 200
            waiting = await http.get("/readyz")
            expect_problem(waiting, 503, "temporarily_unavailable")
            assert int(waiting.headers["retry-after"]) >= 1

            async with background(plane):
                for _ in range(100):
                    if (ready := await http.get("/readyz")).status_code == 200:
                        break
                    await asyncio.sleep(0.05)
                assert ready.status_code == 200


@pytest.fixture
async def mute(client: Any, plane: Plane, owner: Connection) -> Api:
    """Somebody of a tenant with a quota and an override, whose log takes no entry any more."""
    tenant = await new_tenant(plane)
    api = make_api(client, plane, tenant)
    await api.quota()
    await owner.execute("delete from audit_intake where tenant_id = %s", [tenant])
    await owner.execute("delete from audit_logs where tenant_id = %s", [tenant])
    return api


CHANGES: dict[str, Callable[[Api, str], Awaitable[Any]]] = {
    "created": lambda api, _: api.post("/quotas", {"job_type": "load", "limits": LIMITS}),
    "adjusted": lambda api, path: api.patch(path, CHANGE),
    "emergency": lambda api, path: api.patch(path, {**CHANGE, "emergency": True}),
    "paused": lambda api, path: api.post(f"{path}/pause", {"pause_reason": "x"}),
    "deleted": lambda api, path: api.delete(path),
    "refused": lambda api, path: api.patch(path, {"limits": {"max_active": 51}}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_change_that_cannot_be_audited_does_not_happen(
    mute: Api, owner: Connection, change: Callable[[Api, str], Awaitable[Any]]
) -> None:
    """Change, history and entry commit together or not at all; a refusal is not answered as one either."""
    [quota] = (await mute.get("/quotas")).json()["items"]
    path, before = f"/quotas/{quota['quota_id']}", await audit_trail(owner, mute.tenant_id)

    answer = await change(mute, path)

    expect_problem(answer, 503, "temporarily_unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    [after] = (await mute.get("/quotas")).json()["items"]
    assert {**after, "usage": None} == {**quota, "usage": None}
    assert len((await mute.get(f"{path}/history")).json()["items"]) == 1
    assert await audit_trail(owner, mute.tenant_id) == before


async def test_a_summary_and_a_list_agree_on_use(api: Api) -> None:
    """Use by job type in the summary is that of the leases and that of the quotas."""
    await api.quota("scan")
    await api.quota("load")
    for job_type, slots in (("scan", 3), ("scan", 1), ("load", 2)):
        assert (await api.admit(job_type, slots=slots)).status_code == 201

    quotas = {item["job_type"]: item["usage"]["active"] for item in (await api.get("/quotas")).json()["items"]}
    summary = {item["job_type"]: item["active"] for item in (await api.get("/quotas/summary")).json()["items"]}
    leases = (await api.get("/admissions", params={"job_type": "scan"})).json()["items"]

    assert quotas == summary == {"scan": 4, "load": 2}
    assert sum(lease["slots"] for lease in leases) == 4


async def test_the_tenant_header_goes_before_the_scope(api: Api, governor: Api) -> None:
    """A mismatch is told before a missing scope, and an unknown tenant before both."""
    reader = api.speaking(Scope.READ.value)

    mismatch = await reader.post("/quotas", {}, headers={"X-StellaOps-Tenant": "elsewhere"})
    unknown = await governor.post("/admissions", {}, headers={"X-StellaOps-Tenant": "elsewhere"})

    expect_problem(mismatch, 403, "tenant_mismatch")
    expect_problem(unknown, 404, "not_found")


@pytest.fixture
async def crew(api: Api) -> Crew:
    """Workers of a tenant with room for batches."""
    return await make_crew(api)


async def claimed_in_time(crew: Crew) -> dict[str, Any]:
    """Claim as a worker does, every few moments; the first batch must come within a second."""
    began = monotonic()
    for _ in count():
        if found := await crew.claim():
            assert monotonic() - began < SOON_SECONDS
            return found[0]
        assert monotonic() - began < SOON_SECONDS, "no batch within a second"
        await asyncio.sleep(0.02)
    raise AssertionError


async def test_new_resumed_and_retried_batches_are_claimable_within_a_second(crew: Crew) -> None:
    """From the answer on that made them so."""
    backfill = await crew.start(1)
    await claimed_in_time(crew)

    other = await crew.start(1, source="other")
    await crew.moved(other, "pause")
    assert await crew.claim() == []
    await crew.moved(other, "resume")
    batch = await claimed_in_time(crew)
    assert batch["backfill_id"] == other["backfill_id"]

    await crew.fail(batch)
    await crew.moved(other, "retry-failed")
    again = await claimed_in_time(crew)
    assert (again["backfill_id"], again["batch_id"]) == (other["backfill_id"], batch["batch_id"])
    assert backfill["backfill_id"] != other["backfill_id"]


async def test_times_of_input_may_have_one_to_six_digits(api: Api) -> None:
    """They come back with six, or with none when they are zero."""
    for sent, shown in (
        ("00:00:00.5Z", "00:00:00.500000Z"),
        ("00:00:00.000001Z", "00:00:00.000001Z"),
        ("00:00:00.000Z", "00:00:00Z"),
    ):
        ask = {
            "job_type": "external",
            "source": "s3",
            "window": {"start": f"2026-01-01T{sent}", "end": "2026-02-01T00:00:00Z"},
        }
        answer = await api.post("/backfills/preview", ask)
        assert (answer.status_code, answer.json()["window"]["start"]) == (200, f"2026-01-01T{shown}")


async def test_history_and_present_agree_at_every_change(api: Api, later: PassTime) -> None:
    """Asked as of the moment of each change, the limits are those that the change made."""
    quota = await api.quota()
    path = f"/quotas/{quota['quota_id']}"
    for burst in (20, 30, 5):
        await later(api.tenant_id, 60)
        assert (await api.patch(path, {"limits": {"burst": burst}})).status_code == 200

    changes = (await api.get(f"{path}/history")).json()["items"]
    seen = [(await api.get(f"{path}/history", params={"at": each["at"]})).json()["as_of"] for each in changes]

    assert [each["limits"]["burst"] for each in seen] == [10, 20, 30, 5]
    assert [each["version"] for each in seen] == [1, 2, 3, 4]
    assert [each["to"] for each in changes[:-1]] == [each["from"] for each in changes[1:]]


@pytest.mark.parametrize(
    "words",
    [
        "serve", "demo", "token", "migrate", "client create", "client list", "client disable", "key rotate",
        "audit key", "quota list", "quota show", "quota create", "quota set", "quota pause", "quota resume",
        "quota history", "backfill preview", "backfill start", "backfill list", "backfill show", "backfill pause",
        "backfill resume", "backfill cancel", "backfill watch", "audit list", "audit verify", "audit export",
    ],
)  # fmt: skip
def test_a_command_of_the_contract_is_there(words: str) -> None:
    """By the name that scripts call it by."""
    first, *rest = words.split()
    assert first in COMMANDS

    found = command_line[first]
    for word in rest:
        found = found[word]
    assert found.help
