"""The line of an attempt that runs elsewhere: the worker calls of the API over HTTP."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import structlog

from jobengine.backfill.attempts import Beat, ClaimedBatch, EventClaim, Events
from jobengine.backfill.reports import check_checkpoint, check_keys
from jobengine.backfill.window import EventTimeWindow
from jobengine.clock import parse_time
from jobengine.errors import LostRace, Unavailable
from jobengine.worker.calls import Calls

AGAIN_SECONDS: Final = 0.5

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class HttpLine:
    """An AttemptLine; every call is a request of its own."""

    calls: Calls
    batch: ClaimedBatch

    async def claim(self, keys: Sequence[str]) -> EventClaim:
        """Claim event keys; raises ValidationFailed."""
        check_keys(keys)
        return EventClaim(**await self._patiently("events/claim", {"keys": list(keys)}))

    async def save(self, checkpoint: Any, events: Events) -> None:
        """Make what was claimed so far final, and remember where to go on; raises ValidationFailed."""
        check_checkpoint(checkpoint)
        await self._patiently("heartbeat", {"checkpoint": checkpoint, "events": asdict(events)})

    async def beat(self) -> Beat:
        """Stay alive."""
        answer = await self._say("heartbeat", {})
        return Beat(parse_time(answer["lease_expires_at"]), answer["cancel_requested"])

    async def complete(self, events: Events | None) -> None:
        """End the batch well; *events* None means: as last reported."""
        await self._patiently("complete", {"events": asdict(events) if events else None})

    async def fail(self, error: str, *, retryable: bool) -> None:
        """End the attempt badly."""
        await self._patiently("fail", {"error": error, "retryable": retryable})

    async def give_back(self) -> None:
        """End the attempt because its worker leaves."""
        await self._patiently("release", {})

    async def token(self) -> str:
        """Return a token that speaks for this attempt alone."""
        answer: dict[str, str] = await self._patiently("token", {})
        return answer["token"]

    async def _patiently(self, verb: str, body: Mapping[str, object]) -> Any:
        while True:
            try:
                return await self._say(verb, body)
            except (LostRace, Unavailable) as error:
                _log.warning("batch.not_heard", batch_id=self.batch.batch_id, error=error.detail)
                await asyncio.sleep(AGAIN_SECONDS)

    async def _say(self, verb: str, body: Mapping[str, object]) -> Any:
        said = {"fencing_token": self.batch.fencing_token, **body}
        return await self.calls.post(self.batch.tenant_id, f"/batches/{self.batch.batch_id}/{verb}", said)


def batch_of(claimed: Mapping[str, Any], tenant_id: str, lease_seconds: int) -> ClaimedBatch:
    """Read one batch of the answer to a claim."""
    window = EventTimeWindow(parse_time(claimed["window"]["start"]), parse_time(claimed["window"]["end"]))
    names = ("batch_id", "backfill_id", "job_type", "source", "params", "attempt", "fencing_token", "checkpoint")
    return ClaimedBatch(
        tenant_id=tenant_id,
        window=window,
        lease_expires_at=parse_time(claimed["lease_expires_at"]),
        lease_seconds=lease_seconds,
        **{name: claimed[name] for name in names},
    )
