"""``jobengine quota export|plan|apply``: a tenant's quotas as a file that is reviewed before it holds."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from cyclopts import Parameter

from jobengine.authority.scopes import Scope
from jobengine.cli.call import Call, TheCall
from jobengine.cli.exits import CommandFailed, Exit
from jobengine.cli.quota_files import MAX_BYTES, QuotaFile, SomeLimits, exact, read_quota_file, write_quota_file
from jobengine.cli.show import cell, print_json
from jobengine.quota.model import LIMIT_NAMES, limits_json

if TYPE_CHECKING:
    from jobengine.cli.api import Api

PLAN_CHANGES: Final = 2
ALL: Final = 10**6
_SIGNS: Final = {"create": "+", "adjust": "~", "delete": "-"}
_DONE: Final = {"create": "created", "adjust": "adjusted", "delete": "deleted"}

File = Annotated[Path, Parameter(name=("--file", "-f"), help="a TOML file as `quota export` writes it")]


@dataclass(frozen=True, slots=True)
class Step:
    """One change that makes the server say what the file says; *quota* is what the server says now.

    *change_id* is a change that asks for the same and waits for a second person.
    """

    action: Literal["create", "adjust", "delete"]
    job_type: str | None
    to: SomeLimits
    quota: Mapping[str, Any] | None = None
    change_id: str | None = None

    @property
    def before(self) -> SomeLimits:
        """The limits that change, as they are."""
        now = {} if self.quota is None else exact(self.quota["limits"])
        return now if self.action == "delete" else {name: now[name] for name in self.to if name in now}

    @property
    def title(self) -> str:
        """The job type for people."""
        return _title(self.job_type)

    def as_json(self) -> dict[str, object]:
        """Return the step for programs."""
        quota = self.quota or {}
        return {
            "action": self.action,
            "job_type": self.job_type,
            "quota_id": quota.get("quota_id"),
            "version": quota.get("version"),
            "from": limits_json(self.before) or None,
            "to": limits_json(self.to) or None,
            "change_id": self.change_id,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole difference between a file and the server; *outside* the file nothing is touched."""

    tenant: str
    steps: tuple[Step, ...]
    unchanged: tuple[str | None, ...]
    outside: tuple[str | None, ...]

    @property
    def digest(self) -> str:
        """The plan's name: another file, or a change on the server in between, gives another one."""
        steps = [{**step.as_json(), "change_id": None} for step in self.steps]
        said = json.dumps([self.tenant, steps], sort_keys=True, separators=(",", ":"))
        return sha256(said.encode()).hexdigest()[:16]

    def as_json(self) -> dict[str, object]:
        """Return the plan for programs."""
        return {
            "tenant": self.tenant,
            "plan": self.digest,
            "changes": [step.as_json() for step in self.steps],
            "unchanged": list(self.unchanged),
            "outside": list(self.outside),
        }


@dataclass(slots=True)
class Report:
    """What an apply did so far."""

    done: list[tuple[Step, Mapping[str, Any]]] = field(default_factory=list[tuple[Step, Mapping[str, Any]]])
    left: list[Step] = field(default_factory=list[Step])


def export(*, call: TheCall) -> None:
    """Print the tenant's quotas as a TOML file: their limits, without pauses and overrides, which end by themselves."""
    with call.api() as api:
        tenant, stored = _server(api, Scope.READ)
    sys.stdout.write(write_quota_file(tenant, {name: exact(quota["limits"]) for name, quota in stored.items()}))


def plan(*, file: File, prune: bool = False, call: TheCall) -> int:
    """Show what would make the server say what a file says: exit code 0 for nothing, 2 for changes, 1 for a bad file.

    Args:
        file: a TOML file as `quota export` writes it.
        prune: delete quotas that the file does not name; without it they are left alone.
        call: the global options.
    """
    try:
        found = planned(call, file, Scope.READ, prune=prune)
    except CommandFailed as failed:
        # Here 2 says that there are changes, and nothing else.
        failed.end = Exit.ERROR if failed.end is Exit.USAGE else failed.end
        raise
    if call.as_json:
        print_json(found.as_json())
    else:
        sys.stdout.write("".join(f"{line}\n" for line in described(found)))
    return PLAN_CHANGES if found.steps else Exit.OK


