"""Giving audit entries their place: one owner at a time for each shard of logs, on the database's clock."""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psycopg
import structlog

from jobengine.audit.checkpoint import NoteError
from jobengine.audit.merkle import Frontier
from jobengine.audit.sequencer import Head, Step, sequence
from jobengine.audit.signing import LogKeys
from jobengine.errors import JobengineError, LostRace, Unavailable
from jobengine.storage.anchors import tell_stuck
from jobengine.storage.database import Database, Transaction

MOST_ENTRIES = 1_000
"""How many entries one transaction places: their hashing holds up everything else in the process."""
_MOST_LOGS = 64
_MOST_ROUNDS = 16
_MOST_NOTES = 16_384

_log = structlog.get_logger()


class Sequencer:
    """Moves waiting entries into the trees of the shards that it owns; *keys* are those of the checkpoints.

    Two sequencers can never fork a log: its head is locked while it moves, it moves by compare-and-set, and a place in
    the tree is a primary key. Who owns a shard only keeps them from doing the same work.
    """

    def __init__(self, database: Database, owner: str, keys: Callable[[], LogKeys]) -> None:
        self._database = database
        self._owner = owner
        self._keys = keys
        self._stuck: set[str] = set()
        # Notes that were found good before, by log: a signature costs more to verify than all the rest of a step.
        self._good: OrderedDict[str, str] = OrderedDict()

    async def own(self) -> list[int]:
        """Renew this process's shards, take or give back some to hold its share, and return those of the next 3 s."""
        async with self._database.system() as tx:
            await tx.run("system_join_sequencers", owner=self._owner)
            kept = [row["shard"] for row in await tx.all("system_own_shards", owner=self._owner)]
            await tx.run("system_give_back_shards", owner=self._owner, kept=kept)
            return kept

    async def leave(self) -> None:
        """Give all shards back."""
        async with self._database.system() as tx:
            await tx.run("system_leave_shards", owner=self._owner)

    async def drain(self, shards: Sequence[int]) -> int:
        """Place what waits in *shards* and return how many entries that were; a log that fails stops no other.

        It goes on while there is much to do, but returns in the end whatever comes in meanwhile.
        """
        placed = 0
        for number in range(_MOST_ROUNDS):
            in_round = await self._round(shards, with_stuck=number == 0)
            placed += in_round
            if in_round < MOST_ENTRIES:
                break
        return placed

    async def sign_anew(self, shards: Sequence[int]) -> None:
        """Put heads that a former key signed under the current one: a quiet log is verified with the newest key too."""
        async with self._database.system() as tx:
            wanted = {"shards": list(shards), "signed_by": self._keys().current, "most": _MOST_LOGS}
            logs = [row["tenant_id"] for row in await tx.all("system_signed_otherwise", **wanted)]
            for row in await tx.all("system_lock_heads", logs=logs):
                try:
                    head = self._head(row)
                except ValueError:
                    continue  # it is told of when its next entry cannot be placed, and by `GET /audit/verify`
                keys = self._keys()
                note = keys.sign(head.checkpoint())
                size = head.frontier.size
                moved = {"log": row["tenant_id"], "checkpoint": note, "signed_by": keys.current, "size": size}
                await tx.run("system_sign_head", **moved)

    async def _round(self, shards: Sequence[int], *, with_stuck: bool) -> int:
        """Give every waiting log its turn once; stuck ones alone, so that they take no other with them."""
        async with self._database.system() as tx:
            logs = [row["tenant_id"] for row in await tx.all("system_waiting_logs", shards=list(shards))]
        self._stuck.intersection_update(logs)
        stuck = [[log] for log in logs if log in self._stuck and with_stuck]
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
            if not isinstance(error, LostRace):  # somebody else moved it; that is no damage
                await self._note_stuck(logs[0], error)
            return 0
        self._stuck.difference_update(logs)
        return placed

    async def _note_stuck(self, log: str, error: Exception) -> None:
        because = _said(error)
        if log not in self._stuck:
            _log.error("sequencer.stuck", log=log, error=because)
        self._stuck.add(log)
        await tell_stuck(self._database, self._owner, log, because)

    async def _advance(self, tx: Transaction, logs: Sequence[str]) -> int:
        _, locked = await tx.together(("system_step_by_index", {}), ("system_lock_heads", {"logs": list(logs)}))
        heads = {str(row["tenant_id"]): self._head(row) for row in locked}
        sizes = [head.frontier.size for head in heads.values()]
        rows = await tx.all("system_place_intake", logs=list(heads), sizes=sizes, most=MOST_ENTRIES)
        waiting: defaultdict[str, list[tuple[str, bytes]]] = defaultdict(list)
        for row in rows:
            waiting[row["tenant_id"]].append((str(row["entry_id"]), row["leaf_hash"]))
        steps = {log: sequence(heads[log], entries) for log, entries in waiting.items()}
        if steps:
            await _store_nodes(tx, steps)
            await self._move(tx, steps)
        return len(rows)

    def _head(self, row: Mapping[str, Any]) -> Head:
        """Return a stored head; raises ValueError for one that was not signed here, or that was set back.

        Else whoever can write to the database could rewrite a log, and have the next step sign it.
        """
        head = Head(row["origin"], Frontier(row["size"], tuple(row["frontier"])))
        if head.frontier.size < row["anchored_size"]:
            raise ValueError(f"the log was set back: it had {row['anchored_size']} entries before")
        note: str = row["checkpoint"]
        if head.frontier.size == 0 and not note:
            return head
        if self._good.get(row["tenant_id"]) != note:
            try:
                self._keys().read(note)
            except NoteError:
                raise ValueError("the head is not one that was signed here") from None
        if not note.startswith(f"{head.checkpoint().body()}\n"):
            raise ValueError("the head is not one that was signed here")
        self._remember(row["tenant_id"], note)
        return head

    async def _move(self, tx: Transaction, steps: Mapping[str, Step]) -> None:
        keys = self._keys()
        notes = {log: keys.sign(step.head.checkpoint()) for log, step in steps.items()}
        heads = [step.head.frontier for step in steps.values()]
        moved = await tx.run(
            "system_advance_heads",
            logs=list(steps),
            from_sizes=[step.rows[0].sequence for step in steps.values()],
            sizes=[frontier.size for frontier in heads],
            frontiers=[_array(frontier.hashes) for frontier in heads],
            roots=[frontier.root() for frontier in heads],
            checkpoints=list(notes.values()),
            signed_by=keys.current,
        )
        if moved < len(steps):
            raise LostRace("another sequencer moved the head")
        for log, note in notes.items():
            self._remember(log, note)

    def _remember(self, log: str, note: str) -> None:
        self._good[log] = note
        self._good.move_to_end(log)
        if len(self._good) > _MOST_NOTES:
            self._good.popitem(last=False)


def _array(hashes: Sequence[bytes]) -> str:
    """Return hashes as the text of an array: frontiers of several lengths cannot stand in one array of arrays."""
    return "{" + ",".join(f'"\\\\x{hashed.hex()}"' for hashed in hashes) + "}"


async def _store_nodes(tx: Transaction, steps: Mapping[str, Step]) -> None:
    nodes = [
        (number, *node, hashed) for number, step in enumerate(steps.values(), 1) for node, hashed in step.nodes.items()
    ]
    await tx.run(
        "system_place_nodes",
        logs=list(steps),
        numbers=[number for number, _, _, _ in nodes],
        levels=[level for _, level, _, _ in nodes],
        indices=[index for _, _, index, _ in nodes],
        hashes=b"".join(hashed for _, _, _, hashed in nodes),
    )


def _said(error: Exception) -> str:
    """Return what may be told to everybody: a database's message without the row that it quotes."""
    return (error.diag.message_primary or "database error") if isinstance(error, psycopg.Error) else str(error)
