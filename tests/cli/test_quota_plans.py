"""``jobengine quota export|plan|apply`` against a running server."""

from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from secrets import token_hex

import httpx2
import pytest
from tests.cli.processes import Ended, Service, Shell

from jobengine.authority.scopes import Scope
from jobengine.cli.call import Call
from jobengine.cli.exits import CommandFailed, Exit
from jobengine.cli.main import run
from jobengine.cli.quota_plans import PLAN_CHANGES, carry_out, planned

LIMITS = ("--max-active", "5", "--max-per-hour", "100", "--burst", "10", "--refill-per-second", "1.5")


Tenants = Iterator[tuple[str, Mapping[str, Shell]]]


class Desk:
    """A tenant of its own, its people, and a file; commands run inside this process, which is quick."""

    def __init__(self, tenant: str, shells: Mapping[str, Shell], folder: Path) -> None:
        self.tenant = tenant
        self.shells = shells
        self.path = folder / "quotas.toml"

    def run(self, *arguments: str, role: str = "Admin", **settings: str) -> Ended:
        """Run `jobengine quota …` as the client with this role."""
        why = {"QUOTA_REASON": "spring sale", "QUOTA_TICKET": "CHG-1"} if role == "Admin" else {}
        shell = self.shells[role].having(TENANT=self.tenant, **(why | settings))
        with (
            pytest.MonkeyPatch.context() as patch,
            redirect_stdout(StringIO()) as out,
            redirect_stderr(StringIO()) as err,
        ):
            for name, value in shell.settings.items():
                patch.setenv(name, value)
            code = run(["quota", *arguments])
        return Ended(code, out.getvalue(), err.getvalue())

    def write(self, text: str) -> None:
        """Write the file for this tenant."""
        self.path.write_text(f'format = 1\ntenant = "{self.tenant}"\n{text}')

    def export(self) -> str:
        """Return what the server says as a file, and keep it."""
        ended = self.run("export")
        assert ended.code == 0, ended.err
        self.path.write_text(ended.out)
        return ended.out

    def plan(self, *arguments: str) -> Ended:
        """Plan with the file."""
        return self.run("plan", "-f", str(self.path), *arguments)

    def apply(self, *arguments: str) -> Ended:
        """Apply the file."""
        return self.run("apply", "-f", str(self.path), *arguments)


@pytest.fixture(scope="module")
def tenants(service: Service) -> Tenants:
    """Tenants that no other test knows, and a client of each role for all of them."""
    names = [f"t-{token_hex(6)}" for _ in range(30)]
    shells: dict[str, Shell] = {}
    for role, made in service.new_clients(names, "Admin", "Viewer", "Worker").items():
        secret = {"CLIENT_ID": made["client_id"], "CLIENT_SECRET": made["client_secret"]}
        shells[role] = service.shell.having(URL=service.url, **secret)
    return iter([(name, shells) for name in names])


@pytest.fixture
def desk(tenants: Tenants, tmp_path: Path) -> Desk:
    """A tenant with two quotas."""
    made = Desk(*next(tenants), tmp_path)
    for job_type in ("scan", "mail.out"):
        assert made.run("create", job_type, *LIMITS).code == 0
    return made


def test_what_was_exported_plans_nothing(desk: Desk) -> None:
    """The round trip is empty, exit code 0, and exporting again gives the same bytes."""
    first = desk.export()

    ended = desk.plan()

    assert (ended.code, ended.err) == (Exit.OK, "")
    assert ended.out == f"tenant {desk.tenant}: 0 to create, 0 to adjust, 0 to delete, 2 unchanged\n"
    assert desk.run("export").out == first
    assert '[job_types."mail.out"]\nmax_active = 5\nmax_per_hour = 100\nburst = 10\nrefill_per_second = 1.5\n' in first


def test_a_plan_reads_like_a_diff_and_ends_with_two(desk: Desk) -> None:
    """What changes, from what to what, who set what would be replaced and why, and what is left alone."""
    desk.write(
        "[job_types.scan]\nmax_active = 8\nburst = 10\n"
        "[job_types.new]\nmax_active = 1\nmax_per_hour = 2\nburst = 3\nrefill_per_second = 0.25\n"
    )

    ended = desk.plan()

    assert (ended.code, ended.err) == (PLAN_CHANGES, "")
    lines = ended.out.splitlines()
    assert lines[0].endswith(": 1 to create, 1 to adjust, 0 to delete, 0 unchanged")
    new, scan = lines.index("+ new"), lines.index("~ scan")
    assert lines[new + 1 : new + 5] == [
        "    max_active 1", "    max_per_hour 2", "    burst 3", "    refill_per_second 0.25",
    ]  # fmt: skip
    assert lines[scan + 1] == "    max_active 5 → 8"
    assert "on the server: version 1, created by Admin at " in lines[scan + 2]
    assert lines[scan + 2].endswith(": spring sale (CHG-1)")
    assert "not in the file, left alone (--prune deletes): mail.out" in lines


