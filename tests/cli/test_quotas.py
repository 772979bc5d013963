"""``jobengine quota`` and ``jobengine policy`` against a running server."""

import pytest
from tests.cli.processes import Service, Shell, Tenant

from jobengine.cli.exits import Exit
from jobengine.ids import is_id

LIMITS = ("--max-active", "5", "--max-per-hour", "100", "--burst", "10", "--refill-per-second", "1.5")


@pytest.fixture(scope="module")
def quota_id(admin: Shell) -> str:
    """A quota for the job type `totals`."""
    made = admin.run("quota", "create", "totals", *LIMITS, "--output", "json")
    assert made.code == 0, made.err
    return made.document["quota_id"]


def test_a_quota_is_created_and_listed(admin: Shell, quota_id: str) -> None:
    """The list holds the resource as the API gives it."""
    page = admin.run("quota", "list", "--output", "json").document

    (found,) = [quota for quota in page["items"] if quota["quota_id"] == quota_id]
    assert found["limits"] == {"max_active": 5, "max_per_hour": 100, "burst": 10, "refill_per_second": 1.5}
    assert found["last_change"]["reason"] == "spring sale"
    assert page["next_page_token"] is None


def test_a_table_away_from_a_terminal_is_never_cut(admin: Shell, quota_id: str) -> None:
    """Ids stand whole in one line, however narrow the environment says it is, and no line ends in blanks."""
    lines = admin.having().run("quota", "list").out.splitlines()

    (row,) = [line for line in lines if quota_id in line]
    assert "totals" in row
    assert "spring sale" in row
    assert all(line == line.rstrip() for line in lines)


def test_a_quota_is_found_by_its_job_type(admin: Shell, quota_id: str) -> None:
    """Where an id is taken, the job type of a quota is taken too."""
    assert admin.run("quota", "show", "totals", "--output", "json").document["quota_id"] == quota_id


def test_global_options_are_taken_before_the_command(admin: Shell, quota_id: str) -> None:
    """``--output`` and ``--reason`` mean the same on both sides, and the option wins over the environment."""
    ended = admin.run("--reason", "doubling", "--output", "json", "quota", "set", quota_id, "--max-active", "8")

    assert ended.document["limits"]["max_active"] == 8
    assert ended.document["last_change"]["reason"] == "doubling"


def test_the_tenant_as_a_whole_is_limited_only_on_demand(admin: Shell) -> None:
    """``--whole-tenant`` stands in the place of a job type."""
    made = admin.run("quota", "create", "--whole-tenant", *LIMITS, "--output", "json")

    assert made.document["job_type"] is None


def test_a_pause_is_told_and_taken_back(admin: Shell, quota_id: str) -> None:
    """Each move prints one line for people."""
    paused = admin.run("quota", "pause", quota_id, "--pause-reason", "deploy")
    resumed = admin.run("quota", "resume", quota_id)

    assert (paused.out, resumed.out) == (f"paused {quota_id}\n", f"resumed {quota_id}\n")


def test_the_history_tells_from_to_and_why(admin: Shell) -> None:
    """Changes stand oldest first, and ``--at`` adds the limits as of then."""
    admin.run("quota", "create", "remembered", *LIMITS)
    admin.run("quota", "set", "remembered", "--burst", "12", "--ticket", "CHG-7")

    told = admin.run("quota", "history", "remembered", "--at", "2999-01-01T00:00:00Z").out

    assert "burst 10→12" in told
    assert "CHG-7" in told
    assert "max_active=5 max_per_hour=100 burst=12 refill_per_second=1.5" in told


def test_a_deleted_quota_is_not_found(admin: Shell) -> None:
    """Exit code 4 for a quota that was there and is gone."""
    admin.run("quota", "create", "fleeting", *LIMITS)

    gone = admin.run("quota", "delete", "fleeting", "--output", "json").document

    assert is_id(gone["quota_id"])
    assert admin.run("quota", "show", "fleeting").code == Exit.NOT_FOUND
    assert admin.run("quota", "show", gone["quota_id"]).code == Exit.NOT_FOUND


