"""Workers on Celery: woken over a real broker that loses, repeats and reorders what it is given, and goes away."""

import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from celery import Celery
from tests.acceptance.serving import ROOT, eventually
from tests.broker.conftest import SLOTS, Play
from tests.broker.crew import PATIENCE_SECONDS, Crew
from tests.broker.handlers import EVENTS_OF_A_BATCH

DAY = Counter(f"2026-03-01T{hour:02}/{number}" for hour in range(24) for number in range(EVENTS_OF_A_BATCH))


def test_a_woken_worker_runs_every_batch_and_leaves_nothing_behind(play: Play, crew: Crew) -> None:
    """Each event stands once in the output; no lease, no wake-up and no message is left."""
    worker = crew.start()
    ended = play.completed(play.start())

    assert ended["progress"]["events"] == {"processed": len(DAY), "duplicates": 0, "failed": 0}
    assert play.output() == (DAY, 0)
    play.nothing_left()
    assert crew.stop(worker) == 0
    assert "Traceback" not in crew.told()


def test_wake_ups_that_wait_for_a_worker_are_few_and_carry_ids_alone(play: Play) -> None:
    """However many batches are due, no more messages lie there than the workers have slots; nobody purges a queue."""
    backfill = play.start()
    eventually(lambda: play.stage.lane.depth() == SLOTS or None, PATIENCE_SECONDS, "a full queue")

    messages = play.stage.lane.take()
    eventually(lambda: play.stage.lane.depth() == SLOTS or None, PATIENCE_SECONDS, "a queue that is full again")

    for message in messages:
        assert message.content_type == "application/json"
        arguments, named, _ = message.payload
        assert arguments == []
        assert set(named) == {"tenant_id", "job_type", "backfill_id", "batch_id"}
        assert (named["tenant_id"], named["backfill_id"]) == (play.caller.tenant, backfill["backfill_id"])
        assert (message.headers["eta"], message.headers["retries"]) == (None, 0)
    play.caller.post(f"/backfills/{backfill['backfill_id']}/cancel")
    eventually(lambda: not play.left_behind() or None, PATIENCE_SECONDS, "a canceled backfill without wake-ups")
    play.stage.lane.lose()


def test_messages_that_are_lost_are_sent_again(play: Play, crew: Crew) -> None:
    """The queue is emptied behind everybody's back, again and again: the ledger still knows what is to be done."""
    backfill = play.start()
    for _ in range(3):
        eventually(lambda: play.stage.lane.lose() or None, PATIENCE_SECONDS, "messages to lose")
    crew.start()

    play.completed(backfill)

    assert play.output() == (DAY, 0)
    play.nothing_left()


def test_messages_that_come_many_times_and_in_any_order_change_nothing(play: Play, crew: Crew) -> None:
    """Copies of old wake-ups come before, between and after the batches that they speak of."""
    backfill = play.start()
    eventually(lambda: play.stage.lane.depth() == SLOTS or None, PATIENCE_SECONDS, "messages to copy")
    messages = play.stage.lane.take()
    play.stage.lane.put([*reversed(messages)] * 3)
    crew.start()
    play.stage.lane.put(messages * 3)

    play.completed(backfill)
    play.stage.lane.put(messages * 3)

    assert play.output() == (DAY, 0)
    play.nothing_left()


def test_a_broker_that_goes_away_for_a_while_holds_nothing_up_for_good(play: Play, crew: Crew) -> None:
    """Server and worker lose every connection in the middle of a backfill, twice, and find the broker again."""
    crew.start()
    backfill = play.start("PT30M", params={"seconds": 0.2})
    for share in (8, 20):
        worked(play, share)
        play.stage.wire.cut()
        assert play.stage.server.is_ready()
        play.stage.wire.mend()

    ended = play.completed(backfill)

    # Half an hour each: two batches name the same events, and each event is processed once.
    assert ended["progress"]["events"] == {"processed": len(DAY), "duplicates": len(DAY), "failed": 0}
    assert play.output()[0] == DAY
    play.nothing_left()


def worked(play: Play, batches: int) -> None:
    """Return when so many batches have written their events."""
    events = batches * EVENTS_OF_A_BATCH
    eventually(lambda: sum(play.output()[0].values()) >= events or None, PATIENCE_SECONDS, "more work")


def test_wake_ups_of_a_paused_backfill_hand_nothing_out(play: Play, crew: Crew) -> None:
    """Messages that were sent before the pause find nothing to claim."""
    backfill = play.start()
    path = f"/backfills/{backfill['backfill_id']}"
    eventually(lambda: play.stage.lane.depth() == SLOTS or None, PATIENCE_SECONDS, "messages")
    play.caller.post(f"{path}/pause")
    crew.start()
    eventually(lambda: play.stage.lane.depth() == 0 or None, PATIENCE_SECONDS, "an empty queue")

    assert play.output() == (Counter(), 0)
    play.caller.post(f"{path}/resume")
    play.completed(backfill)

    assert play.output() == (DAY, 0)
    play.nothing_left()


@pytest.mark.parametrize("stage", ["rabbitmq"], indirect=True)
def test_a_worker_that_is_told_to_end_gives_its_batch_back(play: Play, crew: Crew) -> None:
    """It lets the handler come to its end for ten seconds; then the batch waits again, and no attempt is counted."""
    backfill = play.start("P1D", job_type="linger")
    worker = crew.start()
    eventually(lambda: list(play.out.glob("*.1.*")) or None, PATIENCE_SECONDS, "a handler at work")

    assert crew.stop(worker) == 0

    [batch] = play.caller.items(f"/backfills/{backfill['backfill_id']}/batches")
    assert (batch["status"], batch["attempts"]) == ("pending", 0)
    (play.out / "go").touch()
    crew.start()
    play.completed(backfill)
    play.nothing_left()


# On Redis alone: for queues such as ours, Celery itself would leave 28 queues of its own on RabbitMQ.
@pytest.mark.parametrize("stage", ["redis"], indirect=True)
def test_an_application_of_ones_own_runs_batches_beside_its_tasks(play: Play, crew: Crew) -> None:
    """The example: tasks in processes that are forked, of which one is shot in the middle of a batch."""
    crew.command = ("-m", "celery", "--app", "celery_app", "worker", "--concurrency", "2", "--loglevel", "WARNING")
    crew.environ["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT / "src", ROOT, ROOT / "examples")))
    worker = crew.start()
    backfill = play.start(params={"seconds": 0.2})
    worked(play, 2)

    children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text("ascii").split()
    os.kill(int(children[0]), signal.SIGKILL)
    own = Celery("theirs", broker=play.stage.broker_url, set_as_current=False)
    own.send_task("celery_app.yours", ignore_result=True)
    play.completed(backfill)

    assert play.output()[0] == DAY
    play.nothing_left()
    with own.connection_for_read() as connection:
        eventually(lambda: not connection.default_channel.client.llen("celery") or None, PATIENCE_SECONDS, "a task")
    assert crew.stop(worker) == 0
    assert "unregistered" not in crew.told()