def test_an_applied_file_holds_and_applies_only_once(desk: Desk) -> None:
    """The changes carry the reason and the ticket; plan after apply is empty, and a second apply changes no version."""
    desk.write("[job_types.scan]\nmax_active = 8\n[whole_tenant]\nmax_active = 9\nmax_per_hour = 9\nburst = 9\n"
               "refill_per_second = 9\n")  # fmt: skip

    applied = desk.apply("--reason", "more room", "--ticket", "CHG-2")
    again = desk.apply("--reason", "more room", "--ticket", "CHG-2")

    assert (applied.code, applied.out) == (0, "created: (whole tenant)\nadjusted: scan\n")
    assert desk.plan().code == Exit.OK
    assert again.out == f"tenant {desk.tenant}: nothing to change\n"
    scan = desk.run("show", "scan", "--output", "json").document
    assert (scan["version"], scan["limits"]["max_active"], scan["limits"]["burst"]) == (2, 8, 10)
    assert (scan["last_change"]["reason"], scan["last_change"]["ticket"]) == ("more room", "CHG-2")


def test_drift_is_shown_and_turned_back(desk: Desk) -> None:
    """A change beside the file shows with whoever made it and why; applying the file takes it back."""
    desk.export()
    desk.run("set", "scan", "--max-active", "20", "--reason", "a quick fix", "--ticket", "INC-9")

    drift = desk.plan()
    desk.apply()

    assert drift.code == PLAN_CHANGES
    assert "    max_active 20 → 5\n" in drift.out
    assert ": a quick fix (INC-9)\n" in drift.out
    assert desk.plan().code == Exit.OK


def test_only_prune_deletes_what_the_file_leaves_out(desk: Desk) -> None:
    """Without it the other quota stays; with it the plan says so and the quota goes."""
    desk.write("[job_types.scan]\nburst = 11\n")

    kept = desk.apply()
    plan = desk.plan("--prune")
    pruned = desk.apply("--prune")

    assert kept.out == "adjusted: scan\n"
    assert "- mail.out\n    max_active 5\n" in plan.out
    assert pruned.out == "deleted: mail.out\n"
    assert desk.run("show", "mail.out").code == Exit.NOT_FOUND


def test_programs_read_the_plan_as_json(desk: Desk) -> None:
    """Every change with its version, and the plan's name."""
    desk.write("[job_types.scan]\nburst = 11\n")

    ended = desk.plan("--output", "json")

    assert ended.code == PLAN_CHANGES
    [change] = ended.document["changes"]
    assert {name: change[name] for name in ("action", "job_type", "version", "from", "to")} == {
        "action": "adjust", "job_type": "scan", "version": 1, "from": {"burst": 10}, "to": {"burst": 11},
    }  # fmt: skip
    assert (ended.document["unchanged"], ended.document["outside"]) == ([], ["mail.out"])


def test_an_apply_keeps_to_the_plan_that_was_reviewed(desk: Desk) -> None:
    """A plan is named; once the server has moved, the name no longer fits and nothing is done."""
    desk.write("[job_types.scan]\nburst = 11\n")
    reviewed = desk.plan("--output", "json").document["plan"]
    desk.run("set", "scan", "--max-active", "6")

    refused = desk.apply("--expect", reviewed)
    moved = desk.plan("--output", "json").document["plan"]
    done = desk.apply("--expect", moved)

    assert (refused.code, refused.out) == (Exit.REFUSED, "")
    assert "(plan_changed)" in refused.err
    assert done.out == "adjusted: scan\n"


def test_a_change_between_plan_and_step_is_refused(desk: Desk) -> None:
    """Each step names the version it was planned on: what somebody did meanwhile is not overwritten, and is told."""
    desk.write('[job_types.scan]\nburst = 11\n[job_types."mail.out"]\nburst = 11\n')
    settings = desk.shells["Admin"].having(TENANT=desk.tenant, QUOTA_REASON="spring sale").settings
    call = Call(url=settings["JOBENGINE_URL"], environ=settings)
    found = planned(call, desk.path, Scope.QUOTA, prune=False)
    desk.run("set", "scan", "--burst", "12")

    with pytest.raises(CommandFailed, match="version_conflict") as failed:
        carry_out(call, found)

    assert failed.value.end is Exit.REFUSED
    assert failed.value.lines[-2:] == ("adjusted: mail.out", "refused: scan")
    assert desk.run("show", "scan", "--output", "json").document["limits"]["burst"] == 12


def test_a_refusal_tells_what_is_done_and_what_is_not(desk: Desk) -> None:
    """The steps before it hold, those after it were not begun, and the file can be mended and applied again."""
    steps = ("[job_types.a]", "[job_types.b]", "[job_types.c]")
    desk.write("".join(
        f"{step}\nmax_active = {5000 if step == steps[1] else 1}\nmax_per_hour = 1\nburst = 1\nrefill_per_second = 1\n"
        for step in steps
    ))  # fmt: skip

    ended = desk.apply()

    assert (ended.code, ended.out) == (Exit.REFUSED, "")
    told = ended.err.splitlines()
    assert "(policy_maximum_exceeded)" in told[0]
    assert [line.strip() for line in told if ":" in line][-4:-1] == ["created: a", "refused: b", "not begun: c"]
    assert desk.run("show", "a").code == 0
    assert desk.run("show", "c").code == Exit.NOT_FOUND


