"""``jobengine allocation``, ``change`` and ``quota request`` against a running server, and what a governor may."""

from collections.abc import Iterator

import httpx2
import pytest
from tests.cli.processes import Service, Shell, Tenant

from jobengine.cli.exits import Exit

LIMITS = ("--max-active", "5", "--max-per-hour", "100", "--burst", "10", "--refill-per-second", "1.5")


@pytest.fixture(scope="module")
def governor(tenant: Tenant) -> Shell:
    """The shell of whoever governs the platform."""
    return tenant.speaking("Governor").having(QUOTA_REASON="platform review", QUOTA_TICKET="GOV-1")


@pytest.fixture
def _above_double(governor: Shell) -> Iterator[None]:
    """Whatever more than doubles a limit waits, as long as a test runs."""
    assert governor.run("policy", "set", "--approval-above", "2").code == 0
    yield
    assert governor.run("policy", "set", "--no-approval").code == 0


def test_a_pool_is_written_planned_and_applied(admin: Shell, governor: Shell, tenant: Tenant) -> None:
    """The plan's last line is the command that applies it."""
    assert admin.run("quota", "create", "pooled", *LIMITS).code == 0
    made = governor.run(
        "allocation", "set", "pooled", "--strategy", "max_limit", "--capacity", "50",
        "--tenant", f"{tenant.name}:weight=2,max_limit=20",
    )  # fmt: skip
    assert made.code == 0, made.err

    planned = governor.run("allocation", "plan", "pooled")
    assert "allocated 20, left 30" in planned.err
    *_, told = planned.err.strip().splitlines()
    applied = governor.run(*told.split()[1:])

    assert applied.out.strip() == "pooled is applied: 1 of 1 tenants"
    quota = admin.run("quota", "show", "pooled", "--output", "json").document
    assert (quota["limits"]["max_active"], quota["allocation"]["max_limit"]) == (20, 20)
    assert quota["last_change"]["reason"] == "platform review"
    assert tenant.name in governor.run("allocation", "show", "pooled").out
    assert "pooled" in governor.run("allocation", "list").out
    refused = admin.run("quota", "set", "pooled", "--max-active", "21")
    assert (refused.code, "allocation_exceeded" in refused.err) == (Exit.REFUSED, True)
    stale = governor.run(*told.split()[1:])
    assert (stale.code, "plan_changed" in stale.err) == (Exit.REFUSED, True)
    assert governor.run("allocation", "delete", "pooled").code == 0
    assert governor.run("allocation", "show", "pooled").code == Exit.NOT_FOUND


def test_a_tenant_of_a_pool_that_cannot_be_read_is_a_usage_error(governor: Shell) -> None:
    """Nothing is sent."""
    for text in ("acme:share=3", "acme:weight=much", "acme:weight"):
        asked = governor.run("allocation", "set", "x", "--strategy", "reserved", "--capacity", "5", "--tenant", text)
        assert asked.code == Exit.USAGE


@pytest.mark.usefixtures("_above_double")
def test_a_raise_that_waits_is_approved_by_another_owner(
    service: Service, admin: Shell, governor: Shell, tenant: Tenant
) -> None:
    """Set tells which change waits; its own author cannot approve it."""
    boss = service.new_clients([tenant.name], "Admin")["Admin"]
    second = admin.having(CLIENT_ID=boss["client_id"], CLIENT_SECRET=boss["client_secret"])
    viewer = tenant.speaking("Viewer")
    assert admin.run("quota", "create", "raised", *LIMITS).code == 0

    waits = admin.run("quota", "set", "raised", "--max-active", "11")
    assert "waits for a second person" in waits.out
    asked = viewer.run("quota", "request", "raised", "--max-active", "6", "--reason", "the backlog grows")
    assert asked.code == 0, asked.err
    listed = viewer.run("change", "list", "--status", "pending", "--output", "json").document["items"]
    [raise_, request] = [change for change in listed if change["job_type"] == "raised"]
    assert [raise_["origin"], request["origin"], request["reason"]] == ["operator", "request", "the backlog grows"]
    assert "max_active 5→11" in viewer.run("change", "list").out

    assert viewer.run("change", "approve", raise_["change_id"]).code == Exit.AUTH
    assert admin.run("change", "show", raise_["change_id"]).code == 0
    rejected = admin.run("change", "reject", request["change_id"], "--comment", "not now")
    assert rejected.out.startswith("rejected")
    own = admin.run("change", "approve", raise_["change_id"])
    same_owner = second.run("change", "approve", raise_["change_id"])
    assert "same_person" in own.err
    assert (own.code, same_owner.code) == (Exit.REFUSED, Exit.REFUSED)
    approved = governor.run("--govern", "change", "approve", raise_["change_id"])
    assert approved.out.strip() == f"approved {raise_['change_id']}: max_active 5→11"


@pytest.mark.usefixtures("_above_double")
def test_an_emergency_waits_for_nobody(admin: Shell) -> None:
    """It needs its ticket."""
    assert admin.run("quota", "create", "burning", *LIMITS).code == 0
    without = admin.having(QUOTA_TICKET="").run("quota", "set", "burning", "--max-active", "11", "--emergency")
    assert (without.code, "ticket" in without.err) == (Exit.USAGE, True)

    assert admin.run("quota", "set", "burning", "--max-active", "11", "--emergency").code == 0

    assert "emergency" in admin.run("change", "list", "--status", "emergency").out


def test_lowering_below_use_tells_who_holds_the_slots(admin: Shell, tenant: Tenant) -> None:
    """The limit is lowered all the same, and what is told goes to standard error."""
    assert admin.run("quota", "create", "busy", *LIMITS).code == 0
    token = tenant.speaking("Worker").run("token", "--scope", "orch:admit").out.strip()
    with httpx2.Client(trust_env=False, headers={"Authorization": f"Bearer {token}"}) as http:
        asked = {"job_type": "busy", "slots": 3, "job_id": "night-run"}
        lease = http.post(f"{admin.settings['JOBENGINE_URL']}/api/v1/admissions", json=asked).json()

    lowered = admin.run("quota", "set", "busy", "--max-active", "2", "--drain")

    assert lowered.code == 0, lowered.err
    assert "3 slots are in use, above 2" in lowered.err
    assert lease["lease_id"] in lowered.err
    assert "night-run" in lowered.err


def test_a_governor_changes_quotas_of_any_tenant(service: Service, governor: Shell) -> None:
    """With --govern; without it the governor has no such scope."""
    other = service.new_tenant("Admin").name
    there = governor.having(TENANT=other)

    assert there.run("quota", "create", "far", *LIMITS).code == Exit.USAGE
    made = there.run("quota", "create", "far", *LIMITS, "--govern", "--output", "json")

    assert made.code == 0, made.err
    assert made.document["tenant_id"] == other
    assert there.run("--govern", "quota", "set", "far", "--max-active", "6").code == 0
    history = there.run("--govern", "quota", "history", "far", "--output", "json").document["items"]
    assert [change["reason"] for change in history] == ["platform review", "platform review"]
