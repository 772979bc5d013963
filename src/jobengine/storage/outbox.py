"""The outbox: which batches wait for a worker to be woken, and which wake-ups were sent and not answered yet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobengine.storage.database import Database


@dataclass(frozen=True, slots=True)
class WakeUp:
    """Word to the workers of *job_type* that there may be work for *tenant_id*; the batch is a hint."""

    tenant_id: str
    job_type: str
    backfill_id: str
    batch_id: str


@dataclass(frozen=True, slots=True)
class Outbox:
    """What the relay called *owner* reads and marks; each call is a transaction and may raise Unavailable."""

    database: Database
    owner: str

    async def take(self) -> bool:
        """Become, or stay for 5 s, the one who sends; False while another does."""
        async with self.database.system() as tx:
            return await tx.find("system_take_relay", owner=self.owner) is not None

    async def leave(self) -> None:
        """Let another server send."""
        async with self.database.system() as tx:
            await tx.run("system_leave_relay", owner=self.owner)

    async def due(self, rooms: Mapping[str, int]) -> list[WakeUp]:
        """Return wake-ups to send, for each job type as many as it has room for; forget those that were answered.

        Only what is committed is seen: no wake-up can leave before its batch is there to be claimed.
        """
        async with self.database.system() as tx:
            await tx.run("system_forget_wakeups")
            rows = await tx.all("system_due_wakeups", job_types=list(rooms), rooms=list(rooms.values()))
        return [
            WakeUp(row["tenant_id"], row["job_type"], str(row["backfill_id"]), str(row["batch_id"])) for row in rows
        ]

    async def mark(self, sent: Sequence[WakeUp]) -> None:
        """Remember that *sent* went out now."""
        async with self.database.system() as tx:
            await tx.run(
                "system_mark_wakeups",
                tenant_ids=[wake_up.tenant_id for wake_up in sent],
                batch_ids=[wake_up.batch_id for wake_up in sent],
            )
