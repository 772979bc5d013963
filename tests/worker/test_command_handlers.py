"""``command:`` handlers in real processes, with the token that speaks for their batch alone."""

import asyncio
import os
import signal
import subprocess
import sys
from datetime import timedelta

import pytest
from tests.factories import expect_problem
from tests.worker.conftest import ROOT, Shop, runs

from jobengine.worker.command_handler import run_command
from jobengine.worker.outcome import Completed, Failed


async def test_a_command_works_on_its_batch_and_on_no_other(shop: Shop) -> None:
    """It reads the claim, calls the service at the address it is told, and ends the batch by ending well."""
    beside = await shop.crew.start(1)
    other = await shop.crew.one()

    made = await shop.start("sh", "work", other=other)

    shown = await shop.ended(made)
    assert (shown["status"], shown["progress"]["events"]["processed"]) == ("completed", 2)
    note = await shop.note()
    assert note["claimed"] == [200, {"fresh": ["a", "b"], "duplicates": [], "busy": []}]
    assert (note["beat"][0], note["foreign"], note["another"]) == (200, 403, 403)
    assert note["batch"].keys() == other.keys()
    assert (note["batch"]["backfill_id"], note["batch"]["attempt"]) == (made["backfill_id"], 1)
    assert note["environment"]["JOBENGINE_URL"] == shop.url
    ours = {name for name in note["environment"] if name.startswith(("JOBENGINE_", "PG"))}
    assert ours == {"JOBENGINE_URL", "JOBENGINE_TOKEN"}
    assert await shop.crew.counts(beside) == {"total": 1, "running": 1}


async def test_the_token_of_a_command_is_worth_nothing_afterwards(shop: Shop) -> None:
    """Its lease has ended with the batch."""
    beside = await shop.crew.start(1)
    other = await shop.crew.one()
    await shop.ended(await shop.start("sh", "work", other=other))
    note = await shop.note()
    late = shop.crew.api.speaking()
    token = note["environment"]["JOBENGINE_TOKEN"]

    answer = await late.client.post(
        f"/api/v1/batches/{note['batch']['batch_id']}/heartbeat",
        json={"fencing_token": note["batch"]["fencing_token"]},
        headers={"Authorization": f"Bearer {token}"},
    )

    expect_problem(answer, 409, "lease_lost")
    assert beside["status"] == "pending"


@pytest.mark.parametrize(
    ("status", "ends", "attempts"), [(0, "succeeded", 1), (1, "failed", 1), (2, "failed", 1), (75, "failed", 2)]
)
async def test_an_exit_status_is_the_outcome(shop: Shop, status: int, ends: str, attempts: int) -> None:
    """0 completes, 75 is tried again, anything else fails; the last words are the story."""
    made = await shop.start("sh", "exit", status=status)
    if status == 75:

        async def waits() -> bool:
            return (await shop.batch(made))["why_waiting"] == "backoff"

        await shop.until(waits)
        await shop.pass_time(5)

    await shop.ended(made)

    batch = await shop.batch(made)
    assert (batch["status"], batch["attempts"]) == (ends, attempts)
    if status:
        assert batch["error"].startswith(f"exit {status}: ")
        assert batch["error"].endswith("first words\nlast words ☃")
        assert len(batch["error"]) < 4_096


@pytest.mark.parametrize(
    ("job_type", "told"), [("no-such-command", "cannot be started: No such file"), ("odd-command", "cannot be read")]
)
async def test_a_command_that_cannot_start_fails_its_batch(shop: Shop, job_type: str, told: str) -> None:
    """Trying again would not help."""
    made = await shop.start(job_type)

    assert (await shop.ended(made))["status"] == "failed"
    batch = await shop.batch(made)
    assert (batch["attempts"], told in batch["error"]) == (1, True)


async def test_a_cancel_kills_a_command_and_its_children(shop: Shop) -> None:
    """The whole session ends, a shell's children as well."""
    made = await shop.start("sh", "sleep")
    note = await shop.note(lambda note: "child" in note)

    await shop.crew.moved(made, "cancel")

    assert (await shop.ended(made))["status"] == "canceled"
    await shop.gone(note["pid"], note["child"])


async def test_a_daemon_left_behind_holds_up_nothing(shop: Shop) -> None:
    """The command has ended, although somebody still holds its standard error open."""
    made = await shop.start("sh", "leave a daemon")

    assert (await shop.ended(made))["status"] == "failed"
    daemon = (await shop.note())["child"]
    assert runs(daemon)
    os.kill(daemon, signal.SIGKILL)


async def test_a_command_that_reads_nothing_is_not_waited_for() -> None:
    """A batch larger than any pipe, and a command that looks away."""
    batch = b"x" * 2**20

    assert await run_command("true", batch, "http://localhost", "t") == Completed()
    assert await run_command("sh -c 'exec wc -c >&2; exit 1'", batch, "http://localhost", "t") == Completed()
    assert await run_command("sh -c 'wc -c >&2; exit 75'", batch, "http://localhost", "t") == Failed(
        "exit 75: 1048576", retryable=True
    )


PARENT = """
import asyncio, sys
from jobengine.worker.command_handler import run_command
asyncio.run(run_command("sh -c 'echo $$; exec sleep 600' ", b"{}", "http://localhost", "t"))
"""


async def test_a_worker_that_is_killed_takes_its_command_along() -> None:
    """Nobody would ever end it otherwise, and its batch has another holder by then."""
    marker = f"{600 + os.getpid() / 2**22:.7f}"
    parent = subprocess.Popen(  # noqa: ASYNC220 - it is killed below
        [sys.executable, "-c", PARENT.replace("sleep 600", f"sleep {marker}")], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(timedelta(seconds=20).total_seconds()):
            while not sleepers(marker):  # noqa: ASYNC110 - another process begins
                await asyncio.sleep(0.02)
            parent.kill()
            while sleepers(marker):  # noqa: ASYNC110 - another process ends
                await asyncio.sleep(0.02)
    finally:
        parent.kill()
        parent.wait()


def sleepers(marker: str) -> list[str]:
    """Return the processes that sleep for just so long."""
    found = subprocess.run(["pgrep", "-f", f"^sleep {marker}$"], capture_output=True, text=True, check=False)
    return found.stdout.split()