def apply(*, file: File, prune: bool = False, expect: str | None = None, call: TheCall) -> None:
    """Make the server say what a file says, one quota after another; stops at the first refusal and tells what is done.

    A raise that has to wait for a second person is asked for once and named: that is no refusal, and ends with 0.

    Args:
        file: a TOML file as `quota export` writes it.
        prune: delete quotas that the file does not name; without it they are left alone.
        expect: do it only if the plan still is the one with this name, as `quota plan` printed it.
        call: the global options.
    """
    found = planned(call, file, Scope.QUOTA, prune=prune)
    if expect is not None and expect != found.digest:
        raise CommandFailed.of_problem(f"the plan is {found.digest} now, not {expect}", "plan_changed", 409)
    _show(call, found, carry_out(call, found))


def carry_out(call: Call, found: Plan) -> Report:
    """Do what a plan says, each step on the version it was planned with; raises CommandFailed telling how far it is."""
    report = Report(left=list(found.steps))
    try:
        with call.api() as api:
            while report.left:
                step = report.left[0]
                waits = {"change_id": step.change_id}
                report.done.append((step, waits if step.change_id else _send(api, step) or {}))
                del report.left[0]
    except CommandFailed as failed:
        failed.lines = (*failed.lines, *_told(report))
        raise
    return report


def planned(call: Call, path: Path, scope: Scope, *, prune: bool) -> Plan:
    """Compare a file with the server; raises CommandFailed for a file that cannot be used, or of another tenant."""
    said = read_quota_file(_text(path), str(path))
    with call.api() as api:
        tenant, stored = _server(api, scope)
        pending = api.items("/quota-changes", scope, ALL, status="pending")["items"]
    if said.tenant != tenant:
        message = f"{path} is a file of the tenant {said.tenant}, and this client speaks for {tenant}"
        raise CommandFailed(message, Exit.REFUSED, hint="set JOBENGINE_TENANT, or take the other file")
    found = compare(said, stored, prune=prune)
    return replace(found, steps=tuple(_known_to_wait(step, pending) for step in found.steps))


def _known_to_wait(step: Step, pending: Sequence[Mapping[str, Any]]) -> Step:
    asked = {**exact(step.quota["limits"] if step.quota else {}), **step.to}
    same = [
        change["change_id"]
        for change in pending
        if change["job_type"] == step.job_type and change["until"] is None and exact(change["to"]) == asked
    ]
    return replace(step, change_id=same[0]) if same and step.action != "delete" else step


def _text(path: Path) -> str:
    try:
        with path.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise CommandFailed(f"{path} is longer than {MAX_BYTES} bytes", Exit.USAGE)
        return content.decode()
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}", Exit.USAGE) from None
    except UnicodeDecodeError:
        raise CommandFailed(f"{path} is not UTF-8", Exit.USAGE) from None


def _server(api: "Api", scope: Scope) -> tuple[str, dict[str | None, Mapping[str, Any]]]:
    tenant = api.tenant(scope)
    return tenant, {quota["job_type"]: quota for quota in api.items("/quotas", scope, ALL)["items"]}


def compare(said: QuotaFile, stored: Mapping[str | None, Mapping[str, Any]], *, prune: bool) -> Plan:
    """Return what has to change in *stored* for it to say what the file says; raises CommandFailed where it cannot.

    >>> stored = {"scan": {"limits": {"burst": 3}, "version": 1}, "old": {"limits": {"burst": 1}, "version": 7}}
    >>> plan = compare(QuotaFile("acme", {"scan": {"burst": 5}}), stored, prune=False)
    >>> [(step.action, step.job_type) for step in plan.steps], plan.outside
    ([('adjust', 'scan')], ('old',))
    """
    steps: list[Step] = []
    unchanged: list[str | None] = []
    for job_type in sorted(said.quotas, key=_title):
        wanted, quota = said.quotas[job_type], stored.get(job_type)
        if quota is None:
            steps.append(_creation(job_type, wanted))
            continue
        now = exact(quota["limits"])
        moved = {name: value for name, value in wanted.items() if value != now[name]}
        if moved:
            steps.append(Step("adjust", job_type, moved, quota))
        else:
            unchanged.append(job_type)
    outside = sorted(stored.keys() - said.quotas.keys(), key=_title)
    if prune:
        steps += [Step("delete", job_type, {}, stored[job_type]) for job_type in outside]
    return Plan(said.tenant, tuple(steps), tuple(unchanged), () if prune else tuple(outside))


