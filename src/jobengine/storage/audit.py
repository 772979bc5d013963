"""The audit log: intake in the business transaction, and reading."""

import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from jobengine.audit.merkle import leaf_hash
from jobengine.audit.model import SALT_BYTES, AuditEntry, Opening, SealedEntry, restore, seal, withheld
from jobengine.errors import NotFound
from jobengine.metrics import ENTRIES
from jobengine.storage.arrays import text_array
from jobengine.storage.database import Transaction
from jobengine.tenancy.model import PLATFORM

# Few enough that reading and checking them does not hold up everything else in the process for long.
PAGE_ENTRIES = 100


@dataclass(frozen=True, slots=True)
class PostgresAudit:
    """The AuditIntake of one transaction: the entry commits with what it tells of, or not at all.

    It is stored with whatever the transaction asks next, or with its commit: no entry waits for the database by itself.
    Where the tenant has no log, that raises Unavailable and all is rolled back.
    """

    tx: Transaction

    async def record(self, entry: AuditEntry) -> SealedEntry:
        """Seal *entry*, and store it before the transaction does anything else."""
        if (entry.tenant_id or PLATFORM) != self.tx.tenant_id:
            raise ValueError("an entry belongs to the log of its own transaction")
        sealed = seal(entry, lambda: secrets.token_bytes(SALT_BYTES))
        self.tx.send_ahead(("audit_record", _columns(sealed)))
        self.tx.when_committed(ENTRIES.labels(entry.action.value, entry.outcome.value).inc)
        return sealed


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """Which entries a list shows; None means any."""

    action: str | None = None
    resource_type: str | None = None
    resource_id: str | None = None
    actor: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class LogHead:
    """How far a log has grown, with the signed note that says so; before its first entry the note is empty.

    *frontier* is what the next entry is appended to, and *placed* how many places of the tree are really taken.
    *anchored_size* is how far the platform's log says that this one has grown, in its entry *anchored_in*.
    """

    origin: str
    size: int
    root_hash: bytes
    checkpoint: str
    frontier: tuple[bytes, ...]
    placed: int
    anchored_size: int = 0
    anchored_in: str | None = None
    stuck_because: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """A stretch of the log: its rows in the order of the tree, and the texts kept beside each entry."""

    rows: Sequence[Mapping[str, Any]]
    openings: Mapping[str, Sequence[Opening]]

    def openings_of(self, row: Mapping[str, Any]) -> Sequence[Opening]:
        """Return the texts of one row's entry."""
        return self.openings.get(str(row["entry_id"]), ())


async def read_head(tx: Transaction) -> LogHead:
    """Return the head of the transaction's log; raises NotFound where there is no log."""
    row = await tx.one("audit_head")
    return LogHead(
        origin=row["origin"],
        size=row["size"],
        root_hash=row["root_hash"],
        checkpoint=row["checkpoint"],
        frontier=tuple(row["frontier"]),
        placed=row["placed"],
        anchored_size=row["anchored_size"],
        anchored_in=None if row["anchored_in"] is None else str(row["anchored_in"]),
        stuck_because=row["stuck_because"],
    )


async def list_entries(tx: Transaction, wanted: EntryFilter, *, after: int, most: int) -> list[dict[str, Any]]:
    """Return the public view of entries in their order in the tree, after the place *after*."""
    if wanted == EntryFilter():
        rows = await tx.all("audit_list_all", after=after, most=most)
    else:
        asked = {**asdict(wanted), "after": after, "most": most}
        _, rows = await tx.together(("audit_plan_anew", {}), ("audit_list", asked))
    return await view_rows(tx, rows)


async def view_rows(tx: Transaction, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the public view of stored entries, their texts put back."""
    page = await page_of(tx, rows)
    return [show_entry(tx.tenant_id, row, page.openings_of(row)) for row in rows]


async def get_entry(tx: Transaction, entry_id: str) -> dict[str, Any]:
    """Return the public view of one entry; raises NotFound."""
    row = await tx.find("audit_get", entry_id=entry_id)
    if row is None:
        raise NotFound("there is no such audit entry")
    page = await page_of(tx, [row])
    return show_entry(tx.tenant_id, row, page.openings_of(row))


async def read_page(tx: Transaction, first: int, end: int) -> Page:
    """Return what is kept of the places from *first* to before *end*."""
    return await page_of(tx, await tx.all("audit_page", first=first, end=end))


async def page_of(tx: Transaction, rows: Sequence[Mapping[str, Any]]) -> Page:
    """Return some rows with the texts that are kept beside their entries."""
    found: defaultdict[str, list[Opening]] = defaultdict(list)
    if rows:
        for row in await tx.all("audit_texts", entry_ids=[row["entry_id"] for row in rows]):
            found[str(row["entry_id"])].append(Opening(row["field"], row["salt"], row["text"]))
    return Page(rows, found)


def show_entry(tenant_id: str, row: Mapping[str, Any], openings: Sequence[Opening]) -> dict[str, Any]:
    """Return the public view of a row's entry; nothing that it says, if its leaf is not that of the tree or is gone."""
    leaf, place, in_tree = row["leaf"] or b"", row["sequence"], row["tree_hash"]
    if in_tree is None or leaf_hash(leaf) == in_tree:
        with suppress(ValueError, RecursionError):
            return restore(leaf, openings, place)
    shown_tenant = None if tenant_id == PLATFORM else tenant_id
    return withheld(str(row["entry_id"]), shown_tenant, place, in_tree or leaf_hash(leaf))


def _columns(sealed: SealedEntry) -> dict[str, Any]:
    entry = sealed.entry
    return {
        "entry_id": entry.entry_id,
        "occurred_at": entry.occurred_at,
        "action": entry.action.value,
        "outcome": entry.outcome.value,
        "actor_id": entry.actor.id,
        "resource_type": entry.resource.type if entry.resource else None,
        "resource_id": entry.resource.id if entry.resource else None,
        "token_id": entry.token_id,
        "leaf": sealed.leaf,
        "leaf_hash": sealed.leaf_hash,
        "fields": text_array(opening.field for opening in sealed.openings),
        "salts": text_array(rf"\x{opening.salt.hex()}" for opening in sealed.openings),
        "texts": text_array(opening.text for opening in sealed.openings),
    }
