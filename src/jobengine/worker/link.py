"""The line of an attempt that runs beside the database: claim events, save checkpoints, stay alive, end."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import structlog

from jobengine.backfill.attempts import Beat, Checkpoint, ClaimedBatch, EventClaim, Events
from jobengine.backfill.reports import check_checkpoint, check_keys
from jobengine.errors import LostRace, Unavailable
from jobengine.storage.batches import complete, fail, give_back, heartbeat
from jobengine.storage.database import Database, Transaction
from jobengine.storage.events import claim_events

AGAIN_SECONDS: Final = 0.5

_log = structlog.get_logger()

Said = TypeVar("Said")


@dataclass(frozen=True, slots=True)
class Link:
    """An AttemptLine; every call is a transaction of its own."""

    database: Database
    batch: ClaimedBatch

    async def claim(self, keys: Sequence[str]) -> EventClaim:
        """Claim event keys; raises ValidationFailed."""
        check_keys(keys)
        return await self._patiently(lambda tx: claim_events(tx, self.batch.batch_id, self.batch.fencing_token, keys))

    async def save(self, checkpoint: Any, events: Events) -> None:
        """Make what was claimed so far final, and remember where to go on; raises ValidationFailed."""
        check_checkpoint(checkpoint)
        await self._patiently(lambda tx: self._heartbeat(tx, Checkpoint(checkpoint), events))

    async def beat(self) -> Beat:
        """Stay alive."""
        async with self.database.transaction(self.batch.tenant_id) as tx:
            return await self._heartbeat(tx, None, None)

    async def complete(self, events: Events | None) -> None:
        """End the batch well; *events* None means: as last reported."""
        await self._patiently(lambda tx: complete(tx, self.batch.batch_id, self.batch.fencing_token, events))

    async def fail(self, error: str, *, retryable: bool) -> None:
        """End the attempt badly."""
        batch_id, token = self.batch.batch_id, self.batch.fencing_token
        await self._patiently(lambda tx: fail(tx, batch_id, token, error, retryable=retryable))

    async def give_back(self) -> None:
        """End the attempt because its worker leaves."""
        await self._patiently(lambda tx: give_back(tx, self.batch.batch_id, self.batch.fencing_token))

    async def _heartbeat(self, tx: Transaction, checkpoint: Checkpoint | None, events: Events | None) -> Beat:
        return await heartbeat(tx, self.batch.batch_id, self.batch.fencing_token, checkpoint, events)

    async def _patiently(self, say: Callable[[Transaction], Awaitable[Said]]) -> Said:
        while True:
            try:
                async with self.database.transaction(self.batch.tenant_id) as tx:
                    return await say(tx)
            except (LostRace, Unavailable) as error:
                _log.warning("batch.not_heard", batch_id=self.batch.batch_id, error=str(error))
                await asyncio.sleep(AGAIN_SECONDS)
