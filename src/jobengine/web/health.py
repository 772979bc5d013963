"""Whether the process lives, and whether it can serve."""

from typing import Any

from litestar import Request, Router, get

from jobengine.bootstrap import Plane
from jobengine.storage.readiness import require_ready
from jobengine.web.metrics import metrics


@get("/healthz")
async def healthz() -> dict[str, str]:
    """Tell that the process is up."""
    return {"status": "ok"}


@get("/readyz")
async def readyz(request: Request[Any, Any, Any]) -> dict[str, str]:
    """Tell whether database, migrations and sequencer are ready; 503 otherwise."""
    plane: Plane = request.app.state.plane
    await require_ready(plane.database)
    return {"status": "ready"}


health = Router("/", route_handlers=[healthz, readyz, metrics], tags=["health"])
