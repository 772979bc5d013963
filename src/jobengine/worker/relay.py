"""The relay: sends wake-ups for batches that wait for workers on Celery, from one server at a time.

A wake-up says that there may be work, and nothing else. The batch is claimed over HTTP, so one that is lost is sent
again, one that comes twice finds nothing to claim, and their order means nothing.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import structlog

from jobengine.errors import Unavailable
from jobengine.metrics import RELAY_LAG, WAKE_UPS, WAKE_UPS_WAITING
from jobengine.storage.outbox import Outbox, WakeUp

TAKE_EVERY_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 5.0

_log = structlog.get_logger()


class Sender(Protocol):
    """A broker; every call may raise Unavailable."""

    async def depths(self, job_types: Sequence[str]) -> Mapping[str, int]:
        """Return how many wake-ups wait for each job type."""
        ...

    async def send(self, wake_ups: Sequence[WakeUp]) -> None:
        """Send wake-ups."""
        ...

    async def close(self) -> None:
        """Hang up."""
        ...


class Relay:
    """Keeps at most *slots* wake-ups of each job type in the broker; a worker holds one more in each of its slots."""

    def __init__(self, outbox: Outbox, sender: Sender, job_types: Sequence[str], slots: int) -> None:
        self._outbox = outbox
        self._sender = sender
        self._job_types = job_types
        self._slots = slots
        self._is_ours = False
        self._take_at = self._try_at = float("-inf")
        self._silent_since: float | None = None
        self._pause = 0.0

    async def step(self) -> None:
        """Send what is due, if it is this server's turn and the broker has room."""
        now = asyncio.get_running_loop().time()
        if now >= self._take_at:
            self._is_ours = await self._outbox.take()
            self._take_at = now + TAKE_EVERY_SECONDS
        if not self._is_ours:
            self._rest()
        elif now >= self._try_at:
            await self._try(now)

    async def close(self) -> None:
        """Let another server send, and hang up."""
        self._rest()
        await self._sender.close()
        await self._outbox.leave()

    async def _try(self, now: float) -> None:
        try:
            waiting = await self._sender.depths(self._job_types)
            due = await self._outbox.due({name: max(0, self._slots - count) for name, count in waiting.items()})
            if due:
                # Sent first and marked then: whatever breaks in between is a wake-up sent twice.
                await self._sender.send(due)
                await self._outbox.mark(due)
        except Unavailable as error:
            self._note_silence(now, error)
            return
        for wake_up in due:
            WAKE_UPS.labels(wake_up.job_type).inc()
        WAKE_UPS_WAITING.set(sum(waiting.values()) + len(due))
        RELAY_LAG.set(0)
        self._silent_since, self._pause = None, 0.0

    def _note_silence(self, now: float, error: Unavailable) -> None:
        if self._silent_since is None:
            self._silent_since = now
            _log.warning("relay.failed", error=error.detail)
        RELAY_LAG.set(now - self._silent_since)
        self._pause = min(LONGEST_PAUSE_SECONDS, 2 * self._pause or 0.25)
        self._try_at = now + self._pause

    def _rest(self) -> None:
        WAKE_UPS_WAITING.set(0)
        RELAY_LAG.set(0)
