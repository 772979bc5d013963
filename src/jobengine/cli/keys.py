"""``jobengine key``: the keys that sign access tokens and those of the logs' checkpoints, on the database itself."""

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from jobengine.cli.call import TheCall
from jobengine.cli.show import show_one
from jobengine.clock import format_time

if TYPE_CHECKING:
    from jobengine.cli.installation import Plane

app = App(name="key", default_parameter=Parameter(negative=()))


@app.command
def rotate(
    *,
    checkpoints: Annotated[bool, Parameter(help="the key of the logs' checkpoints, not that of access tokens")] = False,
    call: TheCall,
) -> None:
    """Publish the next key and set the end of the present one; what was signed stays good."""
    from jobengine.cli.installation import with_plane

    made = with_plane(call, _rotate_checkpoints if checkpoints else _rotate)
    show_one(call, made, f"key {made['kid']} is published and signs from {made['active_from']} on")


async def _rotate(plane: "Plane") -> dict[str, Any]:
    from jobengine.audit.actions import Action
    from jobengine.audit.model import Resource
    from jobengine.authority.master_key import Label
    from jobengine.cli.installation import PLATFORM, record
    from jobengine.storage.authority import rotate_signing_keys

    # The log is opened first: where it cannot be written, nothing is rotated.
    async with plane.database.transaction(PLATFORM) as tx:
        key = await rotate_signing_keys(plane.database, plane.master.derive(Label.KEK))
        made = {"kid": key.kid, "active_from": format_time(key.active_from)}
        await record(tx, Action.KEY_ROTATED, Resource("key", key.kid), made)
    return made


async def _rotate_checkpoints(plane: "Plane") -> dict[str, Any]:
    from jobengine.audit.actions import Action
    from jobengine.audit.model import Resource
    from jobengine.authority.master_key import Label
    from jobengine.cli.installation import PLATFORM, record
    from jobengine.storage.authority import rotate_checkpoint_key

    async with plane.database.transaction(PLATFORM) as tx:
        async with plane.database.system() as keys:
            key = await rotate_checkpoint_key(keys, plane.master.derive(Label.KEK))
        made = {"kid": key.kid, "active_from": format_time(key.active_from)}
        await record(tx, Action.KEY_ROTATED, Resource("checkpoint_key", key.kid), made)
    return made
