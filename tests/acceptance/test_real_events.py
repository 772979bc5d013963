"""Two decades of real events run through a backfill, again, and once more."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.acceptance.advisories import Advisories, find_advisories
from tests.acceptance.callers import ROOMY, Caller, done
from tests.acceptance.conftest import Clients
from tests.acceptance.serving import Server
from tests.factories import expect_problem

JOB_TYPE = "advisory-ingest"
START, END = "2005-01-01T00:00:00Z", "2025-01-01T00:00:00Z"
AGAIN_START, AGAIN_END = "2020-01-01T00:00:00Z", "2023-01-01T00:00:00Z"
DIES_IN = ("2006-01", "2015-06", "2021-07")
RUN_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Run:
    """Two backfills that have ended, over the same events in the same tenant."""

    caller: Caller
    advisories: Advisories
    params: Mapping[str, Any]
    first: Mapping[str, Any]
    again: Mapping[str, Any]


def ask(params: Mapping[str, Any], start: str, end: str, **changes: object) -> dict[str, Any]:
    window = {"start": start, "end": end}
    body = {"job_type": JOB_TYPE, "source": "advisories", "window": window, "partition": "P1M", "params": params}
    return {**body, **changes}


@pytest.fixture(scope="module")
def run(http: httpx2.Client, served: Server, clients: Clients, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run the first backfill over everything, and the second over three years of it, to their ends."""
    folder = tmp_path_factory.mktemp("advisories")
    advisories = find_advisories(folder)
    caller = Caller(http, served.url, clients.ours, next(clients.fresh))
    done(caller.post("/quotas", {"job_type": JOB_TYPE, "limits": ROOMY | {"max_active": 8}}), 201)
    params = {"events": str(advisories.path), "out": str(folder / "out"), "dies_in": DIES_IN}
    first = done(caller.post("/backfills", ask(params, START, END)), 202)
    first = caller.ended(first["backfill_id"], RUN_SECONDS)
    again = done(caller.post("/backfills", ask(params, AGAIN_START, AGAIN_END, reprocess="all")), 202)
    return Run(caller, advisories, params, first, caller.ended(again["backfill_id"], RUN_SECONDS))


def output(run: Run, backfill: Mapping[str, Any]) -> tuple[Counter[str], int]:
    """Return how often each key stands in the output of attempts that completed, and how many attempts did not."""
    written: dict[str, dict[int, list[str]]] = {}
    for path in Path(run.params["out"], backfill["backfill_id"]).iterdir():
        batch_id, token, _ = path.name.split(".")
        written.setdefault(batch_id, {})[int(token)] = json.loads(path.read_text("utf-8"))
    # Fencing tokens grow, and every batch succeeded: its newest attempt is the one that completed.
    completed = [files[max(files)] for files in written.values()]
    return Counter(key for keys in completed for key in keys), sum(len(files) - 1 for files in written.values())


def test_backfill_of_two_decades_by_month_processes_every_event_of_the_window_once(run: Run) -> None:
    """240 months run, though three attempts died on the way; the event of the year 1 stays outside."""
    expected = run.advisories.between(START, END)

    assert run.first["status"] == "completed"
    assert run.first["progress"]["batches"] == {
        "total": 240, "pending": 0, "running": 0, "succeeded": 240, "failed": 0, "skipped": 0, "canceled": 0,
    }  # fmt: skip
    assert run.first["progress"]["events"] == {"processed": len(expected), "duplicates": 0, "failed": 0}
    assert len(expected) == len(run.advisories.events) - 1


def test_output_of_the_attempts_that_completed_holds_every_event_exactly_once(run: Run) -> None:
    """What the dead attempts wrote lies beside it under other fencing tokens and counts for nothing."""
    found, dead = output(run, run.first)

    assert found == Counter(run.advisories.between(START, END))
    assert dead == len(DIES_IN)


def test_batches_of_the_finished_backfill_cover_the_window_without_a_gap(run: Run) -> None:
    """Every month is one batch, from the first of one to the first of the next."""
    batches = run.caller.items(f"/backfills/{run.first['backfill_id']}/batches")

    assert [batch["window"]["start"] for batch in batches[1:]] == [batch["window"]["end"] for batch in batches[:-1]]
    assert (batches[0]["window"]["start"], batches[-1]["window"]["end"]) == (START, END)
    assert {batch["window"]["start"][7:] for batch in batches} == {"-01T00:00:00Z"}
    assert {
        batch["window"]["start"][:7]: batch["attempts"] for batch in batches if batch["attempts"] > 1
    } == dict.fromkeys(DIES_IN, 2)


def test_reprocessing_all_of_three_years_processes_each_of_their_events_once_more(run: Run) -> None:
    """Nothing is left out because it was done before, and nothing is done twice."""
    expected = run.advisories.between(AGAIN_START, AGAIN_END)

    found, _ = output(run, run.again)

    assert run.again["status"] == "completed"
    assert run.again["progress"]["batches"]["succeeded"] == 36
    assert run.again["progress"]["events"] == {"processed": len(expected), "duplicates": 0, "failed": 0}
    assert found == Counter(expected)


def test_overlapping_request_for_missing_events_is_told_which_windows_are_still_free(run: Run) -> None:
    """Both backfills that cover the window are named; what lies before and after them may be asked for."""
    start, end = "2004-03-01T00:00:00Z", "2025-07-01T00:00:00Z"

    answer = run.caller.post("/backfills", ask(run.params, start, end))

    problem = expect_problem(answer, 409, "duplicate_backfill")
    assert [(other["backfill_id"], other["status"]) for other in problem["overlaps"]] == [
        (run.first["backfill_id"], "completed"),
        (run.again["backfill_id"], "completed"),
    ]
    assert problem["uncovered"] == [{"start": start, "end": START}, {"start": END, "end": end}]


def test_preview_of_the_missing_events_of_other_params_covers_the_whole_window(run: Run) -> None:
    """Other params are another work: nothing of it was done, and nothing suppresses it."""
    params = {**run.params, "dies_in": []}

    found = done(run.caller.post("/backfills/preview", ask(params, START, END)), 200)

    assert (found["batches"], found["overlaps"]) == (240, [])
    assert found["uncovered"] == [{"start": START, "end": END}]


def test_slots_and_hourly_count_are_right_after_thousands_of_events(run: Run) -> None:
    """Every slot was given back, and every batch that ran was an admission."""
    [quota] = run.caller.items("/quotas", job_type=JOB_TYPE)

    assert (quota["usage"]["active"], quota["usage"]["active_backfill"]) == (0, 0)
    assert quota["usage"]["granted_last_hour"] == 240 + len(DIES_IN) + 36 + 1
    assert run.caller.get("/quotas/drift")["drift"] == 0


def test_audit_log_of_the_run_holds_each_backfill_from_request_to_end(run: Run) -> None:
    """Requests and completions are entries; the log verifies."""
    requested = run.caller.logged(2, action="backfill.requested")
    completed = run.caller.logged(2, action="backfill.completed")

    ids = [run.first["backfill_id"], run.again["backfill_id"]]
    assert [entry["resource"]["id"] for entry in requested] == ids
    assert [entry["resource"]["id"] for entry in completed] == ids
    assert run.caller.get("/audit/verify")["ok"] is True
