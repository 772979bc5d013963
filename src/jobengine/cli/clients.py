"""``jobengine client``: who may ask for tokens, on the database itself."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import App, Parameter

from jobengine.cli.call import TheCall
from jobengine.cli.exits import CommandFailed
from jobengine.cli.show import Columns, show_list, show_one
from jobengine.clock import format_time

if TYPE_CHECKING:
    from jobengine.authority.clients import Client
    from jobengine.cli.installation import Plane

app = App(name="client", default_parameter=Parameter(negative=()))

CLIENTS: Final[Columns] = {
    "CLIENT": "client_id",
    "NAME": "name",
    "OWNER": "owner",
    "TENANTS": lambda client: " ".join(client["tenants"]),
    "ROLES": lambda client: " ".join(client["roles"]),
    "DISABLED": "disabled_at",
}


@app.command
def create(
    name: str,
    /,
    *,
    tenant: Annotated[list[str], Parameter(consume_multiple=True)],
    role: Annotated[list[str], Parameter(consume_multiple=True)],
    owner: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    call: TheCall,
) -> None:
    """Make a client; its tenants exist from then on. Its secret is shown this once.

    Args:
        name: what people call it.
        tenant: a tenant it may act in; may be given more than once.
        role: Orch.Viewer, Orch.Operator, Orch.Admin, Orch.Auditor, Orch.Worker or Orch.Governor; may be given more
            than once.
        owner: the person or team that answers for it; else its name.
        as_json: print one JSON object on one line.
        call: the global options.
    """
    from jobengine.cli.installation import with_plane

    async def work(plane: "Plane") -> dict[str, Any]:
        return await _create(plane, name, tenant, role, owner)

    made = with_plane(call, work)
    if as_json or call.as_json:
        sys.stdout.write(json.dumps(made, ensure_ascii=False) + "\n")
        return
    sys.stdout.write(
        f"client {made['name']} of {made['owner']}, tenants: {' '.join(tenant)}, roles: {' '.join(role)}\n\n"
        f"export JOBENGINE_CLIENT_ID={made['client_id']}\n"
        f"export JOBENGINE_CLIENT_SECRET={made['client_secret']}\n\n"
        "The secret is shown this once and kept nowhere: store it now.\n"
    )


@app.command(name="list")
def list_clients(*, call: TheCall) -> None:
    """List every client, disabled ones too."""
    from jobengine.cli.installation import with_plane
    from jobengine.storage import authority

    async def work(plane: "Plane") -> list[dict[str, Any]]:
        async with plane.database.system() as tx:
            return [_view(client) for client in await authority.list_clients(tx)]

    show_list(call, {"items": with_plane(call, work), "next_page_token": None}, CLIENTS)


@app.command
def disable(client_id: str, /, *, call: TheCall) -> None:
    """Disable a client for good: its secret and its tokens are refused within a second."""
    from jobengine.cli.installation import with_plane

    async def work(plane: "Plane") -> tuple[dict[str, Any], bool]:
        return await _disable(plane, client_id)

    client, changed = with_plane(call, work)
    show_one(call, client, f"{client_id} is disabled" if changed else f"{client_id} was disabled already")


async def _create(plane: "Plane", name: str, tenants: list[str], roles: list[str], owner: str | None) -> dict[str, Any]:
    from jobengine.audit.actions import Action
    from jobengine.audit.model import Resource
    from jobengine.authority.clients import new_client
    from jobengine.cli.installation import PLATFORM, record
    from jobengine.storage.authority import add_client

    made = new_client(name, tenants=tenants, roles=roles, owner=owner, pepper=plane.pepper)
    client = made.client
    view = _view(client)
    # Two roles, two transactions: the entry commits first, so that no client is ever unrecorded.
    async with plane.database.system() as system:
        await add_client(system, client)
        async with plane.database.transaction(PLATFORM) as tx:
            await record(tx, Action.CLIENT_CREATED, Resource("client", client.client_id), view)
    return {"client_id": client.client_id, "client_secret": made.secret, **view}


async def _disable(plane: "Plane", client_id: str) -> tuple[dict[str, Any], bool]:
    from jobengine.audit.actions import Action
    from jobengine.audit.model import Resource
    from jobengine.cli.installation import PLATFORM, record
    from jobengine.storage.authority import disable_client, find_client

    async with plane.database.system() as system:
        changed = await disable_client(system, client_id)
        client = await find_client(system, client_id)
        if client is None:
            raise CommandFailed.of_problem(f"there is no client {client_id}", "not_found", hint="jobengine client list")
        if changed:
            async with plane.database.transaction(PLATFORM) as tx:
                await record(tx, Action.CLIENT_DISABLED, Resource("client", client_id), _view(client))
    return _view(client), changed


def _view(client: "Client") -> dict[str, Any]:
    return {
        "client_id": client.client_id,
        "name": client.name,
        "owner": client.owner,
        "tenants": list(client.tenants),
        "roles": [str(role) for role in client.roles],
        "disabled_at": format_time(client.disabled_at) if client.disabled_at else None,
    }
