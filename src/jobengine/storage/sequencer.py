"""Giving audit entries their place: one owner at a time for each shard of logs, on the database's clock."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psycopg
import structlog

from jobengine.audit.checkpoint import Checkpoint
from jobengine.audit.merkle import Frontier
from jobengine.audit.sequencer import Head, Step, sequence
from jobengine.errors import JobengineError, LostRace, Unavailable
from jobengine.storage.database import Database, Transaction

MOST_ENTRIES = 1_000
"""How many entries one transaction places: their hashing holds up everything else in the process."""
_MOST_LOGS = 64
_MOST_ROUNDS = 16

_log = structlog.get_logger()


class Sequencer:
    """Moves waiting entries into the trees of the shards that it owns; *sign* makes a checkpoint's signed note.

    Two sequencers can never fork a log: its head is locked while it moves, it moves by compare-and-set, and a place in
    the tree is a primary key. Who owns a shard only keeps them from doing the same work.
    """

    def __init__(self, database: Database, owner: str, sign: Callable[[Checkpoint], str]) -> None:
        self._database = database
        self._owner = owner
        self._sign = sign
        self._stuck: set[str] = set()

    async def own(self) -> list[int]:
        """Renew this process's shards, take orphaned ones, and return all that it owns for the next 3 s."""
        async with self._database.system() as tx:
            return [row["shard"] for row in await tx.all("system_own_shards", owner=self._owner)]

    async def leave(self) -> None:
        """Give all shards back."""
        async with self._database.system() as tx:
            await tx.run("system_leave_shards", owner=self._owner)

    async def drain(self, shards: Sequence[int]) -> int:
        """Place what waits in *shards* and return how many entries that were; a log that fails stops no other.

        It goes on while there is much to do, but returns in the end whatever comes in meanwhile.
        """
        placed = 0
        for _ in range(_MOST_ROUNDS):
            in_round = await self._round(shards)
            placed += in_round
            if in_round < MOST_ENTRIES:
                break
        return placed

    async def _round(self, shards: Sequence[int]) -> int:
        """Give every waiting log its turn once; stuck ones alone, so that they take no other with them."""
        async with self._database.system() as tx:
            logs = [row["tenant_id"] for row in await tx.all("system_waiting_logs", shards=list(shards))]
        self._stuck.intersection_update(logs)
        stuck = [[log] for log in logs if log in self._stuck]
        sound = [log for log in logs if log not in self._stuck]
        groups = [sound[first : first + _MOST_LOGS] for first in range(0, len(sound), _MOST_LOGS)]
        return sum([await self._place(group) for group in groups + stuck])

    async def _place(self, logs: Sequence[str]) -> int:
        try:
            async with self._database.system() as tx:
                placed = await self._advance(tx, logs)
        except Unavailable:
            raise
        except (JobengineError, ValueError, psycopg.Error) as error:
            if len(logs) > 1:
                return sum([await self._place([log]) for log in logs])
            if logs[0] not in self._stuck:
                _log.error("sequencer.stuck", log=logs[0], error=str(error))
            self._stuck.add(logs[0])
            return 0
        self._stuck.difference_update(logs)
        return placed

    async def _advance(self, tx: Transaction, logs: Sequence[str]) -> int:
        heads = {row["tenant_id"]: row for row in await tx.all("system_lock_heads", logs=list(logs))}
        rows = await tx.all("system_take_intake", logs=list(heads), most=MOST_ENTRIES)
        waiting: defaultdict[str, list[tuple[str, bytes]]] = defaultdict(list)
        for row in sorted(rows, key=lambda row: row["intake_id"]):
            waiting[row["tenant_id"]].append((str(row["entry_id"]), row["leaf_hash"]))
        steps = {log: sequence(self._head(heads[log]), entries) for log, entries in waiting.items()}
        if steps:
            await _store(tx, steps)
        for log, step in steps.items():
            await self._move(tx, log, step)
        return len(rows)

    def _head(self, row: Mapping[str, Any]) -> Head:
        """Return a stored head; raises ValueError for one that was not signed here.

        Else whoever can write to the database could rewrite a log, and have the next step sign it.
        """
        head = Head(row["origin"], Frontier(row["size"], tuple(row["frontier"])))
        # Ed25519 signs the same text in the same way every time (RFC 8032).
        if row["checkpoint"] != (self._sign(head.checkpoint()) if head.frontier.size else ""):
            raise ValueError("the head is not one that was signed here")
        return head

    async def _move(self, tx: Transaction, log: str, step: Step) -> None:
        moved = await tx.find(
            "system_advance_head",
            log=log,
            from_size=step.rows[0].sequence,
            size=step.head.frontier.size,
            frontier=list(step.head.frontier.hashes),
            root_hash=step.head.frontier.root(),
            checkpoint=self._sign(step.head.checkpoint()),
        )
        if moved is None:
            raise LostRace("another sequencer moved the head")


async def _store(tx: Transaction, steps: Mapping[str, Step]) -> None:
    rows = [(log, row) for log, step in steps.items() for row in step.rows]
    await tx.run(
        "system_place",
        logs=[log for log, _ in rows],
        sequences=[row.sequence for _, row in rows],
        entry_ids=[row.entry_id for _, row in rows],
        leaf_hashes=[row.leaf_hash for _, row in rows],
    )
    nodes = [(log, *node, hashed) for log, step in steps.items() for node, hashed in step.nodes.items()]
    await tx.run(
        "system_place_nodes",
        logs=[log for log, _, _, _ in nodes],
        levels=[level for _, level, _, _ in nodes],
        indices=[index for _, _, index, _ in nodes],
        hashes=[hashed for _, _, _, hashed in nodes],
    )
