"""The line of an attempt that runs beside the database: claim events, save checkpoints, stay alive, end."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import structlog

from jobengine.backfill.attempts import Beat, Checkpoint, ClaimedBatch, EventClaim, Events
from jobengine.backfill.reports import check_checkpoint, check_keys
from jobengine.errors import LostRace, Unavailable
from jobengine.storage.batch_committer import BatchCommitter
from jobengine.storage.batch_words import Completion, Heartbeat, Word, failed, given_back
from jobengine.storage.database import Database
from jobengine.storage.events import claim_events

AGAIN_SECONDS: Final = 0.5

_log = structlog.get_logger()

Said = TypeVar("Said")


@dataclass(frozen=True, slots=True)
class Link:
    """An AttemptLine; what it says about its batch goes with what others say, the claims of events go alone."""

    database: Database
    committer: BatchCommitter
    batch: ClaimedBatch

    async def claim(self, keys: Sequence[str]) -> EventClaim:
        """Claim event keys; raises ValidationFailed."""
        check_keys(keys)
        return await _patiently(self.batch, lambda: self._claim(keys))

    async def save(self, checkpoint: Any, events: Events) -> None:
        """Make what was claimed so far final, and remember where to go on; raises ValidationFailed."""
        check_checkpoint(checkpoint)
        word = Heartbeat(self.batch.batch_id, self.batch.fencing_token, Checkpoint(checkpoint), events)
        await self._say(word)

    async def beat(self) -> Beat:
        """Stay alive."""
        word = Heartbeat(self.batch.batch_id, self.batch.fencing_token, None, None)
        return cast("Beat", await self.committer.carry_out(self.batch.tenant_id, word))

    async def complete(self, events: Events | None) -> None:
        """End the batch well; *events* None means: as last reported."""
        await self._say(Completion(self.batch.batch_id, self.batch.fencing_token, events))

    async def fail(self, error: str, *, retryable: bool) -> None:
        """End the attempt badly."""
        await self._say(failed(self.batch.batch_id, self.batch.fencing_token, error, retryable=retryable))

    async def give_back(self) -> None:
        """End the attempt because its worker leaves."""
        await self._say(given_back(self.batch.batch_id, self.batch.fencing_token))

    async def _claim(self, keys: Sequence[str]) -> EventClaim:
        async with self.database.transaction(self.batch.tenant_id) as tx:
            return await claim_events(tx, self.batch.batch_id, self.batch.fencing_token, keys)

    async def _say(self, word: Word) -> None:
        await _patiently(self.batch, lambda: self.committer.carry_out(self.batch.tenant_id, word))


async def _patiently(batch: ClaimedBatch, say: Callable[[], Awaitable[Said]]) -> Said:
    while True:
        try:
            return await say()
        except (LostRace, Unavailable) as error:
            _log.warning("batch.not_heard", batch_id=batch.batch_id, error=str(error))
            await asyncio.sleep(AGAIN_SECONDS)
