"""The platform's log looks after all logs: heartbeats, how far each one has grown, and which cannot go on."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from jobengine.audit.actions import Action
from jobengine.audit.anchors import Watch
from jobengine.audit.checkpoint import Checkpoint, NoteError
from jobengine.audit.merkle import Frontier
from jobengine.audit.signing import LogKeys
from jobengine.errors import JobengineError
from jobengine.storage.audit import PostgresAudit
from jobengine.storage.database import Database
from jobengine.tenancy.model import PLATFORM

ANCHORS_IN_AN_ENTRY: Final = 256
_MOST_ENTRIES: Final = 256

_Row = Mapping[str, Any]


class Heart:
    """What a serving *process* writes into the platform's log about all logs, so that silence is seen there."""

    def __init__(self, database: Database, process: str, keys: Callable[[], LogKeys]) -> None:
        self._database = database
        self._process = process
        self._keys = keys

    async def start(self) -> None:
        """Say that the process starts."""
        await self._tell(Action.LOG_STARTED)

    async def stop(self) -> None:
        """Anchor every log a last time, and say that the process stops."""
        await self.anchor()
        await self._tell(Action.LOG_STOPPED)

    async def beat(self) -> None:
        """Write the heartbeat, if this minute's has not been written, and anchor what has changed."""
        async with self._database.system() as tx:
            if await tx.find("system_take_beat") is None:
                return
            counted = await tx.one("system_count_logs")
        await self._tell(Action.LOG_HEARTBEAT, {"logs": counted["logs"], "stuck": counted["stuck"]})
        await self.anchor()

    async def anchor(self) -> int:
        """Write the heads of all changed logs into the platform's log, and return how many; a bad head is told of."""
        anchored = 0
        for _ in range(_MOST_ENTRIES):
            async with self._database.system() as tx:
                most = {"platform": PLATFORM, "most": ANCHORS_IN_AN_ENTRY}
                rows = await tx.all("system_changed_logs", **most)
            anchored += await self._write_down(rows)
            if len(rows) < ANCHORS_IN_AN_ENTRY:
                break
        return anchored

    async def _write_down(self, rows: Sequence[_Row]) -> int:
        # Hundreds of signatures: the loop has other things to do meanwhile.
        heads = await asyncio.to_thread(_read_heads, rows, self._keys())
        for row, head in zip(rows, heads, strict=True):
            if isinstance(head, str):
                await tell_stuck(self._database, self._process, row["tenant_id"], head)
        good = {row["tenant_id"]: head for row, head in zip(rows, heads, strict=True) if not isinstance(head, str)}
        if good:
            async with self._database.transaction(PLATFORM) as tx:
                entry = Watch(self._process, tx.now).anchored(list(good.values()))
                await PostgresAudit(tx).record(entry)
            async with self._database.system() as tx:
                sizes = [head.size for head in good.values()]
                await tx.run("system_note_anchors", logs=list(good), sizes=sizes, entry_id=entry.entry_id)
        return len(good)

    async def _tell(self, action: Action, properties: Mapping[str, object] | None = None) -> None:
        async with self._database.transaction(PLATFORM) as tx:
            await PostgresAudit(tx).record(Watch(self._process, tx.now).entry(action, properties))


async def tell_stuck(database: Database, process: str, log: str, because: str) -> None:
    """Note that a log cannot go on, and say so in the platform's log, once."""
    async with database.system() as tx:
        marked = await tx.find("system_mark_stuck", log=log, because=because)
    if marked is not None:
        # Where not even the platform's log can be written, the mark and the process's own log tell.
        with suppress(JobengineError):
            async with database.transaction(PLATFORM) as tx:
                await PostgresAudit(tx).record(Watch(process, tx.now).stuck(marked["origin"], because))


def _read_heads(rows: Sequence[_Row], keys: LogKeys) -> list[Checkpoint | str]:
    return [_read_head(row, keys) for row in rows]


def _read_head(row: _Row, keys: LogKeys) -> Checkpoint | str:
    """Return the head of a log as it was signed, or why it must not be used."""
    if row["size"] < row["anchored_size"]:
        return f"the log was set back: it had {row['anchored_size']} entries before"
    try:
        head = Checkpoint(row["origin"], row["size"], Frontier(row["size"], tuple(row["frontier"])).root())
        if keys.read(row["checkpoint"]) == head:
            return head
    except (NoteError, ValueError):
        pass
    return "the head is not one that was signed here"
