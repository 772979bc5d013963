"""``jobengine backfill`` against a running server."""

import os
import pty
import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from tests.cli.processes import Shell, Tenant, wait_until

from jobengine.cli.exits import Exit


@pytest.fixture
def source(request: pytest.FixtureRequest) -> str:
    """A source that no other test uses, so that no backfill is a duplicate by accident."""
    return request.node.name[:200]


def begin(admin: Shell, source: str, *more: str) -> dict[str, Any]:
    """Start a backfill of one batch."""
    made = admin.run("backfill", "start", "totals", source, "2026-03-01", "2026-03-02", *more, "--output", "json")
    assert made.code == 0, made.err
    return made.document


def claim(worker: httpx2.Client, backfill_id: str) -> dict[str, Any]:
    """Claim the batch of a backfill, which becomes claimable within a second."""
    found: list[dict[str, Any]] = []

    def handed_out() -> bool:
        answer = worker.post("/batches/claim", json={"job_types": ["totals"], "max": 64}).json()
        found.extend(batch for batch in answer["batches"] if batch["backfill_id"] == backfill_id)
        return bool(found)

    wait_until(handed_out)
    return found[0]


def complete(worker: httpx2.Client, batch: dict[str, Any]) -> None:
    """Complete a batch."""
    body = {"fencing_token": batch["fencing_token"], "events": {"processed": 7}}
    assert worker.post(f"/batches/{batch['batch_id']}/complete", json=body).status_code == 204


@pytest.fixture(autouse=True)
def nothing_left(admin: Shell) -> Iterator[None]:
    """Cancel what a test has left, so that it takes no slots from the next."""
    yield
    for backfill in admin.run("backfill", "list", "--output", "json").document["items"]:
        if backfill["status"] in {"pending", "running", "paused"}:
            admin.run("backfill", "cancel", backfill["backfill_id"])


def test_a_preview_counts_the_batches(admin: Shell, source: str) -> None:
    """Days stand for their first moments, and nothing is created."""
    found = admin.run("backfill", "preview", "totals", source, "2026-03-01", "2026-04-01", "--output", "json").document

    assert found["batches"] == 31
    assert found["window"] == {"start": "2026-03-01T00:00:00Z", "end": "2026-04-01T00:00:00Z"}
    assert admin.run("backfill", "list", "--source", source, "--output", "json").document["items"] == []


def test_a_start_takes_only_what_its_preview_showed(admin: Shell, source: str) -> None:
    """A plan token of another window is refused."""
    plan = admin.run("backfill", "preview", "totals", source, "2026-03-01", "2026-03-03", "--output", "json").document

    other = admin.run(
        "backfill", "start", "totals", source, "2026-03-01", "2026-03-04", "--plan-token", plan["plan_token"]
    )
    same = admin.run(
        "backfill", "start", "totals", source, "2026-03-01", "2026-03-03", "--plan-token", plan["plan_token"]
    )

    assert (other.code, same.code) == (Exit.REFUSED, Exit.OK)
    assert "(plan_changed)" in other.err


def test_a_start_carries_its_choices_and_reason(admin: Shell, source: str) -> None:
    """What is chosen on the command line stands in the request."""
    made = begin(admin, source, "--partition", "PT6H", "--order", "backward", "--params", '{"region": "eu"}')

    assert made["progress"]["batches"]["total"] == 4
    assert (made["partition"], made["order"], made["params"]) == ("PT6H", "backward", {"region": "eu"})
    assert made["reason"] == "old rates were wrong"


def test_a_duplicate_shows_the_windows_still_free(admin: Shell, source: str) -> None:
    """Exit code 5, with the overlap and what is not covered."""
    first = begin(admin, source)

    ended = admin.run("backfill", "start", "totals", source, "2026-03-01", "2026-03-05")

    assert ended.code == Exit.REFUSED
    assert "(duplicate_backfill)" in ended.err
    assert first["backfill_id"] in ended.err
    assert '  uncovered: [{"start": "2026-03-02T00:00:00Z", "end": "2026-03-05T00:00:00Z"}]' in ended.err


def test_moves_lead_from_state_to_state(admin: Shell, source: str) -> None:
    """Pause, resume and cancel answer with the state; a move that the state forbids is refused."""
    backfill_id = begin(admin, source)["backfill_id"]

    forbidden = admin.run("backfill", "resume", backfill_id)
    states = [
        admin.run("backfill", verb, backfill_id, "--output", "json").document["status"]
        for verb in ("pause", "resume", "cancel")
    ]

    assert forbidden.code == Exit.REFUSED
    assert "(invalid_state)" in forbidden.err
    assert states[0] == "paused"
    assert states[1] in {"pending", "running"}
    assert states[2] in {"canceling", "canceled"}


