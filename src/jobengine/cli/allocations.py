"""``jobengine allocation``: pools of slots that tenants share, over the API."""

from collections.abc import Mapping
from time import monotonic, sleep
from typing import Annotated, Any, Final, Literal

from cyclopts import App, Parameter

from jobengine.authority.scopes import Scope
from jobengine.cli.call import TheCall
from jobengine.cli.exits import CommandFailed, Exit
from jobengine.cli.show import Columns, print_json, print_note, print_table, show_list, show_one

app = App(name="allocation", default_parameter=Parameter(negative=()))

LOOK_EVERY_SECONDS: Final = 0.3
MEMBERS: Final = ("weight", "priority", "reserved", "max_limit", "demand")
POOLS: Final[Columns] = {
    "JOB TYPE": "job_type",
    "CAPACITY": "capacity",
    "STRATEGY": "strategy",
    "TENANTS": lambda pool: len(pool["tenants"]),
    "STATUS": "status",
    "VERSION": "version",
    "BY": "updated_by",
}
TENANTS: Final[Columns] = {"TENANT": "tenant_id", **{name.upper().replace("_", " "): name for name in MEMBERS}}
PLAN: Final[Columns] = {"TENANT": "tenant_id", "FROM": "from", "TO": "to", "ACTIVE": "active"}

JobType = Annotated[str, Parameter(help="the job type that the pool is for")]
Strategy = Literal["unlimited", "proportional", "priority", "reserved", "max_limit"]


@app.command(name="list")
def list_allocations(*, limit: int = 1000, call: TheCall) -> None:
    """List the pools of the platform."""
    with call.api() as api:
        page = api.items("/allocations", Scope.GOVERN, limit)
    show_list(call, page, POOLS)


@app.command
def show(job_type: JobType, /, *, call: TheCall) -> None:
    """Show a pool, and how far it has been put into effect."""
    with call.api() as api:
        found = api.get(f"/allocations/{job_type}", Scope.GOVERN)
    if call.as_json:
        print_json(found)
        return
    print_table([found], POOLS)
    print_table(found["tenants"], TENANTS)
    if found["apply"]:
        show_one(call, found["apply"], told(found))


@app.command(name="set")
def write(
    job_type: JobType,
    /,
    *,
    strategy: Strategy,
    capacity: int | None = None,
    tenant: Annotated[tuple[str, ...], Parameter(consume_multiple=True)],
    if_version: int | None = None,
    call: TheCall,
) -> None:
    """Write a pool down. It takes effect with ``plan`` and ``apply``.

    Args:
        job_type: the job type that the pool is for.
        strategy: how it is shared.
        capacity: how many slots there are to share.
        tenant: who shares it, like acme:weight=3,reserved=5; may be given more than once.
        if_version: change it only if it is still at this version.
        call: the global options.
    """
    body = {"strategy": strategy, "capacity": capacity, "tenants": [read_tenant(text) for text in tenant]}
    with call.api() as api:
        found = api.send("PUT", f"/allocations/{job_type}", Scope.GOVERN, body=body, version=if_version)
    show_one(call, found, f"{job_type} is at version {found['version']}, shared by {len(tenant)}: plan it, then apply")


@app.command
def delete(job_type: JobType, /, *, if_version: int | None = None, call: TheCall) -> None:
    """Take a pool away; the limits of its tenants stay as they are."""
    with call.api() as api:
        api.send("DELETE", f"/allocations/{job_type}", Scope.GOVERN, version=if_version)
    show_one(call, {"job_type": job_type, "deleted": True}, f"deleted the pool of {job_type}")


@app.command
def plan(job_type: JobType, /, *, call: TheCall) -> None:
    """Show what applying would do to each tenant, and change nothing; the last line is for ``apply``."""
    with call.api() as api:
        found = api.send("POST", f"/allocations/{job_type}/plan", Scope.GOVERN, body={})
    if call.as_json:
        print_json(found)
        return
    print_table(found["tenants"], PLAN)
    print_note(f"allocated {found['allocated']}, left {found['unallocated']}")
    print_note(f"jobengine allocation apply {job_type} --plan-token {found['plan_token']}")


@app.command
def apply(
    job_type: JobType, /, *, plan_token: str, no_wait: bool = False, wait_seconds: float = 600, call: TheCall
) -> None:
    """Put a plan into effect, tenant by tenant, and wait until it has ended.

    Args:
        job_type: the job type that the pool is for.
        plan_token: the plan's.
        no_wait: do not wait.
        wait_seconds: for how long to wait.
        call: the global options.
    """
    until = monotonic() + (0 if no_wait else wait_seconds)
    with call.api() as api:
        found = api.send("POST", f"/allocations/{job_type}/apply", Scope.GOVERN, body={"plan_token": plan_token})
        while found["status"] == "applying" and monotonic() < until:
            sleep(LOOK_EVERY_SECONDS)
            found = api.get(f"/allocations/{job_type}", Scope.GOVERN)
    show_one(call, found, told(found))
    if found["status"] == "stopped":
        raise CommandFailed("the apply was broken off", Exit.REFUSED, hint="plan again, and apply that")


def told(pool: Mapping[str, Any]) -> str:
    """Write in one line how far a pool has been put into effect."""
    apply = pool["apply"]
    stopped = f", stopped by {apply['stopped_by']}" if apply["stopped_by"] else ""
    return f"{pool['job_type']} is {pool['status']}: {apply['done']} of {apply['total']} tenants{stopped}"


def read_tenant(text: str) -> dict[str, Any]:
    """Read a tenant of a pool as it stands on a command line; raises CommandFailed for what is none.

    >>> read_tenant("acme:weight=3,max_limit=50"), read_tenant("acme")
    ({'tenant_id': 'acme', 'weight': 3, 'max_limit': 50}, {'tenant_id': 'acme'})
    """
    tenant_id, _, said = text.partition(":")
    found: dict[str, Any] = {"tenant_id": tenant_id}
    for setting in said.split(",") if said else ():
        name, _, value = setting.partition("=")
        if name not in MEMBERS or not value.lstrip("-").isdecimal():
            raise CommandFailed(f"{setting} says nothing of a tenant", Exit.USAGE, hint=f"{', '.join(MEMBERS)}=NUMBER")
        found[name] = int(value)
    return found
