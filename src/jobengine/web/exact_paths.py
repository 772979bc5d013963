"""One address for each thing: the framework would answer `/quotas/` and `//quotas` like `/quotas`."""

from typing import Final

from litestar.types import ASGIApp, Receive, Scope, Send
from litestar.utils.path import normalize_path

# No route begins so: whoever is sent there gets the answer to every unknown path.
_NOWHERE: Final = "/-/"


def exact_paths(app: ASGIApp) -> ASGIApp:
    """Return *app* with paths as they are sent: one that says a route in other words is unknown."""

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != normalize_path(scope["path"]):
            scope["path"] = _NOWHERE
        await app(scope, receive, send)

    return handle
