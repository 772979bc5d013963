"""Workers on Celery shot at random moments: every event stands exactly once, and nothing is left behind.

JOBENGINE_TEST_WORKER_KILLS says how often; `make soak` shoots fifty times.
"""

import os
import random
import signal
from collections import Counter
from time import sleep

import pytest
from tests.acceptance.advisories import find_advisories
from tests.acceptance.test_real_events import END, START
from tests.broker.conftest import Play
from tests.broker.crew import Crew
from tests.broker.test_wake_ups import DAY

KILLS = int(os.environ.get("JOBENGINE_TEST_WORKER_KILLS", "3"))
REAL_KILLS = min(20, KILLS)
RUN_SECONDS = 240
MOMENTS = [0.2 + 2.5 * byte / 256 for byte in os.urandom(KILLS)]


def test_workers_that_are_shot_at_random_moments_lose_and_repeat_no_event(play: Play, crew: Crew) -> None:
    """What a dead worker claimed is free again when its lease is over; what it completed stays."""
    dice = random.SystemRandom()
    crew.start()
    crew.start()
    backfills = [play.start(params={"seconds": 0.2})]
    for moment in MOMENTS:
        sleep(moment)
        crew.kill(dice.choice(crew.running))
        crew.start()
        if play.caller.get(f"/backfills/{backfills[-1]['backfill_id']}")["status"] == "completed":
            backfills.append(play.start(params={"seconds": 0.2}))
    for backfill in backfills:
        ended = play.completed(backfill)
        assert ended["progress"]["events"] == {"processed": len(DAY), "duplicates": 0, "failed": 0}

    # Each backfill is of a source of its own, so the same names are other events.
    assert play.output()[0] == Counter(dict.fromkeys(DAY, len(backfills)))
    play.nothing_left()
    for worker in list(crew.running):
        # One that was started a moment ago may not have begun to listen to signals.
        assert crew.stop(worker) in {0, -signal.SIGTERM}
    # Nobody holds a message now: what was held would lie in the queue again.
    assert play.stage.lane.depth() == 0


@pytest.mark.parametrize("stage", ["rabbitmq"], indirect=True)
def test_real_events_reach_the_output_once_though_workers_are_shot(play: Play, crew: Crew) -> None:
    """240 months on two workers: every event of the window once, and nothing is left behind."""
    advisories = find_advisories(play.out)
    dice = random.SystemRandom()
    crew.start()
    crew.start()
    window = {"start": START, "end": END}
    params = {"events": str(advisories.path), "out": str(play.out / "out"), "seconds": 0.02 * (REAL_KILLS + 1)}
    backfill = play.start("P1M", job_type="advisory-ingest", window=window, params=params)
    for _ in range(REAL_KILLS):
        sleep(0.5 + dice.random())
        crew.kill(dice.choice(crew.running))
        crew.start()

    ended = play.completed(backfill, RUN_SECONDS)

    expected = advisories.between(START, END)
    assert ended["progress"]["batches"]["succeeded"] == 240
    assert ended["progress"]["events"] == {"processed": len(expected), "duplicates": 0, "failed": 0}
    assert play.output()[0] == Counter(expected)
    play.nothing_left()
