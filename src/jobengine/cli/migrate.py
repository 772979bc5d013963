"""``jobengine migrate``: the schema of this release."""

from typing import TYPE_CHECKING

from cyclopts import App, Parameter

from jobengine.cli.call import TheCall
from jobengine.cli.show import show_one

if TYPE_CHECKING:
    from jobengine.cli.installation import Plane

app = App(name="migrate", default_parameter=Parameter(negative=()))


@app.default
def migrate(*, call: TheCall) -> None:
    """Bring the database to the schema of this release; a database that is there already is left as it is."""
    from jobengine.cli.installation import with_plane

    async def work(plane: "Plane") -> str:
        async with plane.database.system() as tx:
            return str((await tx.one("system_ready"))["version_num"])

    revision = with_plane(call, work)
    show_one(call, {"revision": revision}, f"the database is at {revision}")
