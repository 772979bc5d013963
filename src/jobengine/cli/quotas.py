"""``jobengine quota``: see and change quotas over the API."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import App, Parameter

from jobengine.authority.scopes import Scope
from jobengine.cli.call import TheCall
from jobengine.cli.changes import told_of_wait
from jobengine.cli.exits import CommandFailed, Exit
from jobengine.cli.quota_plans import apply, export, plan
from jobengine.cli.show import Columns, cell, print_json, print_note, print_table, show_list, show_one
from jobengine.ids import is_id
from jobengine.tenancy.model import Family

if TYPE_CHECKING:
    from jobengine.cli.api import Api

app = App(name="quota", default_parameter=Parameter(negative=()))
for _command in (export, plan, apply):
    app.command(_command)

WHOLE_TENANT: Final = "(whole tenant)"
MOST_HOLDERS: Final = 20
QUOTAS: Final[Columns] = {
    "QUOTA": "quota_id",
    "JOB TYPE": lambda quota: quota["job_type"] or WHOLE_TENANT,
    "ACTIVE": lambda quota: f"{quota['usage']['active']}/{quota['effective_limits']['max_active']}",
    "THIS HOUR": lambda quota: f"{quota['usage']['granted_last_hour']}/{quota['effective_limits']['max_per_hour']}",
    "BURST": "effective_limits.burst",
    "REFILL/S": "effective_limits.refill_per_second",
    "PAUSED": "paused",
    "VERSION": "version",
    "REASON": "last_change.reason",
}
CHANGES: Final[Columns] = {
    "VERSION": "version",
    "AT": "at",
    "ACTION": "action",
    "CHANGE": lambda change: difference(change["from"], change["to"]),
    "WHO": "who",
    "REASON": "reason",
    "TICKET": "ticket",
}
SUMMARY: Final[Columns] = {
    "JOB TYPE": lambda item: item["job_type"] or WHOLE_TENANT,
    "ACTIVE": "active",
    "MAX ACTIVE": "max_active",
    "UTILISATION": lambda item: None if item["utilisation"] is None else f"{item['utilisation']:.0%}",
    "PAUSED": "paused",
    "DENIED LAST HOUR": lambda item: sum(item["denials_last_hour"].values()),
}

Quota = Annotated[str, Parameter(help="the id of a quota, or its job type")]
Version = Annotated[int | None, Parameter(help="change it only if it is still at this version")]


@app.command(name="list")
def list_quotas(*, job_type: str | None = None, paused: bool | None = None, limit: int = 1000, call: TheCall) -> None:
    """List the tenant's quotas.

    Args:
        job_type: the quota of this job type only.
        paused: paused ones only.
        limit: how many at the most.
        call: the global options.
    """
    with call.api() as api:
        page = api.items("/quotas", Scope.READ, limit, job_type=job_type, paused=paused)
    show_list(call, page, QUOTAS)


@app.command
def show(quota: Quota, /, *, call: TheCall) -> None:
    """Show a quota."""
    with call.api() as api:
        found = api.get(f"/quotas/{quota_id(api, quota, Scope.READ)}", Scope.READ)
    show_one(call, found)


@app.command
def create(
    job_type: str | None = None,
    *,
    whole_tenant: bool = False,
    max_active: int,
    max_per_hour: int,
    burst: int,
    refill_per_second: float,
    call: TheCall,
) -> None:
    """Limit a job type, or with ``--whole-tenant`` the tenant as a whole.

    Args:
        job_type: the job type.
        whole_tenant: limit all job types of the tenant together.
        max_active: slots in use at one time.
        max_per_hour: admissions in any hour.
        burst: admissions at once.
        refill_per_second: admissions a second that the burst recovers by.
        call: the global options.
    """
    if (job_type is None) != whole_tenant:
        raise CommandFailed("name either a JOB_TYPE or --whole-tenant", Exit.USAGE)
    limits = {
        "max_active": max_active,
        "max_per_hour": max_per_hour,
        "burst": burst,
        "refill_per_second": refill_per_second,
    }
    with call.api() as api:
        made = api.send("POST", "/quotas", Scope.QUOTA, body={"job_type": job_type, "limits": limits})
    told = told_of_wait(made)
    show_one(call, made, told or f"created {made['quota_id']} for {made['job_type'] or WHOLE_TENANT}: {stated(made)}")


@app.command(name="set")
def set_limits(
    quota: Quota,
    /,
    *,
    max_active: int | None = None,
    max_per_hour: int | None = None,
    burst: int | None = None,
    refill_per_second: float | None = None,
    drain: bool = False,
    emergency: bool = False,
    if_version: Version = None,
    call: TheCall,
) -> None:
    """Change some limits of a quota; the others stay. Who holds more than is left is told first.

    Args:
        quota: the id of a quota, or its job type.
        max_active: slots in use at one time.
        max_per_hour: admissions in any hour.
        burst: admissions at once.
        refill_per_second: admissions a second that the burst recovers by.
        drain: where use is above the limit, renew no lease after 60 s.
        emergency: do not wait for a second person; needs a ticket.
        if_version: change it only if it is still at this version.
        call: the global options.
    """
    limits = some_limits(max_active, max_per_hour, burst, refill_per_second)
    if not limits:
        raise CommandFailed("name at least one limit to change", Exit.USAGE, hint="like --max-active 20")
    body: dict[str, Any] = {"limits": limits}
    body |= {"on_excess": "drain"} if drain else {}
    body |= {"emergency": True} if emergency else {}
    with call.api() as api:
        path = f"/quotas/{quota_id(api, quota, Scope.QUOTA)}"
        if max_active is not None:
            _tell_holders(api, api.get(path, Scope.QUOTA), max_active)
        found = api.send("PATCH", path, Scope.QUOTA, body=body, version=if_version)
    show_one(call, found, told_of_wait(found) or changed(found))


def _tell_holders(api: "Api", quota: Mapping[str, Any], max_active: int) -> None:
    active = quota["usage"]["active"]
    if not 0 <= max_active < active:
        return
    page = api.items("/admissions", Scope.READ, MOST_HOLDERS, job_type=quota["job_type"])
    print_note(f"note: {active} slots are in use, above {max_active}; nothing new is admitted until they are fewer")
    for lease in page["items"]:
        print_note(
            f"  {lease['lease_id']} {lease['job_type']} {lease['slots']} slots until {lease['expires_at']}"
            + (f" for {cell(lease['job_id'])}" if lease["job_id"] else "")
        )
    if page["next_page_token"]:
        print_note("  … and more: jobengine quota show, GET /admissions")


@app.command
def simulate(
    quota: Quota,
    /,
    *,
    max_active: int | None = None,
    max_per_hour: int | None = None,
    burst: int | None = None,
    refill_per_second: float | None = None,
    since: str | None = None,
    call: TheCall,
) -> None:
    """Show what other limits would have done with the asks of up to the last 30 days; changes nothing.

    Args:
        quota: the id of a quota, or its job type.
        max_active: slots in use at one time.
        max_per_hour: admissions in any hour.
        burst: admissions at once.
        refill_per_second: admissions a second that the burst recovers by.
        since: leave out what was asked before, like 2026-01-31T00:00:00Z.
        call: the global options.
    """
    limits = some_limits(max_active, max_per_hour, burst, refill_per_second)
    if not limits:
        raise CommandFailed("name at least one limit to try", Exit.USAGE, hint="like --max-active 20")
    body = {"limits": limits} | ({} if since is None else {"since": since})
    with call.api() as api:
        path = f"/quotas/{quota_id(api, quota, Scope.READ)}/simulate"
        found = api.send("POST", path, Scope.READ, body=body)
    show_one(call, found)


@app.command
def request(
    job_type: str | None = None,
    *,
    whole_tenant: bool = False,
    max_active: int | None = None,
    max_per_hour: int | None = None,
    burst: int | None = None,
    refill_per_second: float | None = None,
    until: str | None = None,
    call: TheCall,
) -> None:
    """Ask for higher limits, for good or until a time; somebody else decides. ``--reason`` says why.

    Args:
        job_type: the job type.
        whole_tenant: ask for the tenant as a whole.
        max_active: slots in use at one time.
        max_per_hour: admissions in any hour.
        burst: admissions at once.
        refill_per_second: admissions a second that the burst recovers by.
        until: when the raise is to end by itself, like 2026-01-31T00:00:00Z.
        call: the global options.
    """
    if (job_type is None) != whole_tenant:
        raise CommandFailed("name either a JOB_TYPE or --whole-tenant", Exit.USAGE)
    limits = some_limits(max_active, max_per_hour, burst, refill_per_second)
    reason = call.reason_for(Family.QUOTA)
    if not limits or reason is None:
        raise CommandFailed("name at least one limit, and --reason", Exit.USAGE, hint="like --max-active 20")
    body: dict[str, Any] = {"job_type": job_type, "limits": limits, "request_reason": reason}
    with call.api() as api:
        made = api.send("POST", "/quota-requests", Scope.READ, body=body | ({"until": until} if until else {}))
    show_one(call, made, told_of_wait(made))


def some_limits(
    max_active: int | None, max_per_hour: int | None, burst: int | None, refill_per_second: float | None
) -> dict[str, float]:
    """Return those limits that were named.

    >>> some_limits(5, None, None, 0.5)
    {'max_active': 5, 'refill_per_second': 0.5}
    """
    asked = {
        "max_active": max_active,
        "max_per_hour": max_per_hour,
        "burst": burst,
        "refill_per_second": refill_per_second,
    }
    return {name: value for name, value in asked.items() if value is not None}


@app.command
def pause(quota: Quota, /, *, pause_reason: str | None = None, if_version: Version = None, call: TheCall) -> None:
    """Deny new work until the quota is resumed; running work goes on.

    Args:
        quota: the id of a quota, or its job type.
        pause_reason: what those read who are denied.
        if_version: change it only if it is still at this version.
        call: the global options.
    """
    body = {} if pause_reason is None else {"pause_reason": pause_reason}
    with call.api() as api:
        path = f"/quotas/{quota_id(api, quota, Scope.QUOTA)}/pause"
        found = api.send("POST", path, Scope.QUOTA, body=body, version=if_version)
    show_one(call, found, f"paused {found['quota_id']}")


@app.command
def resume(quota: Quota, /, *, if_version: Version = None, call: TheCall) -> None:
    """Admit new work again."""
    with call.api() as api:
        path = f"/quotas/{quota_id(api, quota, Scope.QUOTA)}/resume"
        found = api.send("POST", path, Scope.QUOTA, body={}, version=if_version)
    show_one(call, found, f"resumed {found['quota_id']}")


@app.command
def delete(quota: Quota, /, *, if_version: Version = None, call: TheCall) -> None:
    """Take a quota away; the policy's default limits hold then."""
    with call.api() as api:
        found = quota_id(api, quota, Scope.QUOTA)
        api.send("DELETE", f"/quotas/{found}", Scope.QUOTA, version=if_version)
    show_one(call, {"quota_id": found, "deleted": True}, f"deleted {found}")


