"""The audit log by token: the whole story of one, and what has no story."""

from typing import Annotated

import msgspec
from litestar import Response, Router, get
from litestar.params import Parameter

from jobengine.errors import NotFound
from jobengine.storage.audit_tokens import FIRST, Kind, Place, list_orphans, list_uses, tell_story
from jobengine.storage.database import Transaction
from jobengine.web.audit import AUDIT, EntryView, Log, of_log
from jobengine.web.edge import Edge
from jobengine.web.pages import DEFAULT_SIZE, PageSize, PageToken

_LONGEST_ID = 256

OfKind = Annotated[Kind | None, Parameter(description="Only of this kind.")]


class OrphanView(msgspec.Struct):
    """The grant of a token with a reason that was never used, or a change under a token that nobody granted."""

    kind: Kind
    token_id: str
    entry: EntryView


class OrphanPage(msgspec.Struct):
    """A page of orphans; it may be short, and even empty, although there are more."""

    items: list[OrphanView]
    next_page_token: str | None


class StoryPage(msgspec.Struct):
    """Who asked for a token and why (*grant*), how many acts under it ended how, and a page of its entries."""

    token_id: str
    grant: EntryView | None
    granted_elsewhere: bool
    done: int
    refused: int
    failed: int
    items: list[EntryView]
    next_page_token: str | None


@get("/audit/orphans", opt=AUDIT)
async def list_audit_orphans(
    edge: Edge,
    kind: OfKind = None,
    log: Log = None,
    page_size: PageSize = DEFAULT_SIZE,
    page_token: PageToken = None,
) -> Response[OrphanPage]:
    """List tokens with a reason that were never used, and changes under tokens that nobody granted."""
    edge = of_log(edge, log)
    pager = edge.pager(kind=kind)
    at = pager.cursor(page_token)
    place = Place(kind or Kind.TOKEN_UNUSED) if at is None else Place(Kind(at.split()[0]), at.split()[1])

    async def work(tx: Transaction) -> object:
        found, then = await list_orphans(tx, edge.plane.database, place, most=page_size)
        more = then is not None and kind in {None, then.kind}
        following = pager.token(f"{then.kind} {then.entry_id}") if then is not None and more else None
        return {"items": [orphan for orphan in found if kind in {None, orphan.kind}], "next_page_token": following}

    return await edge.read(work)


@get("/audit/trace/{token_id:str}", opt=AUDIT)
async def trace_token(
    edge: Edge,
    token_id: str,
    log: Log = None,
    page_size: PageSize = DEFAULT_SIZE,
    page_token: PageToken = None,
) -> Response[StoryPage]:
    """Tell the story of a token: who asked for it and why, what was done with it, and what was refused."""
    if len(token_id) > _LONGEST_ID:
        raise NotFound("there is no such token")
    edge = of_log(edge, log)
    pager = edge.pager()
    after = pager.cursor(page_token) or FIRST

    async def work(tx: Transaction) -> object:
        story = await tell_story(tx, edge.plane.database, token_id)
        found = await list_uses(tx, token_id, after=after, most=page_size + 1)
        page = pager.page(found, page_size, [entry["entry_id"] for entry in found])
        told = {name: getattr(story, name) for name in ("grant", "granted_elsewhere", "done", "refused", "failed")}
        return {"token_id": token_id, **told, **page}

    return await edge.read(work)


audit_tokens = Router("/", route_handlers=[list_audit_orphans, trace_token], tags=["audit"])
