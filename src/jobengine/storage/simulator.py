"""Replays of the record, in a process of their own: neither the event loop nor a decision waits for one.

Run as ``python -m jobengine.storage.simulator`` it reads one question on standard input, answers on standard output,
and ends; the kernel ends it when its time is over.
"""

import asyncio
import gc
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from math import ceil
from typing import Any, Final

import msgspec

from jobengine.errors import Unavailable
from jobengine.governance.simulation import Question
from jobengine.governance.simulation_replay import Replay
from jobengine.quota.model import Limits, limits_of
from jobengine.quota.standing import micros_of
from jobengine.storage.asks import Extent, read_moments
from jobengine.storage.database import Database

MOST_ASKS: Final = 2_000_000
MOST_WAITING: Final = 8
_NICE: Final = 10


class _Order(msgspec.Struct):
    login: str
    tenant_id: str
    account: str
    limits: dict[str, Decimal]
    since: datetime
    until: datetime
    asked: int
    older: bool
    seconds: float


@dataclass(slots=True)
class Simulator:
    """Runs one replay at a time, each for at most *seconds*; *login* is that of the database."""

    login: str = field(repr=False)
    seconds: float = 30.0
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)
    _waiting: int = 0

    async def replay(self, tenant_id: str, account: str, limits: Limits, extent: Extent) -> dict[str, Any]:
        """Return what *limits* on *account* would have done, with its hash.

        Raises Unavailable when too many wait for their turn, or when the replay takes longer than it may.
        """
        order = _Order(
            self.login, tenant_id, account, {name: Decimal(limits.value(name)) for name in Limits.__slots__},
            extent.since, extent.until, extent.asked, extent.older, self.seconds,
        )  # fmt: skip
        if self._waiting >= MOST_WAITING:
            raise Unavailable("too many simulations wait", code="overloaded", retry_after_seconds=ceil(self.seconds))
        self._waiting += 1
        try:
            async with self._turn:
                return await _answered(order)
        finally:
            self._waiting -= 1


async def _answered(order: _Order) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "jobengine.storage.simulator", stdin=PIPE, stdout=PIPE, start_new_session=True
    )
    try:
        answer, _ = await process.communicate(msgspec.json.encode(order))
    finally:
        await _end(process)
    if process.returncode != 0:
        raise Unavailable(f"the simulation did not end within {order.seconds:g} s: simulate a shorter time")
    return msgspec.json.decode(answer, type=dict[str, Any])


async def _end(process: Process) -> None:
    # Whoever asked may have gone: nobody needs the answer then.
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _replay(order: _Order) -> dict[str, Any]:
    # Moment by moment: a million asks at once would take half a gigabyte.
    question = Question(order.account, limits_of(order.limits), micros_of(order.since))
    extent = Extent(order.since, order.until, order.asked, order.older)
    replay = Replay(question)
    database = Database(order.login, app_connections=1, system_connections=1)
    await database.open()
    try:
        async for moment in read_moments(database, order.tenant_id, extent):
            replay.relive(moment)
    finally:
        await database.close()
    found = replay.result()
    return {**found.as_json(), "result_hash": found.result_hash(order.tenant_id, question)}


def main() -> None:
    """Answer one question."""
    os.nice(_NICE)
    # Millions of numbers that all live to the end: looking for garbage among them takes longer than the replay.
    gc.disable()
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=_Order)
    signal.setitimer(signal.ITIMER_REAL, order.seconds)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(_replay(order))))


if __name__ == "__main__":
    main()
