"""A backfill's progress as Server-Sent Events, read in short transactions until it ends or the token does."""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from zlib import crc32

import msgspec
from litestar import get
from litestar.response import ServerSentEvent, ServerSentEventMessage

from jobengine.backfill.model import ACTIVE, BackfillStatus
from jobengine.errors import JobengineError
from jobengine.web.backfill_views import BackfillView, get_row, show_backfill
from jobengine.web.edge import Edge, needs
from jobengine.web.ending import is_ending

LOOK_EVERY: Final = timedelta(milliseconds=500)
QUIET_FOR: Final = timedelta(seconds=10)
"""A stream that has nothing to tell says so: silent connections are cut by what stands between."""

_DIGEST_BASE: Final = 10**10
_EVENT_ID: Final = re.compile(r"[0-9]{1,40}", re.ASCII)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class State:
    """A backfill at one moment of the database's clock."""

    view: BackfillView
    at: datetime

    @property
    def digest(self) -> int:
        """What tells this state from another: all of it but pace and expected end, which no second leaves alone."""
        progress = msgspec.structs.replace(self.view.progress, rate=None, eta=None)
        return crc32(msgspec.json.encode(msgspec.structs.replace(self.view, progress=progress)))

    @property
    def event_id(self) -> int:
        """An id that grows with time and ends in the digest, so that any process can tell what its reader has seen."""
        return (self.at - _EPOCH) // timedelta(microseconds=1) * _DIGEST_BASE + self.digest

    @property
    def is_last(self) -> bool:
        """Whether nothing more happens to the backfill by itself."""
        return BackfillStatus(self.view.status) not in ACTIVE

    def as_progress(self) -> ServerSentEventMessage:
        """Return the event that tells this state."""
        return ServerSentEventMessage(msgspec.json.encode(self.view), event="progress", id=self.event_id)

    def as_end(self) -> ServerSentEventMessage:
        """Return the event that ends a stream; a reader that comes back all the same is told so again."""
        return ServerSentEventMessage(msgspec.json.encode(self.view), event="end")


@get("/backfills/{backfill_id:str}/events", opt=needs("orch:read", "orch:backfill"), media_type="text/event-stream")
async def follow_backfill(edge: Edge, backfill_id: str) -> ServerSentEvent:
    """Follow a backfill: `progress` whenever it changes, `end` when it has ended; `Last-Event-ID` resumes."""
    first = await _look(edge, backfill_id)
    seen = edge.request.headers.get("last-event-id", "")
    digest = int(seen) % _DIGEST_BASE if _EVENT_ID.fullmatch(seen) else None
    return ServerSentEvent(_follow(edge, first, digest))


async def _follow(edge: Edge, state: State, told: int | None) -> AsyncGenerator[ServerSentEventMessage]:
    clock = asyncio.get_running_loop().time
    spoke_at = clock()
    while _may_read(edge):
        if state.digest != told:
            yield state.as_progress()
            told, spoke_at = state.digest, clock()
        if state.is_last:
            yield state.as_end()
            return
        if clock() - spoke_at >= QUIET_FOR.total_seconds():
            yield ServerSentEventMessage(None, comment="nothing new")
            spoke_at = clock()
        await asyncio.sleep(LOOK_EVERY.total_seconds())
        # A database that is away for a moment may answer the next look.
        with suppress(JobengineError):
            state = await _look(edge, state.view.backfill_id)


async def _look(edge: Edge, backfill_id: str) -> State:
    async with edge.plane.database.transaction(edge.tenant_id) as tx:
        row = await get_row(tx, backfill_id)
    return State(show_backfill(row), row["now"])


def _may_read(edge: Edge) -> bool:
    # A reader whose server ends comes back to another one.
    if is_ending(edge.request.scope["state"]):
        return False
    holder = edge.principal
    return edge.plane.clock.now() < holder.expires_at and not edge.plane.revocations.refuse(
        holder.token_id, holder.client_id
    )
