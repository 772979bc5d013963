"""Erasing the texts of an entry: they go, with every copy; the entry, its leaf and its proofs stay."""

import json
from collections.abc import Sequence
from typing import Any, cast

import msgspec

from jobengine.audit.act import Act
from jobengine.audit.actions import Action
from jobengine.audit.model import Resource
from jobengine.errors import LostRace
from jobengine.storage.audit import PostgresAudit, get_entry
from jobengine.storage.database import Transaction
from jobengine.tenancy.model import Family


async def erase(tx: Transaction, act: Act, entry_id: str) -> dict[str, Any]:
    """Delete the texts of an entry and record that; return its public view, in which they are null.

    An entry that has no texts any more, or never had, is returned as it is and nothing is recorded. Raises NotFound,
    and LostRace when somebody else erases it at the same time.
    """
    await get_entry(tx, entry_id)
    texts = await tx.all("audit_texts", entry_ids=[entry_id])
    if texts:
        entry = act.entry(
            Action.AUDIT_ERASED,
            Resource("audit_entry", entry_id),
            family=Family.QUOTA,
            properties={"fields": sorted(row["field"] for row in texts)},
        )
        await PostgresAudit(tx).record(entry)
        if await tx.find("audit_add_erasure", entry_id=entry_id, erased_in=entry.entry_id) is None:
            raise LostRace("somebody else erases this entry")
        await tx.run("audit_erase_texts", entry_id=entry_id)
        await _erase_from_answers(tx, [row["text"] for row in texts])
    return await get_entry(tx, entry_id)


async def _erase_from_answers(tx: Transaction, texts: Sequence[str]) -> None:
    """Take *texts* out of the answers that are kept for repeated requests: they show what a first answer would now."""
    parts = [json.dumps(text, ensure_ascii=False).encode() for text in texts]
    for row in await tx.all("idempotency_holding", parts=parts):
        body = msgspec.json.encode(_without(msgspec.json.decode(row["body"]), frozenset(texts)))
        where = {name: row[name] for name in ("client_id", "key", "path")}
        await tx.run("idempotency_rewrite", **where, body=body)


def _without(value: Any, texts: frozenset[str]) -> Any:
    match value:
        case dict():
            members = cast("dict[str, Any]", value)
            return {
                name: None if isinstance(item, str) and item in texts and _is_committed(name) else _without(item, texts)
                for name, item in members.items()
            }
        case list():
            return [_without(item, texts) for item in cast("list[Any]", value)]
        case _:
            return value


def _is_committed(name: str) -> bool:
    return name in {"reason", "ticket", "comment"} or name.endswith((".reason", ".ticket"))
