"""Whether logs are still those that the platform's log has seen: one set back or rewritten is not."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Final

from jobengine.audit.anchors import read_anchors
from jobengine.audit.checkpoint import Checkpoint
from jobengine.audit.merkle import Frontier, Node, frontier_nodes, leaf_hash
from jobengine.errors import JobengineError
from jobengine.storage.audit import LogHead
from jobengine.storage.audit_proofs import root_at
from jobengine.storage.database import Database, Transaction
from jobengine.tenancy.model import PLATFORM

_AT_ONCE: Final = 256


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that is not as it was sealed, from *place* in the tree on; None where no place can be told."""

    place: int | None
    problem: str


async def check_own_anchor(database: Database, tenant_id: str, head: LogHead) -> list[Damage]:
    """Compare a log with its newest anchor, as the platform's log holds it."""
    if head.anchored_in is None:
        return []
    async with database.transaction(PLATFORM) as tx:
        row = await tx.find("audit_get", entry_id=head.anchored_in)
    anchors: dict[str, Checkpoint] = {}
    if row is not None and row["tree_hash"] in {None, leaf_hash(row["leaf"])}:
        with suppress(ValueError):
            anchors = {anchor.origin: anchor for anchor in read_anchors(row["leaf"])}
    anchor = anchors.get(head.origin)
    if anchor is None or anchor.size != head.anchored_size:
        return [Damage(None, "the platform's log does not hold the anchor that is noted for this log")]
    if head.size < anchor.size:
        return [Damage(head.size, f"the log was set back: the platform's log saw {anchor.size} entries")]
    async with database.transaction(tenant_id) as tx:
        root = await _root_at(tx, anchor.size)
    return [] if root == anchor.root else [Damage(None, _contradiction(anchor))]


async def _root_at(tx: Transaction, size: int) -> bytes | None:
    try:
        return await root_at(tx, size)
    except JobengineError:
        return None


async def check_anchored_logs(database: Database, anchors: Mapping[str, Checkpoint]) -> list[Damage]:
    """Compare every log with its newest anchor, by origin; the first that contradicts is told."""
    waiting = iter(anchors.values())
    while some := list(islice(waiting, _AT_ONCE)):
        async with database.system() as tx:
            if (problem := await _first_contradiction(tx, some)) is not None:
                return [Damage(None, problem)]
    return []


async def _first_contradiction(tx: Transaction, anchors: list[Checkpoint]) -> str | None:
    rows = await tx.all("system_find_logs", origins=[anchor.origin for anchor in anchors])
    logs = {row["origin"]: row for row in rows}
    for anchor in anchors:
        if anchor.origin not in logs:
            return f"the log {anchor.origin} is gone, of which {anchor.size} entries are anchored"
        if (size := logs[anchor.origin]["size"]) < anchor.size:
            return f"the log {anchor.origin} was set back from {anchor.size} to {size} entries"
    names = {anchor.origin: str(logs[anchor.origin]["tenant_id"]) for anchor in anchors}
    roots = await _roots(tx, {names[anchor.origin]: anchor.size for anchor in anchors})
    for anchor in anchors:
        if roots.get(names[anchor.origin]) != anchor.root:
            return _contradiction(anchor)
    return None


async def _roots(tx: Transaction, sizes: Mapping[str, int]) -> dict[str, bytes]:
    """Return the root of each log over its first so many entries; a log without the nodes for it is left out."""
    wanted = [(log, *node) for log, size in sizes.items() for node in frontier_nodes(size)]
    rows = await tx.all(
        "system_find_nodes",
        logs=[log for log, _, _ in wanted],
        levels=[level for _, level, _ in wanted],
        indices=[index for _, _, index in wanted],
    )
    stored: dict[str, dict[Node, bytes]] = {log: {} for log in sizes}
    for row in rows:
        stored[row["tenant_id"]][row["level"], row["index"]] = row["hash"]
    roots: dict[str, bytes] = {}
    for log, size in sizes.items():
        with suppress(KeyError, ValueError):
            roots[log] = Frontier(size, tuple(stored[log][node] for node in frontier_nodes(size))).root()
    return roots


def _contradiction(anchor: Checkpoint) -> str:
    return f"the log {anchor.origin} is not the one whose first {anchor.size} entries the platform's log saw"
