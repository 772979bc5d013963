"""Standing work: it survives its failures, and it ends when it is told to."""

import asyncio
import json
from datetime import timedelta

import pytest

from jobengine.bootstrap import _forever
from jobengine.errors import Unavailable
from jobengine.logs import configure_logs

SOON, NEVER = timedelta(0), timedelta(days=1)


async def test_work_goes_on_after_a_failure_of_any_kind(capsys: pytest.CaptureFixture[str]) -> None:
    """One step's surprise is loud in the log and ends nothing."""
    configure_logs()
    enough = asyncio.Event()
    steps: list[int] = []

    async def step() -> None:
        steps.append(1)
        if len(steps) == 1:
            raise Unavailable("the database does not answer")
        if len(steps) == 2:
            raise ZeroDivisionError
        enough.set()

    task = asyncio.create_task(_forever("refresh", SOON, step))
    await enough.wait()
    task.cancel()
    await asyncio.wait([task])

    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line["level"], line["work"]) for line in lines] == [
        ("background.failed", "warning", "refresh"),
        ("background.failed", "error", "refresh"),
    ]
    assert "ZeroDivisionError" in lines[1]["exception"]


async def test_work_ends_though_its_step_swallows_the_cancellation() -> None:
    """As `asyncio.wait_for` of Python 3.11 may do, deep under a query."""
    begun = asyncio.Event()

    async def step() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return

    task = asyncio.create_task(_forever("refresh", NEVER, step))
    await begun.wait()
    task.cancel()

    done, _ = await asyncio.wait([task], timeout=5)
    assert done == {task}
