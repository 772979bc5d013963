"""``python:`` handlers in real processes: what they may do, and what becomes of a batch when they die."""

import pytest
from tests.worker.conftest import Shop, runs


async def test_a_handler_gets_its_batch_and_completes_it(shop: Shop) -> None:
    """Window, checkpoint and attempt; what it claims is counted."""
    made = await shop.start("py", "work", last=2)

    shown = await shop.ended(made)

    assert shown["status"] == "completed"
    assert shown["progress"]["events"] == {"processed": 3, "duplicates": 3, "failed": 0}
    note = await shop.note(lambda note: note["fresh"])
    assert (note["fresh"], note["attempt"], note["checkpoint"]) == (["a", "b", "c"], 1, None)
    assert note["window"][0].startswith("2020-01-0")
    assert (await shop.crew.active(), await shop.crew.drift()) == (0, 0)


async def test_a_process_is_used_for_batch_after_batch(shop: Shop) -> None:
    """Starting one for each batch would be slower than many a batch."""
    await shop.ended(await shop.start("py", "work", last=12))

    pids = {path.read_text() for path in shop.notes.glob("*.json")}
    processes = {note.partition('"pid": ')[2].partition(",")[0] for note in pids}
    assert len(pids) == 12
    assert len(processes) <= 4


async def test_what_a_handler_prints_or_reads_is_its_own_affair(shop: Shop) -> None:
    """Neither print, nor a shell, nor input() meets the line to the supervisor."""
    shown = await shop.ended(await shop.start("py-once", "talk"))

    assert (shown["status"], shown["progress"]["events"]["processed"]) == ("completed", 3)


async def test_an_exception_is_tried_again_and_then_given_up(shop: Shop) -> None:
    """After a backoff each time; the batch keeps the last story, and no key stays claimed."""
    made = await shop.start("py", "raise")
    for attempt in (1, 2):

        async def waits(attempt: int = attempt) -> bool:
            batch = await shop.batch(made)
            return batch["attempts"] == attempt and batch["why_waiting"] == "backoff"

        await shop.until(waits)
        await shop.pass_time(5)

    assert (await shop.ended(made))["status"] == "failed"
    batch = await shop.batch(made)
    assert (batch["status"], batch["attempts"]) == ("failed", 3)
    assert batch["error"] == "LookupError: no luck ? in attempt 3"
    assert (await shop.crew.active(), await shop.crew.drift()) == (0, 0)


@pytest.mark.parametrize(("part", "how"), [("die", "exit 3"), ("fall", "signal 9"), ("leave", "exit 0")])
async def test_a_process_that_ends_early_fails_its_attempt_alone(shop: Shop, part: str, how: str) -> None:
    """The service goes on, and what the attempt claimed is free for the next one."""
    made = await shop.start("py", part, "work")

    async def waits() -> str | None:
        return (await shop.batch(made))["error"]

    assert await shop.until(waits) == f"the handler's process died: {how}"
    await shop.pass_time(5)
    assert (await shop.ended(made))["status"] == "completed"
    assert (await shop.note())["fresh"] == ["a", "b", "c"]


async def test_the_next_attempt_goes_on_from_the_checkpoint(shop: Shop) -> None:
    """What was claimed before it is processed, what was claimed after it is not."""
    made = await shop.start("py", "save_and_die", "work")

    async def waits() -> str | None:
        return (await shop.batch(made))["error"]

    await shop.until(waits)
    await shop.pass_time(5)

    assert (await shop.ended(made))["status"] == "completed"
    note = await shop.note()
    assert (note["checkpoint"], note["fresh"], note["attempt"]) == ({"at": "a"}, ["b", "c"], 2)


async def test_a_cancel_kills_the_handler_and_its_children(shop: Shop) -> None:
    """Within a beat and long before the batch would be fenced out."""
    made = await shop.start("py", "sleep")
    note = await shop.note(lambda note: "child" in note)
    assert runs(note["pid"])
    assert runs(note["child"])

    await shop.crew.moved(made, "cancel")

    assert (await shop.ended(made))["status"] == "canceled"
    await shop.gone(note["pid"], note["child"])
    assert (await shop.crew.active(), await shop.crew.drift()) == (0, 0)


async def test_a_lost_lease_kills_the_handler(shop: Shop) -> None:
    """An operator forces the admission out: the process ends, and the batch is tried again."""
    made = await shop.start("py", "sleep", "work")
    note = await shop.note(lambda note: "child" in note)
    [lease] = (await shop.crew.api.get("/admissions")).json()["items"]

    await shop.crew.api.delete(f"/admissions/{lease['lease_id']}")

    await shop.gone(note["pid"], note["child"])
    assert (await shop.ended(made))["status"] == "completed"
    assert (await shop.batch(made))["attempts"] == 2


async def test_what_cannot_be_claimed_or_saved_is_an_error_of_the_handler(shop: Shop) -> None:
    """It may catch it and go on; nothing was claimed or made final."""
    shown = await shop.ended(await shop.start("py-once", "misuse"))

    assert (shown["status"], shown["progress"]["events"]["processed"]) == ("completed", 3)
    note = await shop.note()
    assert len(note["refused"]) == 6
    assert note["refused"][0] == "keys[1]: must be 1 to 256 bytes"
    assert note["refused"][5] == "checkpoint: must be at most 65536 bytes"


async def test_a_handler_sees_no_secret_of_the_service(shop: Shop) -> None:
    """Its environment has none of our settings and no password of a database."""
    await shop.ended(await shop.start("py-once", "look"))

    environment = (await shop.note())["environment"]
    assert "PATH" in environment
    assert not [name for name in environment if name.startswith(("JOBENGINE_", "PGPASS"))]
    assert "secret" not in environment.values()


async def test_a_handler_waits_for_keys_that_another_holds(shop: Shop) -> None:
    """And leaves them alone when the other has completed."""
    first = await shop.start("py", "hold")
    await shop.note(lambda note: "holds" in note)
    said = {"parts": ["hold"], "notes": str(shop.notes), "keys": ["a", "b", "c"]}
    second = await shop.crew.start(0, job_type="py", params=said, window={
        "start": "2021-01-01T00:00:00Z", "end": "2021-01-02T00:00:00Z",
    })  # fmt: skip

    async def asks() -> bool:
        return (await shop.crew.counts(second)).get("running") == 1

    await shop.until(asks)

    shop.open_gate()

    assert (await shop.ended(first))["progress"]["events"]["processed"] == 3
    assert (await shop.ended(second))["progress"]["events"] == {"processed": 0, "duplicates": 3, "failed": 0}


async def test_a_handler_that_is_not_there_fails_its_batch(shop: Shop) -> None:
    """With a story that names what is missing."""
    made = await shop.start("missing")

    assert (await shop.ended(made))["status"] == "failed"
    assert "no_such_function" in (await shop.batch(made))["error"]