def test_the_summary_shows_use_by_job_type(admin: Shell, quota_id: str) -> None:
    """The JSON is the API's own; the table has a line for each job type."""
    assert admin.run("quota", "summary", "--output", "json").document["totals"]["quotas"] >= 1
    assert "totals" in admin.run("quota", "summary").out
    assert quota_id


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["quota", "set", "totals", "--max-active", "5000"], Exit.REFUSED, "(policy_maximum_exceeded)"),
        (["quota", "create", "totals", *LIMITS], Exit.REFUSED, "(quota_exists)"),
        (["quota", "set", "totals", "--burst", "11", "--if-version", "99"], Exit.REFUSED, "(version_conflict)"),
        (["quota", "set", "totals", "--max-active", "-1"], Exit.USAGE, "limits.max_active: "),
        (["quota", "show", "nothing"], Exit.NOT_FOUND, "(not_found)"),
        (["quota", "set", "totals", "--burst", "11", "--reason", "n/a"], Exit.USAGE, "quota_reason"),
        (["policy", "set", "--max-raise-factor", "5"], Exit.AUTH, "(invalid_scope)"),
        (["--url", "http://127.0.0.1:1", "quota", "list"], Exit.RETRY_LATER, "no server answers"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("quota_id")
def test_a_failure_tells_its_code_and_a_hint(admin: Shell, arguments: list[str], code: int, said: str) -> None:
    """The exit code tells scripts, standard error tells people, and standard output stays empty."""
    ended = admin.run(*arguments)

    assert (ended.code, ended.out) == (code, "")
    assert ended.err.startswith("error: ")
    assert said in ended.err


def test_a_refusal_lists_what_stands_beside_its_detail(admin: Shell, quota_id: str) -> None:
    """The members of a problem are printed one a line."""
    said = admin.run("quota", "set", quota_id, "--max-active", "5000").err.splitlines()

    assert {"  limit: max_active", "  maximum: 1000", "  requested: 5000"} <= set(said)


def test_a_change_without_a_reason_asks_for_one(tenant: Tenant, quota_id: str) -> None:
    """The authority gives no token, and the hint names the option and the variable."""
    ended = tenant.speaking("Admin").run("quota", "set", quota_id, "--burst", "11")

    assert ended.code == Exit.USAGE
    assert "hint: say why: --reason, or JOBENGINE_QUOTA_REASON" in ended.err


def test_a_viewer_reads_and_changes_nothing(tenant: Tenant, quota_id: str) -> None:
    """Reading asks for `orch:read` alone; a change ends with exit code 3."""
    viewer = tenant.speaking("Viewer")

    assert viewer.run("quota", "show", quota_id).code == Exit.OK
    assert viewer.run("quota", "set", quota_id, "--burst", "11", "--reason", "curious").code == Exit.AUTH


def test_another_tenants_quota_is_not_found(service: Service, quota_id: str) -> None:
    """Whoever guesses an id learns nothing from the answer."""
    stranger = service.new_tenant("Viewer").speaking("Viewer")

    assert stranger.run("quota", "show", quota_id).code == Exit.NOT_FOUND


def test_a_client_of_two_tenants_names_one(service: Service) -> None:
    """Without JOBENGINE_TENANT the authority asks for it; with it the command works there."""
    made = service.shell.run("client", "create", "both", "--tenant", "left", "right", "--role", "Orch.Viewer", "--json")
    both = service.shell.having(
        URL=service.url, CLIENT_ID=made.document["client_id"], CLIENT_SECRET=made.document["client_secret"]
    )

    assert "hint: set JOBENGINE_TENANT" in both.run("quota", "list").err
    assert both.having(TENANT="right").run("quota", "list").code == Exit.OK


def test_a_governor_changes_the_policy(tenant: Tenant) -> None:
    """What is not named stays; a second change at the old version is refused."""
    governor = tenant.speaking("Governor").having(QUOTA_REASON="a bigger platform")
    before = governor.run("policy", "show", "--output", "json").document

    changed = governor.run(
        "policy", "set", "--ceiling", "burst=90000", "--max-raise-factor", "9", "--no-approval", "--output", "json"
    ).document
    late = governor.run("policy", "set", "--max-raise-factor", "8", "--if-version", str(before["version"]))

    assert changed["ceilings"] == before["ceilings"] | {"burst": 90000}
    assert (changed["max_raise_factor"], changed["approval_above"]) == (9, None)
    assert late.code == Exit.REFUSED


def test_a_token_is_printed_for_other_tools(tenant: Tenant) -> None:
    """For people the token alone, for programs the whole answer."""
    admin = tenant.speaking("Admin")

    plain = admin.run("token", "--scope", "orch:read", "orch:quota", "--reason", "spring sale").out
    answer = admin.run("token", "--scope", "orch:read", "--output", "json").document

    assert len(plain.strip().split(".")) == 3
    assert answer["scope"] == "orch:read"
    assert answer["token_type"] == "Bearer"
