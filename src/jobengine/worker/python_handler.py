"""``python:module:function`` handlers, in processes of their own: CPU work and crashes never reach the server."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from typing import Any, Final

import msgspec

from jobengine.backfill.attempts import Events
from jobengine.errors import ValidationFailed
from jobengine.worker.outcome import Completed, Failed, Outcome
from jobengine.worker.ports import AttemptLine
from jobengine.worker.processes import handler_environment, kill

# A line holds at most 10,000 keys of 256 bytes, escaped.
_LINE_LIMIT: Final = 32 * 2**20
# A process that hung up is about to end, and its status tells why.
DYING_SECONDS: Final = 1


class PythonProcesses:
    """Processes that wait for the next batch; one that is stopped in the middle of a batch is never used again."""

    def __init__(self) -> None:
        self._idle: list[Process] = []

    async def run(self, handler: str, claimed: dict[str, Any], line: AttemptLine) -> Outcome:
        """Run one batch; cancelling this call kills the process."""
        process = await self._ready()
        try:
            outcome = await _converse(process, {"handler": handler, "batch": claimed}, line)
        except BaseException:
            await kill(process)
            raise
        if outcome is not None:
            self._idle.append(process)
            return outcome
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), DYING_SECONDS)
        await kill(process)
        return Failed(f"the handler's process died: {_how(process)}", retryable=True)

    async def close(self) -> None:
        """End the waiting processes."""
        while self._idle:
            await kill(self._idle.pop())

    async def _ready(self) -> Process:
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                return process
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "jobengine.worker.child", str(os.getpid())),
            stdin=PIPE,
            stdout=PIPE,
            limit=_LINE_LIMIT,
            env=handler_environment(os.environ),
            start_new_session=True,
        )


async def _converse(process: Process, request: dict[str, Any], line: AttemptLine) -> Outcome | None:
    try:
        await _write(process, request)
        while told := await _read(process):
            message = json.loads(told)
            if "done" in message:
                return Completed(Events(**message["done"]))
            if "failed" in message:
                return Failed(message["failed"], retryable=True)
            await _write(process, await _answer(message, line))
    except (BrokenPipeError, ConnectionResetError):
        pass
    return None


async def _answer(message: dict[str, Any], line: AttemptLine) -> dict[str, Any]:
    try:
        if "claim" in message:
            found = await line.claim(message["claim"])
            return {"fresh": found.fresh, "duplicates": found.duplicates, "busy": found.busy}
        await line.save(message["save"], Events(**message["events"]))
        return {}
    except ValidationFailed as error:
        return {"error": error.detail}


async def _write(process: Process, message: dict[str, Any]) -> None:
    if process.stdin is None:
        raise BrokenPipeError
    process.stdin.write(msgspec.json.encode(message) + b"\n")
    await process.stdin.drain()


async def _read(process: Process) -> bytes:
    return b"" if process.stdout is None else await process.stdout.readline()


def _how(process: Process) -> str:
    status = process.returncode or 0
    return f"signal {-status}" if status < 0 else f"exit {status}"