def test_lowering_below_use_is_told_beforehand(desk: Desk) -> None:
    """The reviewer sees how many slots are in use and what that means."""
    worker = desk.shells["Worker"].having(TENANT=desk.tenant)
    token = worker.run("token", "--scope", "orch:admit").out.strip()
    url = f"{worker.settings['JOBENGINE_URL']}/api/v1/admissions"
    asked = {"job_type": "scan", "slots": 3}
    held = httpx2.post(url, json=asked, headers={"Authorization": f"Bearer {token}"}, trust_env=False)
    desk.write("[job_types.scan]\nmax_active = 2\n")

    assert held.is_success, held.text
    assert "    3 slots are in use: nothing new starts until they are 2\n" in desk.plan().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[job_types.scan]\nburst = -1\n", "line 4: job_types.scan.burst: must be a whole number"),
        ("[job_types.other]\nburst = 1\n", "other has no quota yet: a new one needs max_active, max_per_hour"),
        ("[job_types.scan\n", "is not TOML"),
    ],
)
def test_a_bad_file_is_never_taken_for_a_change(desk: Desk, text: str, said: str) -> None:
    """A plan that cannot be made ends with 1, for 2 says that there are changes; an apply ends with 2 for usage."""
    desk.write(text)

    plan, apply = desk.plan(), desk.apply()

    assert (plan.code, apply.code) == (Exit.ERROR, Exit.USAGE)
    assert said in plan.err
    assert said in apply.err
    assert (plan.out, apply.out) == ("", "")


def test_a_file_that_cannot_be_read_is_told(desk: Desk) -> None:
    """Neither a missing file nor bytes that are no text end in a traceback."""
    assert "No such file" in desk.plan().err
    desk.path.write_bytes(b"format = 1 # \xff")
    assert "is not UTF-8" in desk.plan().err


def test_a_file_of_another_tenant_is_refused(desk: Desk) -> None:
    """Whoever takes the wrong file changes nothing."""
    desk.path.write_text('format = 1\ntenant = "somebody-else"\n[job_types.scan]\nburst = 99\n')

    plan, apply = desk.plan(), desk.apply()

    assert (plan.code, apply.code) == (Exit.REFUSED, Exit.REFUSED)
    assert f"is a file of the tenant somebody-else, and this client speaks for {desk.tenant}" in apply.err
    assert desk.run("show", "scan", "--output", "json").document["version"] == 1


def test_a_viewer_plans_and_applies_nothing(desk: Desk) -> None:
    """A plan only reads; an apply needs the scope and a reason before it looks at anything."""
    desk.write("[job_types.scan]\nburst = 11\n")
    file = ("-f", str(desk.path))

    assert desk.run("plan", *file, role="Viewer").code == PLAN_CHANGES
    assert desk.run("apply", *file, "--reason", "curious", role="Viewer").code == Exit.AUTH
    assert "hint: say why: --reason" in desk.run("apply", *file, QUOTA_REASON="").err


@pytest.fixture
def approval(service: Service, tenants: Tenants) -> Iterator[None]:
    """A raise beyond the factor two waits for a second person, for as long as the test runs."""
    made = service.new_clients([next(tenants)[0]], "Governor")["Governor"]
    secret = {"CLIENT_ID": made["client_id"], "CLIENT_SECRET": made["client_secret"]}
    governor = service.shell.having(URL=service.url, QUOTA_REASON="two pairs of eyes", **secret)
    assert governor.run("policy", "set", "--approval-above", "2").code == 0
    yield
    assert governor.run("policy", "set", "--no-approval").code == 0


@pytest.mark.usefixtures("approval")
def test_a_change_that_waits_is_reported_and_not_asked_for_again(desk: Desk) -> None:
    """The plan goes on showing the difference and names the change; a second apply adds none."""
    desk.write("[job_types.scan]\nmax_active = 15\n")

    first, plan, second = desk.apply(), desk.plan(), desk.apply("--output", "json")

    assert first.code == 0
    change_id = first.out.removeprefix("waits for a second person: scan (change ").removesuffix(")\n")
    assert (plan.code, f"    waits for a second person: change {change_id}\n" in plan.out) == (PLAN_CHANGES, True)
    [result] = second.document["results"]
    assert (result["status"], result["change_id"]) == ("pending", change_id)
    assert desk.run("show", "scan", "--output", "json").document["limits"]["max_active"] == 5


def test_limits_are_tried_from_the_command_line(desk: Desk) -> None:
    """The answer of the API, for people one member a line; without a limit there is nothing to try."""
    answer = desk.run("simulate", "scan", "--max-active", "9", "--output", "json", role="Viewer")
    shown = desk.run("simulate", "scan", "--max-active", "9", role="Viewer")

    assert (answer.code, answer.document["asks"], answer.document["peak_active"]) == (0, 0, 0)
    assert "would_deny" in shown.out
    assert desk.run("simulate", "scan", role="Viewer").code == Exit.USAGE
