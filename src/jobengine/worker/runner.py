"""One batch from claim to its end: run the handler, beat beside it, report how it came out."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import msgspec
import structlog

from jobengine.errors import JobengineError, LeaseLost
from jobengine.worker.command_handler import run_command
from jobengine.worker.http_handler import http_target, run_http
from jobengine.worker.outcome import Completed, Failed, Outcome
from jobengine.worker.ports import AttemptLine, Workplace
from jobengine.worker.python_handler import PythonProcesses

BEATS_PER_LEASE: Final = 3
LONGEST_PAUSE_SECONDS: Final = 3.0
"""Between two beats, however long the lease: a cancel must reach the handler before the batch is fenced out."""
LAST_WORDS_SECONDS: Final = 5

_log = structlog.get_logger()


class CanceledError(Exception):
    """Somebody canceled the backfill."""


class BatchRunner:
    """Runs claimed batches of this process."""

    def __init__(self, workplace: Workplace) -> None:
        self._workplace = workplace
        self._processes = PythonProcesses()

    async def run(self, line: AttemptLine, handled: Callable[[], None] = lambda: None) -> None:
        """Run the batch of *line* to its end; what a lost lease has done is left to the next attempt.

        *handled* is called when the handler has ended and only the report is left.
        Cancelling this call gives the batch back, or lets it be reported when its handler had ended.
        """
        work = asyncio.create_task(self._handle(line))
        beats = asyncio.create_task(_beat(line))
        last: asyncio.Task[None] | None = None
        try:
            outcome = await _outcome(work, beats)
            self._workplace.traces.note({"jobengine.outcome": type(outcome).__name__.lower()})
            last = asyncio.create_task(_report(line, outcome))
            # The report comes first: what *handled* asks for may go into the same transaction, after it.
            await asyncio.sleep(0)
            handled()
            await _finish(last, beats)
        except LeaseLost:
            _log.warning("batch.lost", batch_id=line.batch.batch_id, attempt=line.batch.attempt)
        except asyncio.CancelledError:
            await _end(work)
            last = last or asyncio.create_task(line.give_back())
            await asyncio.wait({last}, timeout=LAST_WORDS_SECONDS)
            raise
        finally:
            await _end(work, beats, *([last] if last else []))

    async def close(self) -> None:
        """End the waiting processes."""
        await self._processes.close()

    async def _handle(self, line: AttemptLine) -> Outcome:
        batch, here = line.batch, self._workplace
        handler = here.handlers[batch.job_type]
        kind, _, rest = handler.partition(":")
        claimed = batch.as_json()
        match kind:
            case "python":
                return await self._processes.run(rest, claimed, line)
            case "command":
                return await run_command(rest, msgspec.json.encode(claimed), here.url, await here.token(batch))
            case _:
                return await run_http(http_target(handler), msgspec.json.encode(claimed), await here.token(batch))


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


async def _report(line: AttemptLine, outcome: Outcome) -> None:
    match outcome:
        case Completed(events):
            await line.complete(events)
        case Failed(error, retryable):
            await line.fail(error, retryable=retryable)


async def _finish(last: asyncio.Task[None], beats: asyncio.Task[None]) -> None:
    await asyncio.wait({last, beats}, return_when=asyncio.FIRST_COMPLETED)
    if not last.done() and not isinstance(beats.exception(), CanceledError):
        raise LeaseLost("the lease ran out before the report was heard")
    await asyncio.shield(last)


async def _beat(line: AttemptLine) -> None:
    clock = asyncio.get_running_loop().time
    lease = line.batch.lease_seconds
    ends_at = clock() + lease
    me = asyncio.current_task()
    # A cancellation that the database's driver swallowed is still counted; without a look, this would never end.
    while me is None or not me.cancelling():
        await asyncio.sleep(min(lease / BEATS_PER_LEASE, LONGEST_PAUSE_SECONDS))
        if (asked_at := clock()) >= ends_at:
            raise LeaseLost("nobody heard the batch before its lease was over")
        try:
            async with asyncio.timeout_at(ends_at):
                beat = await line.beat()
            ends_at = asked_at + lease
            if beat.cancel_requested:
                raise CanceledError
        except LeaseLost:
            raise
        except (JobengineError, TimeoutError) as error:
            # The database may be back before the lease is over.
            _log.warning("batch.beat_failed", batch_id=line.batch.batch_id, error=str(error))


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
