"""Checkpoints that witnesses outside have signed as well."""

from litestar import MediaType, Response, Router, get

from jobengine.errors import NotFound
from jobengine.storage.witnesses import cosigned_note
from jobengine.web.audit import AUDIT, TEXT, Log, of_log
from jobengine.web.edge import Edge


@get("/audit/checkpoint/witnessed", opt=AUDIT, media_type=MediaType.TEXT)
async def get_witnessed_checkpoint(edge: Edge, log: Log = None) -> Response[str]:
    """Show the newest checkpoint that a witness cosigned, with its line; the log may have grown since."""
    edge = of_log(edge, log)
    async with edge.plane.database.transaction(edge.tenant_id) as tx:
        note = await cosigned_note(tx)
    if note is None:
        raise NotFound("no witness has cosigned this log")
    return Response(note, media_type=TEXT)


audit_witnessed = Router("/", route_handlers=[get_witnessed_checkpoint], tags=["audit"])
