"""The audit log: reading it, proving from it, checking it. There is no way to change it."""

import re
from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
from litestar import MediaType, Response, Router, get
from litestar.openapi.spec import OpenAPIType
from litestar.params import Parameter, QueryParameter

from jobengine.audit.actions import Action, Outcome
from jobengine.audit.checkpoint import Checkpoint
from jobengine.audit.merkle import EMPTY_ROOT
from jobengine.audit.tiles import TILE_WIDTH, Tile, parse_tile
from jobengine.errors import InsufficientScope, NotFound, ValidationFailed
from jobengine.storage.audit import EntryFilter, LogHead, get_entry, list_entries, read_head
from jobengine.storage.audit_check import check_log
from jobengine.storage.audit_proofs import prove_consistency, prove_inclusion, read_tile
from jobengine.storage.database import Transaction
from jobengine.storage.witnesses import cosignatures_of
from jobengine.tenancy.model import GOVERN, PLATFORM
from jobengine.web.edge import Edge, known_id, needs
from jobengine.web.pages import DEFAULT_SIZE, PageSize, PageToken
from jobengine.web.times import read_time

AUDIT = needs("orch:audit")
TEXT = "text/plain"
_SIZE = re.compile(r"[0-9]{1,18}")
FOR_EVER = "private, max-age=31536000, immutable"

Log = Annotated[
    Literal["platform"] | None,
    Parameter(description="`platform` names the platform's own log, which needs `orch:govern`; else the tenant's."),
]
Text = Annotated[str | None, Parameter(max_length=256)]
# Read by hand: the framework would name it in errors as the argument is called, which cannot be `from`.
EarlierSize = Annotated[
    str | None,
    QueryParameter(
        name="from",
        description="The size of an earlier checkpoint.",
        schema_extra={"one_of": None, "type": OpenAPIType.INTEGER},
    ),
]
Time = Annotated[str | None, Parameter(description="RFC 3339, in UTC with `Z`.")]


class ActorView(msgspec.Struct):
    """Who did it."""

    type: Literal["client", "operator", "system"]
    id: str
    client_id: str | None


class ResourceView(msgspec.Struct):
    """What it was done to."""

    type: str
    id: str


class EntryView(msgspec.Struct):
    """One entry; *sequence* is null until it has its place in the tree, a second at the most."""

    entry_id: str
    tenant_id: str | None
    sequence: int | None
    occurred_at: str
    action: Action
    actor: ActorView
    resource: ResourceView | None
    outcome: Outcome
    reason: str | None
    ticket: str | None
    token_id: str | None
    properties: dict[str, Any]
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    trace_id: str | None
    leaf_hash: str
    erased: list[str] | msgspec.UnsetType = msgspec.UNSET
    tampered: list[str] | msgspec.UnsetType = msgspec.UNSET


class EntryPage(msgspec.Struct):
    """A page of entries, oldest first."""

    items: list[EntryView]
    next_page_token: str | None


class InclusionView(msgspec.Struct):
    """That an entry is in the log (RFC 9162 section 2.1.3); hashes in hexadecimal."""

    leaf_index: int
    tree_size: int
    root_hash: str
    hashes: list[str]
    checkpoint: str


class ConsistencyView(msgspec.Struct):
    """That the log of *to* entries continues that of *from* (RFC 9162 section 2.1.4); the checkpoint is the newest."""

    from_: int = msgspec.field(name="from")
    from_root_hash: str
    to: int
    to_root_hash: str
    hashes: list[str]
    checkpoint: str


class VerdictView(msgspec.Struct):
    """What a check of the whole log found; *first_bad* is the first place in the tree that is not as it was sealed."""

    ok: bool
    entries: int
    root_hash: str
    first_bad: int | None
    problem: str | None


@get("/audit/entries", opt=AUDIT)
async def list_audit_entries(  # noqa: PLR0917 - query parameters, always by name
    edge: Edge,
    log: Log = None,
    action: Action | None = None,
    resource_type: Text = None,
    resource_id: Text = None,
    actor: Text = None,
    since: Time = None,
    until: Time = None,
    page_size: PageSize = DEFAULT_SIZE,
    page_token: PageToken = None,
) -> Response[EntryPage]:
    """List entries, oldest first; since is inclusive, until is not."""
    edge = of_log(edge, log)
    wanted = EntryFilter(
        action=action and action.value,
        resource_type=resource_type,
        resource_id=resource_id,
        actor=actor,
        since=None if since is None else read_time("since", since),
        until=None if until is None else read_time("until", until),
    )
    pager = edge.pager(wanted=wanted)
    after = int(pager.cursor(page_token) or -1)

    async def work(tx: Transaction) -> object:
        found = await list_entries(tx, wanted, after=after, most=page_size + 1)
        return pager.page(found, page_size, [str(entry["sequence"]) for entry in found])

    return await edge.read(work)


@get("/audit/entries/{entry_id:str}", opt=AUDIT)
async def get_audit_entry(edge: Edge, entry_id: str, log: Log = None) -> Response[EntryView]:
    """Show an entry, in its place or still without one."""

    async def work(tx: Transaction) -> object:
        return await get_entry(tx, known_id(entry_id, "audit entry"))

    return await of_log(edge, log).read(work)