@app.command
def history(quota: Quota, /, *, at: str | None = None, limit: int = 1000, call: TheCall) -> None:
    """List the changes of a quota: from, to, who and why.

    Args:
        quota: the id of a quota, or its job type.
        at: show also the limits as of this time, like 2026-01-31T00:00:00Z.
        limit: how many at the most.
        call: the global options.
    """
    with call.api() as api:
        path = f"/quotas/{quota_id(api, quota, Scope.READ)}/history"
        page = api.items(path, Scope.READ, limit, at=at)
    show_list(call, page, CHANGES)
    if (as_of := page.get("as_of")) and not call.as_json:
        print_table([as_of], {"AS OF": "at", "VERSION": "version", "LIMITS": stated})


@app.command
def summary(*, call: TheCall) -> None:
    """Show use, limits, pauses and denials by job type."""
    with call.api() as api:
        found = api.get("/quotas/summary", Scope.READ)
    if call.as_json:
        print_json(found)
    else:
        print_table(found["items"], SUMMARY)


def quota_id(api: "Api", quota: str, scope: str) -> str:
    """Return the id that *quota* is, or the id of the quota of that job type."""
    if is_id(quota):
        return quota
    items = api.get("/quotas", scope, job_type=quota)["items"]
    if not items:
        raise CommandFailed.of_problem(f"there is no quota for the job type {quota}", "not_found")
    found: str = items[0]["quota_id"]
    return found


def stated(quota: Mapping[str, Any]) -> str:
    """Write the limits of *quota* in one line.

    >>> stated({"limits": {"max_active": 5, "refill_per_second": 1.0}})
    'max_active=5 refill_per_second=1'
    """
    return " ".join(f"{name}={cell(value)}" for name, value in quota["limits"].items())


def changed(quota: Mapping[str, Any]) -> str:
    """Write in one line what a quota is after a change."""
    return f"{quota['quota_id']} is at version {quota['version']}: {stated(quota)}"


def difference(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    """Write what a change made of the limits.

    >>> difference({"max_active": 5, "burst": 1}, {"max_active": 8, "burst": 1}), difference(None, {"burst": 1})
    ('max_active 5→8', 'burst -→1')
    """
    old: Mapping[str, Any] = before or {}
    new: Mapping[str, Any] = after or {}
    moved = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return " ".join(f"{name} {cell(old.get(name))}→{cell(new.get(name))}" for name in moved)