def _creation(job_type: str | None, wanted: SomeLimits) -> Step:
    if missing := [name for name in LIMIT_NAMES if name not in wanted]:
        message = f"{_title(job_type)} has no quota yet: a new one needs {', '.join(missing)} too"
        raise CommandFailed(message, Exit.USAGE)
    return Step("create", job_type, wanted)


def described(found: Plan) -> Iterator[str]:
    """Write a plan as a reviewer reads it: what changes, from what, and who set what would be replaced."""
    counts = [f"{sum(step.action == action for step in found.steps)} to {action}" for action in _SIGNS]
    yield f"tenant {found.tenant}: {', '.join(counts)}, {len(found.unchanged)} unchanged"
    for step in found.steps:
        yield ""
        yield f"{_SIGNS[step.action]} {step.title}"
        yield from (f"    {line}" for line in _details(step))
    if found.outside:
        yield ""
        yield f"not in the file, left alone (--prune deletes): {', '.join(map(_title, found.outside))}"
    if found.steps:
        yield ""
        yield f"plan {found.digest}"


def _details(step: Step) -> Iterator[str]:
    before, to = limits_json(step.before), limits_json(step.to)
    for name in before | to:
        yield " → ".join(cell(side[name]) for side in (before, to) if name in side).join((f"{name} ", ""))
    if step.change_id:
        yield f"waits for a second person: change {step.change_id}"
    if step.quota is None:
        return
    quota, change = step.quota, step.quota["last_change"]
    why = f"{change['reason'] or '(erased)'}" + (f" ({change['ticket']})" if change["ticket"] else "")
    yield cell(f"on the server: version {quota['version']}, {change['action']} by {quota['updated_by']} "
               f"at {change['at']}: {why}")  # fmt: skip
    if quota["paused"]:
        yield "paused, and stays so"
    if step.action == "adjust" and "max_active" in step.to and quota["usage"]["active"] > step.to["max_active"]:
        yield f"{quota['usage']['active']} slots are in use: nothing new starts until they are {step.to['max_active']}"


def _send(api: "Api", step: Step) -> Mapping[str, Any] | None:
    if step.quota is None:
        body = {"job_type": step.job_type, "limits": limits_json(step.to)}
        return api.send("POST", "/quotas", Scope.QUOTA, body=body)
    path, version = f"/quotas/{step.quota['quota_id']}", step.quota["version"]
    if step.action == "delete":
        return api.send("DELETE", path, Scope.QUOTA, version=version)
    return api.send("PATCH", path, Scope.QUOTA, body={"limits": limits_json(step.to)}, version=version)


def _told(report: Report) -> Iterator[str]:
    yield from (_outcome(step, answer) for step, answer in report.done)
    yield from (f"{'refused' if n == 0 else 'not begun'}: {step.title}" for n, step in enumerate(report.left))


def _outcome(step: Step, answer: Mapping[str, Any]) -> str:
    if "change_id" in answer:
        return f"waits for a second person: {step.title} (change {answer['change_id']})"
    return f"{_DONE[step.action]}: {step.title}"


def _show(call: Call, found: Plan, report: Report) -> None:
    if call.as_json:
        results = [
            {
                **step.as_json(),
                "status": "pending" if "change_id" in answer else "done",
                "change_id": answer.get("change_id"),
            }
            for step, answer in report.done
        ]
        print_json({"tenant": found.tenant, "plan": found.digest, "results": results})
        return
    lines = list(_told(report)) or [f"tenant {found.tenant}: nothing to change"]
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _title(job_type: str | None) -> str:
    return job_type or "(whole tenant)"
