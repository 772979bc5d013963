"""The HTTP application: routes, guards and problem documents wired together."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.types import ControllerRouterHandler

from jobengine import __version__
from jobengine.bootstrap import Plane
from jobengine.web.admissions import admissions
from jobengine.web.allocations import allocations
from jobengine.web.attempts import attempts
from jobengine.web.audit import audit
from jobengine.web.audit_export import audit_export
from jobengine.web.audit_tokens import audit_tokens
from jobengine.web.audit_witnessed import audit_witnessed
from jobengine.web.backfills import backfills
from jobengine.web.batches import batches
from jobengine.web.edge import StrictRequest, authorize, provide_edge
from jobengine.web.exact_paths import exact_paths
from jobengine.web.health import health
from jobengine.web.oauth import oauth
from jobengine.web.observe import observed
from jobengine.web.openapi import openapi
from jobengine.web.overrides import overrides
from jobengine.web.policy import policy
from jobengine.web.problems import HANDLERS
from jobengine.web.quota_changes import quota_changes
from jobengine.web.quota_use import quota_use
from jobengine.web.quotas import quotas
from jobengine.web.short_way import short_way
from jobengine.web.simulation import simulation

MAX_BODY_BYTES = 2**20

SUBJECTS: Sequence[ControllerRouterHandler] = (
    quotas,
    quota_use,
    overrides,
    simulation,
    allocations,
    quota_changes,
    policy,
    admissions,
    backfills,
    batches,
    attempts,
    audit,
    audit_export,
    audit_tokens,
    audit_witnessed,
)
ROOT: Sequence[ControllerRouterHandler] = (health, openapi, oauth)


def make_app(opened: Callable[[], AbstractAsyncContextManager[Plane]]) -> Litestar:
    """Return the application; *opened* gives the ready plane for as long as it serves."""

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncGenerator[None]:
        async with opened() as plane:
            app.state.plane = plane
            yield

    api = Router(
        "/api/v1",
        route_handlers=list(SUBJECTS),
        before_request=authorize,
        dependencies={"edge": Provide(provide_edge)},
    )
    app = Litestar(
        route_handlers=[api, *ROOT],
        lifespan=[lifespan],
        state=State(),
        request_class=StrictRequest,
        request_max_body_size=MAX_BODY_BYTES,
        exception_handlers=HANDLERS,
        openapi_config=OpenAPIConfig(title="jobengine", version=__version__, path="/docs"),
        logging_config=None,
    )
    # Around everything, so that what no route takes is seen too.
    app.asgi_handler = observed(short_way(exact_paths(app.asgi_handler)))
    return app
