"""One batch from claim to its end: run the handler, beat beside it, report how it came out."""

import asyncio
from datetime import timedelta
from typing import Any, Final

import msgspec
import structlog

from jobengine.authority.keys import signing_key
from jobengine.authority.tokens import BatchAttempt, mint_for_batch
from jobengine.bootstrap import Plane
from jobengine.clock import utc_now
from jobengine.errors import JobengineError, LeaseLost
from jobengine.ids import new_id
from jobengine.storage.batches import ClaimedBatch
from jobengine.worker.command_handler import local_url, run_command
from jobengine.worker.http_handler import http_target, run_http
from jobengine.worker.link import Link
from jobengine.worker.outcome import Completed, Failed, Outcome
from jobengine.worker.python_handler import PythonProcesses

BEATS_PER_LEASE: Final = 3
LONGEST_PAUSE_SECONDS: Final = 3.0
"""Between two beats, however long the lease: a cancel must reach the handler before the batch is fenced out."""
LAST_WORDS_SECONDS: Final = 5
TOKEN_LIFE: Final = timedelta(hours=23)

_log = structlog.get_logger()


class CanceledError(Exception):
    """Somebody canceled the backfill."""


class BatchRunner:
    """Runs claimed batches of this process."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._processes = PythonProcesses()

    async def run(self, batch: ClaimedBatch) -> None:
        """Run *batch* to its end; what a lost lease has done is left to the next attempt.

        Cancelling this call gives the batch back, or lets it be reported when its handler had ended.
        """
        link = Link(self._plane.database, batch)
        work = asyncio.create_task(self._handle(batch, link))
        beats = asyncio.create_task(_beat(link))
        last: asyncio.Task[None] | None = None
        try:
            outcome = await _outcome(work, beats)
            self._plane.traces.note({"jobengine.outcome": type(outcome).__name__.lower()})
            last = asyncio.create_task(_report(link, outcome))
            await _finish(last, beats)
        except LeaseLost:
            _log.warning("batch.lost", batch_id=batch.batch_id, attempt=batch.attempt)
        except asyncio.CancelledError:
            await _end(work)
            last = last or asyncio.create_task(link.give_back())
            await asyncio.wait({last}, timeout=LAST_WORDS_SECONDS)
            raise
        finally:
            await _end(work, beats, *([last] if last else []))

    async def close(self) -> None:
        """End the waiting processes."""
        await self._processes.close()

    async def _handle(self, batch: ClaimedBatch, link: Link) -> Outcome:
        settings = self._plane.settings
        handler = settings.job_types[batch.job_type].handler
        kind, _, rest = handler.partition(":")
        claimed = batch.as_json()
        match kind:
            case "python":
                return await self._processes.run(rest, claimed, link)
            case "command":
                url = local_url(settings.host, settings.port)
                return await run_command(rest, msgspec.json.encode(claimed), url, self._token(batch))
            case _:
                return await run_http(http_target(handler), msgspec.json.encode(claimed), self._token(batch))

    def _token(self, batch: ClaimedBatch) -> str:
        attempt = BatchAttempt(batch.tenant_id, batch.batch_id, batch.fencing_token)
        now = utc_now()
        key = signing_key(self._plane.keys, now)
        return mint_for_batch(attempt, self._plane.realm, key, now, token_id=new_id(), life=TOKEN_LIFE).text


async def _outcome(work: asyncio.Task[Outcome], beats: asyncio.Task[None]) -> Outcome:
    await asyncio.wait({work, beats}, return_when=asyncio.FIRST_COMPLETED)
    if not work.done():
        # The handler is dead before anybody else may have its batch.
        await _end(work)
        return _canceled(beats)
    try:
        return work.result()
    except LeaseLost:
        raise
    except Exception as error:  # noqa: BLE001 - whatever breaks here ends this attempt, and no other batch
        _log.exception("batch.broken")
        return Failed(f"{type(error).__name__}: {error}", retryable=True)


def _canceled(beats: asyncio.Task[None]) -> Outcome:
    try:
        beats.result()
    except CanceledError:
        return Failed("the backfill was canceled", retryable=False)
    raise LeaseLost("the beats have ended")


async def _report(link: Link, outcome: Outcome) -> None:
    match outcome:
        case Completed(events):
            await link.complete(events)
        case Failed(error, retryable):
            await link.fail(error, retryable=retryable)


async def _finish(last: asyncio.Task[None], beats: asyncio.Task[None]) -> None:
    await asyncio.wait({last, beats}, return_when=asyncio.FIRST_COMPLETED)
    if not last.done() and not isinstance(beats.exception(), CanceledError):
        raise LeaseLost("the lease ran out before the report was heard")
    await asyncio.shield(last)


async def _beat(link: Link) -> None:
    clock = asyncio.get_running_loop().time
    lease = link.batch.lease_seconds
    ends_at = clock() + lease
    me = asyncio.current_task()
    # A cancellation that the database's driver swallowed is still counted; without a look, this would never end.
    while me is None or not me.cancelling():
        await asyncio.sleep(min(lease / BEATS_PER_LEASE, LONGEST_PAUSE_SECONDS))
        if (asked_at := clock()) >= ends_at:
            raise LeaseLost("nobody heard the batch before its lease was over")
        try:
            async with asyncio.timeout_at(ends_at):
                beat = await link.beat()
            ends_at = asked_at + lease
            if beat.cancel_requested:
                raise CanceledError
        except LeaseLost:
            raise
        except (JobengineError, TimeoutError) as error:
            # The database may be back before the lease is over.
            _log.warning("batch.beat_failed", batch_id=link.batch.batch_id, error=str(error))


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
