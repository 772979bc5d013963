"""``jobengine audit``: read, verify and export the log over the API; its public key from the database itself."""

from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import App, Parameter

from jobengine.cli.audit_exports import Platform, erase, export, log_of, scope_of
from jobengine.cli.call import TheCall
from jobengine.cli.exits import CommandFailed, Exit
from jobengine.cli.show import Columns, cell, print_table, show_list, show_one
from jobengine.clock import format_time

if TYPE_CHECKING:
    from jobengine.cli.installation import Plane

app = App(name="audit", default_parameter=Parameter(negative=()))
app.command(
    "jobengine.cli.witness:ask", name="witness", help="Show the logs to witnesses outside, and keep what they sign."
)
app.command(export)
app.command(erase)

ENTRIES: Final[Columns] = {
    "SEQUENCE": "sequence",
    "AT": "occurred_at",
    "ACTION": "action",
    "ACTOR": "actor.id",
    "RESOURCE": lambda entry: entry["resource"] and f"{entry['resource']['type']} {entry['resource']['id']}",
    "OUTCOME": "outcome",
    "REASON": "reason",
    "TICKET": "ticket",
}

KEYS: Final[Columns] = {"KEY": "verifier_key", "SIGNS FROM": "active_from", "UNTIL": "until"}

EveryKey = Annotated[bool, Parameter(name="--all")]


@app.command(name="list")
def list_entries(
    *,
    action: str | None = None,
    resource_type: str | None = None,
    resource_id: str | None = None,
    actor: str | None = None,
    since: str | None = None,
    until: str | None = None,
    limit: int = 1000,
    platform: Platform = False,
    call: TheCall,
) -> None:
    """List the entries of the tenant's log, oldest first.

    Args:
        action: those of this action only, like quota.adjusted.
        resource_type: those about this kind of resource only.
        resource_id: those about this resource only.
        actor: those of this actor only.
        since: those at this time or later, like 2026-01-31T00:00:00Z.
        until: those before this time.
        limit: how many at the most.
        platform: the platform's own log.
        call: the global options.
    """
    filters = {
        "action": action,
        "resource_type": resource_type,
        "resource_id": resource_id,
        "actor": actor,
        "since": since,
        "until": until,
    }
    with call.api() as api:
        page = api.items("/audit/entries", scope_of(platform=platform), limit, **filters, log=log_of(platform=platform))
    show_list(call, page, ENTRIES)


@app.command
def verify(*, platform: Platform = False, call: TheCall) -> int:
    """Let the server recompute the whole log; exit code 1 when it is not as it was signed."""
    with call.api() as api:
        found = api.get("/audit/verify", scope_of(platform=platform), log=log_of(platform=platform))
    line = f"ok: {found['entries']} entries, root {found['root_hash']}"
    if not found["ok"]:
        line = (
            f"TAMPERED: {found['entries']} entries, first bad {cell(found['first_bad'])}: {cell(found.get('problem'))}"
        )
    show_one(call, found, line)
    return Exit.OK if found["ok"] else Exit.ERROR


@app.command
def key(*, tenant: str | None = None, platform: bool = False, all_: EveryKey = False, call: TheCall) -> None:
    """Print the public key that verifies a log, as one C2SP vkey line, from the database itself.

    Args:
        tenant: the tenant whose log it is; else JOBENGINE_TENANT.
        platform: the platform's own log.
        all_: every key that ever signed it, with the time from and to which it did.
        call: the global options.
    """
    from jobengine.cli.installation import PLATFORM, with_plane
    from jobengine.storage.audit import read_head

    tenant = PLATFORM if platform else tenant or call.setting("TENANT")
    if tenant is None:
        raise CommandFailed("name a log: --tenant T, or --platform", Exit.USAGE)

    async def work(plane: "Plane") -> dict[str, Any]:
        async with plane.database.transaction(tenant) as tx:
            origin = (await read_head(tx)).origin
        keys = [
            {
                "verifier_key": str(plane.log_keys().verifier_key(origin, one.kid)),
                "active_from": format_time(one.active_from),
                "until": one.retire_at and format_time(one.retire_at),
            }
            for one in plane.checkpoint_keys
        ]
        return {"verifier_key": str(plane.verifier_key(origin)), "keys": keys}

    found = with_plane(call, work)
    if all_ and not call.as_json:
        print_table(found["keys"], KEYS)
    else:
        show_one(call, found, found["verifier_key"])