def test_an_operator_pauses_with_a_scope_of_their_own(admin: Shell, tenant: Tenant, source: str) -> None:
    """``--operate`` asks for `orch:operate`, which needs a reason and a ticket."""
    backfill_id = begin(admin, source)["backfill_id"]
    operator = tenant.speaking("Operator")

    refused = operator.run("backfill", "pause", backfill_id, "--operate", "--reason", "load is high")
    paused = operator.run(
        "backfill", "pause", backfill_id, "--operate", "--reason", "load is high", "--ticket", "INC-4"
    )

    assert (refused.code, "operator_ticket" in refused.err) == (Exit.USAGE, True)
    assert paused.out.startswith(f"{backfill_id} is paused")


def test_a_watch_ends_with_zero_when_the_backfill_completed(admin: Shell, worker: httpx2.Client, source: str) -> None:
    """Away from a terminal every change is a line, and the last one is the end."""
    backfill_id = begin(admin, source)["backfill_id"]
    watching = admin.start("backfill", "watch", backfill_id, "--interval", "0.1")
    assert watching.stdout is not None
    first = watching.stdout.readline().decode()

    complete(worker, claim(worker, backfill_id))
    out, err = watching.communicate(timeout=60)

    assert "0/1 batches" in first
    assert out.decode().splitlines()[-1] == "completed: 1/1 batches, 7 events"
    assert (watching.returncode, err) == (Exit.OK, b"")


def test_a_watch_draws_a_bar_on_a_terminal(admin: Shell, worker: httpx2.Client, source: str) -> None:
    """The bar counts batches and ends with the last state."""
    backfill_id = begin(admin, source)["backfill_id"]
    complete(worker, claim(worker, backfill_id))
    ours, theirs = pty.openpty()

    watching = admin.start("backfill", "watch", backfill_id, stdout=theirs)
    watching.communicate(timeout=60)
    os.close(theirs)
    drawn = os.read(ours, 65536).decode()
    os.close(ours)

    assert watching.returncode == Exit.OK
    assert re.search(r"completed.*1/1.*7 events", re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", drawn))


def test_a_watch_ends_with_one_when_the_backfill_was_canceled(admin: Shell, source: str) -> None:
    """With ``--output json`` the last state is the one document on standard output."""
    backfill_id = begin(admin, source)["backfill_id"]
    admin.run("backfill", "cancel", backfill_id)

    ended = admin.run("backfill", "watch", backfill_id, "--interval", "0.1", "--output", "json")

    assert ended.code == Exit.ERROR
    assert ended.document["status"] == "canceled"
    assert "canceled: " in ended.err


def test_the_batches_of_a_backfill_are_listed(admin: Shell, worker: httpx2.Client, source: str) -> None:
    """A batch that was handed out has its id; those nobody has touched are one line."""
    backfill_id = begin(admin, source)["backfill_id"]
    batch = claim(worker, backfill_id)

    page = admin.run("backfill", "batches", backfill_id, "--output", "json").document

    assert batch["batch_id"] in [item["batch_id"] for item in page["items"]]
    assert "running" in admin.run("backfill", "batches", backfill_id).out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["start", "totals", "x", "2999-01-01", "2999-01-02"], Exit.REFUSED, "(window_in_future)"),
        (["start", "totals", "x", "2026-03-02", "2026-03-01"], Exit.REFUSED, "(window_invalid)"),
        (["start", "nothing", "x", "2026-03-01", "2026-03-02"], Exit.REFUSED, "(unknown_job_type)"),
        (["start", "totals", "x", "yesterday", "2026-03-02"], Exit.USAGE, "(validation_failed)"),
        (
            ["start", "totals", "x", "2000-01-01", "2026-03-01", "--partition", "PT1M"],
            Exit.REFUSED,
            "(too_many_partitions)",
        ),
        (["show", "0198c0de-0000-7000-8000-000000000000"], Exit.NOT_FOUND, "(not_found)"),
        (
            ["start", "totals", "x", "2026-03-01", "2026-03-02", "--reason", "."],
            Exit.USAGE,
            "JOBENGINE_BACKFILL_REASON",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_backfill_that_cannot_be_is_refused(admin: Shell, arguments: list[str], code: int, said: str) -> None:
    """The exit code tells a wrong value from a refusal."""
    ended = admin.run("backfill", *arguments)

    assert (ended.code, ended.out) == (code, "")
    assert said in ended.err


def test_a_reader_that_stops_listening_is_no_fault(admin: Shell) -> None:
    """A pipe that was closed ends the command without a stack trace."""
    with admin.start("backfill", "list") as listing:
        assert listing.stdout is not None
        assert listing.stderr is not None
        listing.stdout.close()
        said = listing.stderr.read()

    assert b"Traceback" not in said
