"""From token to change and back: the story of one token, and what has no story."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from jobengine.audit.actions import Action
from jobengine.authority.grants import LONGEST_PRIVILEGED_LIFE
from jobengine.errors import NotFound
from jobengine.storage.audit import get_entry, view_rows
from jobengine.storage.database import Database, Transaction

FIRST: Final = "00000000-0000-0000-0000-000000000000"
"""Before every id of an entry."""

_GRANT: Final = Action.CREDENTIALS_GRANT.value
# An entry about the token itself is no use of it.
_NO_USE: Final = [_GRANT, Action.TOKEN_REVOKED.value]
# How many entries one page looks at: where all is well, it finds nothing among very many.
_LOOKED_AT: Final = 2_000
_MOST_LOOKS: Final = 4

_Row = Mapping[str, Any]


class Kind(StrEnum):
    """What is missing: the use of a token that was asked for with a reason, or the grant of one that was used."""

    TOKEN_UNUSED = "token_unused"  # noqa: S105 - a kind, not a secret
    CHANGE_UNGRANTED = "change_ungranted"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a list of orphans goes on: one kind after the other, each in the order of its entries."""

    kind: Kind = Kind.TOKEN_UNUSED
    entry_id: str = FIRST


@dataclass(frozen=True, slots=True)
class Orphan:
    """An entry without its other half: the grant of an unused token, or a change under a token that nobody granted."""

    kind: Kind
    token_id: str
    entry: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Story:
    """What is known of a token in one tenant; *grant* is None where another tenant's log has it, or none at all."""

    grant: Mapping[str, Any] | None
    granted_elsewhere: bool
    done: int
    refused: int
    failed: int


async def tell_story(tx: Transaction, database: Database, token_id: str) -> Story:
    """Return who asked for a token and why, and how its uses ended; raises NotFound for one that left no trace here."""
    found = await tx.find("audit_about_token", token_id=token_id, grant=_GRANT)
    if found is None:
        raise NotFound("there is no such token")
    granted_in = found["granted_in"]
    return Story(
        grant=None if granted_in is None else await get_entry(tx, str(granted_in)),
        granted_elsewhere=granted_in is None and bool(await _find(database, [token_id], granted=True)),
        done=found["done"],
        refused=found["refused"],
        failed=found["failed"],
    )


async def list_uses(tx: Transaction, token_id: str, *, after: str, most: int) -> list[dict[str, Any]]:
    """Return the entries of a token, the grant among them, in the order in which they were made."""
    return await view_rows(tx, await tx.all("audit_of_token", token_id=token_id, after=after, most=most))


async def list_orphans(
    tx: Transaction, database: Database, after: Place, *, most: int
) -> tuple[list[Orphan], Place | None]:
    """Return the next orphans after a place, and the place to go on from; None at the end.

    It looks at a bounded number of entries: fewer orphans than *most* do not mean that there are no others.
    """
    found: list[Orphan] = []
    place: Place | None = after
    for _ in range(_MOST_LOOKS):
        if place is None or len(found) == most:
            break
        more, place = await _look(tx, database, place, most - len(found))
        found += more
    return found, place


async def _look(tx: Transaction, database: Database, after: Place, most: int) -> tuple[list[Orphan], Place | None]:
    kind = after.kind
    if kind is Kind.TOKEN_UNUSED:
        before = tx.now - LONGEST_PRIVILEGED_LIFE
        asked = {"grant": _GRANT, "no_use": _NO_USE, "after": after.entry_id, "before": before, "most": _LOOKED_AT}
        rows = await tx.all("audit_granted", **asked)
        suspects = [row for row in rows if row["privileged"] and not row["used"]]
    else:
        asked = {"grant": _GRANT, "no_use": _NO_USE, "after": after.entry_id, "most": _LOOKED_AT}
        rows = await tx.all("audit_acted", **asked)
        suspects = [row for row in rows if not row["granted"]]
    if len(suspects) > most:
        suspects = suspects[:most]
        place = Place(kind, str(suspects[-1]["entry_id"]))
    elif len(rows) == _LOOKED_AT:
        place = Place(kind, str(rows[-1]["entry_id"]))
    else:
        place = Place(Kind.CHANGE_UNGRANTED) if kind is Kind.TOKEN_UNUSED else None
    return await _orphans(tx, database, kind, suspects), place


async def _orphans(tx: Transaction, database: Database, kind: Kind, suspects: Sequence[_Row]) -> list[Orphan]:
    # Only a governor's token can have its other half in another tenant's log.
    unused = kind is Kind.TOKEN_UNUSED
    asked = [row["token_id"] for row in suspects if not unused or row["governs"]]
    cleared = await _find(database, asked, granted=not unused)
    left = [row for row in suspects if row["token_id"] not in cleared]
    views = await view_rows(tx, await tx.all("audit_get_some", entry_ids=[row["entry_id"] for row in left]))
    return [Orphan(kind, row["token_id"], view) for row, view in zip(left, views, strict=True)]


async def _find(database: Database, tokens: Sequence[str], *, granted: bool) -> set[str]:
    """Return those of *tokens* that were granted, or used, in any tenant: a governor's act in others than its own."""
    if not tokens:
        return set()
    ignored = [Action.TOKEN_REVOKED.value]
    async with database.system() as tx:
        rows = await tx.all("system_find_tokens", tokens=list(tokens), grant=_GRANT, ignored=ignored)
    return {row["token_id"] for row in rows if row["granted"] is granted}