@get("/audit/entries/{entry_id:str}/proof", opt=AUDIT)
async def prove_audit_entry(edge: Edge, entry_id: str, log: Log = None) -> Response[InclusionView]:
    """Prove that an entry is in the log."""

    async def work(tx: Transaction) -> object:
        proof = await prove_inclusion(tx, known_id(entry_id, "audit entry"))
        head = proof.head
        hashes = [hashed.hex() for hashed in proof.hashes]
        return InclusionView(proof.leaf_index, head.size, head.root_hash.hex(), hashes, head.checkpoint)

    return await of_log(edge, log).read(work)


@get("/audit/consistency", opt=AUDIT)
async def prove_audit_consistency(
    edge: Edge,
    from_: EarlierSize = None,
    to: Annotated[int | None, Parameter(ge=0, description="A later one's; if left out, the newest.")] = None,
    log: Log = None,
) -> Response[ConsistencyView]:
    """Prove that the log only grew between two checkpoints."""
    edge = of_log(edge, log)
    if from_ is None or not _SIZE.fullmatch(from_):
        raise ValidationFailed("from", "must be the size of an earlier checkpoint")
    from_size = int(from_)

    async def work(tx: Transaction) -> object:
        proof = await prove_consistency(tx, from_size, to)
        return ConsistencyView(
            from_=proof.from_size,
            from_root_hash=proof.from_root.hex(),
            to=proof.to_size,
            to_root_hash=proof.to_root.hex(),
            hashes=[hashed.hex() for hashed in proof.hashes],
            checkpoint=note_of(edge, proof.head),
        )

    return await edge.read(work)


@get("/audit/checkpoint", opt=AUDIT, media_type=MediaType.TEXT)
async def get_checkpoint(edge: Edge, log: Log = None) -> Response[str]:
    """Show the log's signed head, a C2SP checkpoint; a witness that cosigned just this head stands beneath."""
    edge = of_log(edge, log)
    async with edge.plane.database.transaction(edge.tenant_id) as tx:
        head = await read_head(tx)
        lines = await cosignatures_of(tx, head)
    return Response(note_of(edge, head) + lines, media_type=TEXT)


@get("/audit/verifier-key", opt=AUDIT, media_type=MediaType.TEXT)
async def get_verifier_key(edge: Edge, log: Log = None) -> Response[str]:
    """Show the key that verifies the log's checkpoints, one C2SP vkey line."""
    edge = of_log(edge, log)
    head = await _head(edge)
    return Response(f"{edge.plane.verifier_key(head.origin)}\n", media_type=TEXT)


@get("/audit/tile/{path:path}", opt=AUDIT, media_type="application/octet-stream")
async def get_tile(edge: Edge, path: str, log: Log = None) -> Response[bytes]:
    """Show a tile of the tree (C2SP tlog-tiles); a full one never changes."""
    tile = _tile(path.removeprefix("/"))
    edge = of_log(edge, log)
    async with edge.plane.database.transaction(edge.tenant_id) as tx:
        content = await read_tile(tx, tile)
    headers = {"Cache-Control": FOR_EVER if tile.width == TILE_WIDTH else "no-cache"}
    return Response(content, media_type="application/octet-stream", headers=headers)


@get("/audit/verify", opt=AUDIT)
async def verify_audit_log(edge: Edge, log: Log = None) -> VerdictView:
    """Recompute the whole log and compare it with what is stored and signed."""
    edge = of_log(edge, log)
    found = await check_log(edge.plane.database, edge.tenant_id, edge.plane.log_keys())
    return VerdictView(found.ok, found.entries, found.root_hash.hex(), found.first_bad, found.problem)


def of_log(edge: Edge, log: Literal["platform"] | None) -> Edge:
    """Return the edge of the log that is asked for; raises InsufficientScope."""
    if log is None:
        return edge
    if not edge.principal.has(GOVERN):
        raise InsufficientScope(f"the platform's log needs the scope {GOVERN}", required_scope=GOVERN)
    return replace(edge, tenant_id=PLATFORM)


async def _head(edge: Edge) -> LogHead:
    async with edge.plane.database.transaction(edge.tenant_id) as tx:
        return await read_head(tx)


def note_of(edge: Edge, head: LogHead) -> str:
    """Return the log's signed head."""
    # Nothing that the database says is signed here but this: that a log begins empty.
    if head.size == 0 and not head.checkpoint:
        return edge.plane.sign_checkpoint(Checkpoint(head.origin, 0, EMPTY_ROOT))
    return head.checkpoint


def _tile(path: str) -> Tile:
    try:
        return parse_tile(path)
    except ValueError:
        raise NotFound("there is no such tile") from None


audit = Router(
    "/",
    route_handlers=[
        list_audit_entries, get_audit_entry, prove_audit_entry, prove_audit_consistency, get_checkpoint,
        get_verifier_key, get_tile, verify_audit_log,
    ],
    tags=["audit"],
)  # fmt: skip
