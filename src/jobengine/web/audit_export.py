"""Exports of the audit log, each of them recorded in it; and erasing the texts of an entry."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Final

from litestar import Response, Router, get, post
from litestar.params import Parameter
from litestar.response import Stream

from jobengine.audit.act import Act
from jobengine.audit.actions import Action
from jobengine.audit.model import Resource
from jobengine.clock import format_time, utc_now
from jobengine.errors import Malformed, Unauthenticated, ValidationFailed
from jobengine.storage.audit import PostgresAudit, read_head
from jobengine.storage.audit_export import Export, Format, export_log
from jobengine.storage.database import Transaction
from jobengine.storage.erasure import erase
from jobengine.tenancy.model import PLATFORM, Family
from jobengine.web.audit import AUDIT, EntryView, Log, Time, note_of, of_log
from jobengine.web.edge import Answer, Edge, known_id, needs
from jobengine.web.fields import Nothing
from jobengine.web.times import read_time

NDJSON: Final = "application/x-ndjson"
# The type of each format, and what its file is called.
_FILES: Final = {
    Format.NDJSON: (NDJSON, ".ndjson"),
    Format.CSV: ("text/csv; charset=utf-8; header=present", ".csv"),
    Format.OCSF: (NDJSON, ".ocsf.ndjson"),
    Format.TILES: ("application/octet-stream", ".tiles"),
}

FirstPlace = Annotated[
    int | None,
    Parameter(ge=0, description="Go on with the entry in this place, as after a break: nothing comes before it."),
]
Size = Annotated[
    int | None, Parameter(ge=0, description="With `first`: the size in the checkpoint of the export that broke off.")
]


@get("/audit/export", opt=AUDIT, media_type=NDJSON)
async def export_audit_log(  # noqa: PLR0917 - query parameters, always by name
    edge: Edge,
    log: Log = None,
    format: Format = Format.NDJSON,  # noqa: A002 - its name in the query
    action: Action | None = None,
    since: Time = None,
    until: Time = None,
    first: FirstPlace = None,
    size: Size = None,
) -> Stream:
    """Export the log as it is now, for `jobengine-verify`, for people (`csv`) or for other tools (`ocsf`).

    With a filter the other entries stand as their hashes alone, so that nothing can be left out unseen. `tiles` are the
    leaf hashes of all entries. That it was exported is recorded first.
    """
    edge = of_log(edge, log)
    asked = Export(
        size=0 if size is None else size,
        note="",
        format=format,
        first=first,
        action=action and action.value,
        since=None if since is None else read_time("since", since),
        until=None if until is None else read_time("until", until),
    )
    if format is Format.TILES and asked.is_filtered:
        raise ValidationFailed("format", "tiles are of all entries: leave the filter out")
    if (first is None) != (size is None):
        raise ValidationFailed("first", "goes with size, and size with first")
    wanted = await _record_export(edge, asked)
    media_type, ending = _FILES[format]
    name = f"audit-{edge.tenant_id.removeprefix('_')}{ending}"
    headers = {
        # As a header, because the route's own type would win.
        "Content-Type": media_type,
        "Content-Disposition": f'attachment; filename="{name}"',
        "Cache-Control": "no-store",
    }
    return Stream(stream_export(edge, wanted), headers=headers)


async def stream_export(edge: Edge, wanted: Export) -> AsyncGenerator[bytes]:
    """Yield an export; raises Unauthenticated when the token ends before it does.

    The error breaks the connection off, so that a part of an export cannot pass for a whole one.
    """
    principal = edge.principal
    async with aclosing(export_log(edge.plane.database, edge.tenant_id, wanted)) as chunks:
        async for chunk in chunks:
            revoked = edge.plane.revocations.refuse(principal.token_id, principal.client_id)
            if revoked or utc_now() >= principal.expires_at:
                raise Unauthenticated("the access token ended before the export did", code="invalid_token")
            yield chunk


async def _record_export(edge: Edge, asked: Export) -> Export:
    async with edge.plane.database.transaction(edge.tenant_id) as tx:
        head = await read_head(tx)
        if asked.first is not None and not asked.first <= asked.size <= head.size:
            raise ValidationFailed("size", f"must be a number of entries from first to {head.size}")
        size = head.size if asked.first is None else asked.size
        said = {
            "entries": size,
            "root_hash": head.root_hash.hex() if size == head.size else None,
            "format": asked.format.value,
            "first": asked.first,
            "action": asked.action,
            "since": asked.since and format_time(asked.since),
            "until": asked.until and format_time(asked.until),
        }
        entry = Act(edge.principal, tx.tenant_id, edge.trace_id, tx.now).entry(
            Action.AUDIT_EXPORTED,
            Resource("audit_log", head.origin),
            # Only the platform's log is read under a reason: that of the governor.
            family=Family.QUOTA if tx.tenant_id == PLATFORM else None,
            properties={name: value for name, value in said.items() if value is not None},
        )
        await PostgresAudit(tx).record(entry)
        return replace(asked, size=size, note=note_of(edge, head))


@post("/audit/entries/{entry_id:str}/erase", opt=needs("orch:govern"), status_code=200)
async def erase_audit_texts(
    edge: Edge,
    entry_id: str,
    log: Log = None,
    data: Nothing | None = None,  # noqa: ARG001 - read so that a body that says something is refused
) -> Response[EntryView]:
    """Erase reason and ticket of an entry for ever, wherever they are shown; the entry and its proofs stay."""

    async def work(tx: Transaction, act: Act) -> Answer:
        if not act.principal.intents.get("quota_reason"):
            raise Malformed("the token carries no quota_reason", code="quota_reason_required")
        return Answer(200, await erase(tx, act, known_id(entry_id, "audit entry")))

    return await of_log(edge, log).change(work)


audit_export = Router("/", route_handlers=[export_audit_log, erase_audit_texts], tags=["audit"])
