"""Checking a whole log: every entry against its leaf, every leaf against the tree, the tree against its signed head."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jobengine.audit.actions import Action
from jobengine.audit.anchors import read_anchors
from jobengine.audit.checkpoint import Checkpoint, NoteError
from jobengine.audit.merkle import Frontier, Node, leaf_hash, new_nodes
from jobengine.audit.model import Opening, mismatches, restore
from jobengine.audit.signing import LogKeys
from jobengine.clock import format_time
from jobengine.storage.anchor_check import Damage, check_anchored_logs, check_own_anchor
from jobengine.storage.audit import PAGE_ENTRIES, LogHead, Page, read_head, read_page
from jobengine.storage.audit_proofs import read_nodes
from jobengine.storage.database import Database
from jobengine.tenancy.model import PLATFORM

_MOST_UNPLACED = 1_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check of the whole log found: *entries* leaves, over which *root_hash* is the root.

    *first_bad* is the first place in the tree that is not as it was sealed. It is None for an intact log, and where
    no entry can be named: a forged head, or a damaged node above good leaves. *problem* says in words what is wrong.
    """

    entries: int
    root_hash: bytes
    first_bad: int | None
    problem: str | None

    @property
    def ok(self) -> bool:
        """Tell whether everything is as it was sealed."""
        return self.problem is None


async def check_log(database: Database, tenant_id: str, keys: LogKeys) -> Verdict:
    """Recompute the whole tree from the stored leaves, in short transactions, and compare it with all that is stored.

    A tenant's log is compared with its newest anchor in the platform's log as well, and the platform's log with the
    logs that are anchored in it. Raises NotFound where there is no log.
    """
    async with database.transaction(tenant_id) as tx:
        head = await read_head(tx)
    reading = _Reading(database, tenant_id)
    await reading.run(head.size)
    found = [*_check_head(head, reading.tree, keys), *await _find_lost(database, tenant_id, head)]
    found += await check_own_anchor(database, tenant_id, head)
    found += await check_anchored_logs(database, reading.anchors)
    if head.stuck_because and not (found or reading.bad_entry or reading.bad_node):
        found.append(Damage(head.size, f"the log cannot go on: {head.stuck_because}"))
    if reading.bad_node:
        # Under a root that was signed the leaves are good: then it is the node itself that was changed.
        found.append(reading.bad_node if found else Damage(None, reading.bad_node.problem))
    if reading.bad_entry:
        found.append(reading.bad_entry)
    found.sort(key=lambda damage: (damage.place is None, damage.place or 0))
    first = found[0] if found else Damage(None, "")
    return Verdict(reading.tree.size, reading.tree.root(), first.place, first.problem or None)


class _Reading:
    """One pass over a log; of the damage in it the first is kept."""

    def __init__(self, database: Database, tenant_id: str) -> None:
        self.tree = Frontier()
        self.bad_entry: Damage | None = None
        self.bad_node: Damage | None = None
        self.anchors: dict[str, Checkpoint] = {}
        self._database = database
        self._tenant_id = tenant_id

    async def run(self, size: int) -> None:
        for first in range(0, size, PAGE_ENTRIES):
            end = min(first + PAGE_ENTRIES, size)
            async with self._database.transaction(self._tenant_id) as tx:
                page = await read_page(tx, first, end)
                # After the texts: one that is gone by then was told of by then.
                told = await tx.all("audit_erasures", entry_ids=[row["entry_id"] for row in page.rows])
                grown, nodes = new_nodes(self.tree, [leaf_hash(row["leaf"] or b"") for row in page.rows])
                stored = await read_nodes(tx, list(nodes))
            if not page.rows:  # a size that nobody signed may be anything
                return
            self.anchors.update(_anchors(page))
            if not self.bad_entry and not self.bad_node:
                self._check(page, nodes, stored, frozenset(row["entry_id"] for row in told))
            self.tree = grown

    def _check(
        self, page: Page, nodes: Mapping[Node, bytes], stored: Mapping[Node, bytes], erased: Collection[object]
    ) -> None:
        end = self.tree.size + len(page.rows)
        for place, row in enumerate(page.rows, self.tree.size):
            openings, may_lack = page.openings_of(row), row["entry_id"] in erased
            if problem := _entry_problem(row, place, self._tenant_id, openings, may_lack=may_lack):
                self.bad_entry = Damage(place, f"entry {row['entry_id']} at {place}: {problem}")
                end = place
                break
        # Nodes before a bad entry may be wrong as well: a leaf that was changed with care shows in them alone.
        wrong = [node for node in nodes if stored.get(node) != nodes[node] and _leaves(node).stop <= end]
        if wrong:
            leaves = _leaves(min(wrong))
            problem = f"the node over the entries {leaves.start} to {leaves.stop - 1} is not the one in the tree"
            self.bad_node = Damage(leaves.start, problem)


