"""Exports of a log: lines for a verifier, rows for people, events for other tools."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import groupby
from typing import Any

import msgspec

from jobengine.audit.export import entry_line, head_line, withheld_line
from jobengine.audit.views import csv_header, csv_row, ocsf_event
from jobengine.storage.audit import PAGE_ENTRIES, Page, page_of
from jobengine.storage.audit import show_entry as show
from jobengine.storage.database import Database


class Format(StrEnum):
    """How an export is written."""

    NDJSON = "ndjson"
    CSV = "csv"
    OCSF = "ocsf"
    TILES = "tiles"


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What is exported: the places from *first* on (None: all, with the line that comes before them) to before *size*.

    Of entries that are not those of *action*, or not of the time from *since* to before *until*, only hashes are shown.
    """

    size: int
    note: str
    format: Format = Format.NDJSON
    first: int | None = None
    action: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def is_filtered(self) -> bool:
        """Tell whether some entries are withheld."""
        return any((self.action, self.since, self.until))


async def export_log(database: Database, tenant_id: str, wanted: Export) -> AsyncGenerator[bytes]:
    """Yield an export in pieces, reading in short transactions.

    What is kept is exported as it is, damaged or not: judging it is the verifier's part, who finds what is missing.
    """
    if wanted.first is None:
        yield _beginning(wanted)
    for first in range(wanted.first or 0, wanted.size, PAGE_ENTRIES):
        async with database.transaction(tenant_id) as tx:
            rows = await tx.all(
                "audit_export_page",
                first=first,
                end=min(first + PAGE_ENTRIES, wanted.size),
                action=wanted.action,
                since=wanted.since,
                until=wanted.until,
            )
            page = await page_of(tx, rows)
        if not rows:  # a size that nobody signed may be anything
            return
        yield _written(wanted.format, tenant_id, page)


def _beginning(wanted: Export) -> bytes:
    match wanted.format:
        case Format.NDJSON:
            return head_line(wanted.note)
        case Format.CSV:
            return csv_header()
        case Format.OCSF | Format.TILES:
            return b""


def _written(how: Format, tenant_id: str, page: Page) -> bytes:
    match how:
        case Format.NDJSON:
            return _lines(page)
        case Format.TILES:
            return b"".join(row["tree_hash"] for row in page.rows)
        case Format.CSV:
            return b"".join(csv_row(view) for view in _views(tenant_id, page))
        case Format.OCSF:
            return b"".join(msgspec.json.encode(ocsf_event(view)) + b"\n" for view in _views(tenant_id, page))


def _lines(page: Page) -> bytes:
    written: list[bytes] = []
    for wanted, rows in groupby(page.rows, key=lambda row: row["wanted"]):
        if wanted:
            written += [entry_line(row["leaf"], page.openings_of(row)) for row in rows if row["leaf"] is not None]
        else:
            written.append(withheld_line(row["tree_hash"] for row in rows))
    return b"".join(written)


def _views(tenant_id: str, page: Page) -> list[Mapping[str, Any]]:
    return [show(tenant_id, row, page.openings_of(row)) for row in page.rows if row["wanted"]]