def _anchors(page: Page) -> dict[str, Checkpoint]:
    """Return the newest anchor of each log on the page, by origin."""
    found: dict[str, Checkpoint] = {}
    for row in page.rows:
        if row["action"] == Action.LOG_ANCHORED and row["leaf"] is not None:
            with suppress(ValueError):
                found |= {anchor.origin: anchor for anchor in read_anchors(row["leaf"])}
    return found


def _leaves(node: Node) -> range:
    level, index = node
    return range(index << level, index + 1 << level)


def _entry_problem(
    row: Mapping[str, Any], place: int, tenant_id: str, openings: Sequence[Opening], *, may_lack: bool
) -> str | None:
    if row["sequence"] != place:
        return "it stands where another entry is missing"
    if row["leaf"] is None:
        return "it is gone"
    if not leaf_hash(row["leaf"]) == row["leaf_hash"] == row["tree_hash"]:
        return "its leaf is not the one in the tree"
    try:
        closed = mismatches(row["leaf"], openings)
        view = restore(row["leaf"], openings, place)
    except (ValueError, RecursionError):
        return "its leaf is not that of an audit entry"
    if closed:
        return f"the text of {closed[0]} is not the one that was written"
    if "erased" in view and not may_lack:
        return f"the text of {view['erased'][0]} is gone, and no entry tells of its erasing"
    stored = _as_stored(row, tenant_id, view)
    differing = [name for name in stored if stored[name] != view[name]]
    return f"{differing[0]} beside the leaf is not what the leaf says" if differing else None


def _as_stored(row: Mapping[str, Any], tenant_id: str, view: Mapping[str, Any]) -> dict[str, object]:
    """Return the members of the entry that are also columns, as the columns have them."""
    actor, resource = view["actor"], {"type": row["resource_type"], "id": row["resource_id"]}
    return {
        "entry_id": str(row["entry_id"]),
        "tenant_id": None if tenant_id == PLATFORM else tenant_id,
        "occurred_at": _time(row["occurred_at"]),
        "action": row["action"],
        "actor": {**(actor if isinstance(actor, dict) else {}), "id": row["actor_id"]},
        "resource": resource if any(resource.values()) else None,
        "outcome": row["outcome"],
        "token_id": row["token_id"],
    }


def _time(text: str) -> str | None:
    try:
        return format_time(datetime.fromisoformat(text))
    except (ValueError, OverflowError):  # infinity, or a year beyond 9999
        return None


def _check_head(head: LogHead, tree: Frontier, keys: LogKeys) -> list[Damage]:
    found: list[Damage] = []
    if tree.size < head.size:
        found.append(Damage(tree.size, f"the tree ends at {tree.size}, its head says {head.size}"))
    elif (tree.root(), tree.hashes) != (head.root_hash, head.frontier):
        found.append(Damage(None, "the entries are not those of the head"))
    if head.placed > head.size:
        found.append(Damage(head.size, f"the tree goes on beyond the {head.size} entries of its head"))
    if not _is_signed(head, keys):
        found.append(Damage(None, "the head is not signed by the log's key"))
    return found


def _is_signed(head: LogHead, keys: LogKeys) -> bool:
    if head.size == 0 and not head.checkpoint:
        return True
    try:
        checkpoint = keys.read(head.checkpoint)
    except NoteError:
        return False
    return (checkpoint.origin, checkpoint.size, checkpoint.root) == (head.origin, head.size, head.root_hash)


async def _find_lost(database: Database, tenant_id: str, head: LogHead) -> list[Damage]:
    """Look for an entry that is stored, but neither in the tree nor waiting: the log was cut off behind an old head."""
    async with database.transaction(tenant_id) as tx:
        unplaced = [row["entry_id"] for row in await tx.all("audit_unplaced", most=_MOST_UNPLACED)]
    if not unplaced:
        return []
    async with database.system() as tx:
        rows = await tx.all("system_find_known", log=tenant_id, entry_ids=unplaced)
    lost = sorted({*unplaced} - {row["entry_id"] for row in rows})
    return [Damage(head.size, f"entry {lost[0]} has neither a place in the tree nor waits for one")] if lost else []
