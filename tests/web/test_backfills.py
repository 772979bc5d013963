"""Contract section 6: preview, start, list and show backfills, and what is refused."""

import asyncio
from typing import Any

import pytest
from tests.backfilling import Crew, Json, ask, days, make_crew
from tests.factories import Api, Connection, expect_problem

MEMBERS = {
    "backfill_id", "tenant_id", "scope", "job_type", "source", "window", "params", "partition", "order", "reprocess",
    "max_active", "status", "progress", "reason", "ticket", "requested_by", "token_id", "created_at", "started_at",
    "finished_at", "audit_entry_id",
}  # fmt: skip


@pytest.fixture
async def crew(api: Api) -> Crew:
    """Somebody with room for their batches."""
    return await make_crew(api)


async def test_a_new_backfill_has_every_member(crew: Crew) -> None:
    """The resource that POST answers is the one that GET shows, and it says who, why and under which token."""
    answer = await crew.api.post("/backfills", ask(3, params={"region": "eu", "n": 1.0}))

    made = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (202, f"/api/v1/backfills/{made['backfill_id']}")
    assert made.keys() >= MEMBERS
    assert made["scope"] == {name: made[name] for name in ("job_type", "source", "window", "params")}
    assert (made["window"], made["params"]) == (days(0, 3), {"region": "eu", "n": 1})
    assert (made["partition"], made["order"], made["reprocess"], made["status"]) == (
        "P1D", "forward", "missing", "pending",
    )  # fmt: skip
    assert (made["reason"], made["ticket"], made["requested_by"]) == ("lost a day of events", "OPS-2", "ops")
    assert made["progress"]["batches"]["total"] == made["progress"]["batches"]["pending"] == 3
    assert made["progress"]["events"] == {"processed": 0, "duplicates": 0, "failed": 0}
    assert (made["started_at"], made["finished_at"], made["tenant_id"]) == (None, None, crew.api.tenant_id)
    assert await crew.show(made) == made


async def test_a_preview_tells_the_plan_and_changes_nothing(crew: Crew) -> None:
    """Not even a row that would keep a request waiting is left behind."""
    body = ask(3, order="backward")

    answer = await crew.api.post("/backfills/preview", body)

    found = answer.json()
    assert answer.status_code == 200
    assert found.keys() == {
        "batches", "first", "last", "window", "overlaps", "uncovered", "warnings", "plan_token",
    }  # fmt: skip
    assert (found["batches"], found["first"], found["last"]) == (3, days(0, 1), days(2, 3))
    assert (found["window"], found["uncovered"], found["overlaps"]) == (days(0, 3), [days(0, 3)], [])
    assert (await crew.api.get("/backfills")).json()["items"] == []
    assert (await crew.api.post("/backfills/preview", body)).json() == found


async def test_a_plan_token_starts_what_was_previewed(crew: Crew) -> None:
    """The token of this plan is good; that of another window, or of another limit, is not."""
    previews = [
        await crew.api.post("/backfills/preview", body)
        for body in (ask(3), ask(4), ask(3, max_active=1), ask(3, params={"a": 1}))
    ]
    good, *others = [answer.json()["plan_token"] for answer in previews]

    for token in (*others, "x", f"{good}="):
        expect_problem(await crew.api.post("/backfills", ask(3, plan_token=token)), 409, "plan_changed")
    await crew.start(3, plan_token=good)


async def test_a_plan_changes_when_a_batch_succeeds(crew: Crew) -> None:
    """What was previewed with work to do is not what would be done once somebody did it."""
    token = (await crew.api.post("/backfills/preview", ask(2, reprocess="missing"))).json()["plan_token"]
    first = await crew.start(1)
    await crew.done(await crew.one())
    assert (await crew.show(first))["status"] == "completed"

    answer = await crew.api.post("/backfills", ask(2, reprocess="missing", plan_token=token))

    expect_problem(answer, 409, "duplicate_backfill")
    stale = await crew.api.post("/backfills", ask(2, reprocess="all", plan_token=token))
    expect_problem(stale, 409, "plan_changed")


async def test_without_a_reason_no_backfill_is_touched(crew: Crew) -> None:
    """Another issuer's token may have the scope and no reason: neither starting nor moving goes without."""
    silent = crew.api.speaking("orch:backfill")
    expect_problem(await silent.post("/backfills", ask(3)), 400, "backfill_reason_required")
    made = await crew.start()

    for move in ("pause", "cancel"):
        answer = await silent.post(f"/backfills/{made['backfill_id']}/{move}")
        expect_problem(answer, 400, "backfill_reason_required")
    assert (await crew.show(made))["status"] == "pending"


async def test_an_operator_moves_a_backfill_under_a_reason_of_their_own(crew: Crew) -> None:
    """``orch:operate`` pauses and cancels, and starts nothing."""
    operator = crew.api.speaking("orch:operate", operator_reason="disk is full", operator_ticket="OPS-9")
    made = await crew.start()

    answer = await operator.post(f"/backfills/{made['backfill_id']}/pause")

    assert (answer.status_code, answer.json()["status"]) == (200, "paused")
    expect_problem(await operator.post("/backfills", ask(3, source="other")), 403, "insufficient_scope")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"window": {"start": "2020-01-01T00:00:00Z", "end": "2999-01-01T00:00:00Z"}}, "window_in_future"),
        ({"window": days(3, 3)}, "window_invalid"),
        ({"window": days(3, 2)}, "window_invalid"),
        ({"window": days(0, 694 * 2), "partition": "PT1M"}, "too_many_partitions"),
        ({"job_type": "nobody-configured-this"}, "unknown_job_type"),
        ({"partition": "P1M1D"}, "validation_failed"),
        ({"partition": "P0D"}, "validation_failed"),
        ({"partition": "PT1S"}, "validation_failed"),
        ({"params": {"n": 2**53}}, "validation_failed"),
        ({"params": {"text": "x" * 2**14}}, "validation_failed"),
        ({"params": []}, "validation_failed"),
        ({"source": ""}, "validation_failed"),
        ({"source": "a\nb"}, "validation_failed"),
        ({"source": "a\x00"}, "validation_failed"),
        ({"source": "s" * 201}, "validation_failed"),
        ({"order": "sideways"}, "validation_failed"),
        ({"reprocess": "some"}, "validation_failed"),
        ({"max_active": 0}, "validation_failed"),
        ({"max_failure_rate": 1.5}, "validation_failed"),
        ({"window": {"start": "2020-01-01T00:00:00+00:00", "end": "2020-01-02T00:00:00Z"}}, "validation_failed"),
        ({"window": {"start": "2020-01-01T00:00:00Z"}}, "validation_failed"),
        ({"window": days(0, 1) | {"tz": "UTC"}}, "unknown_field"),
        ({"tenant_id": "another"}, "unknown_field"),
    ],
)
@pytest.mark.parametrize("path", ["/backfills", "/backfills/preview"])
async def test_a_bad_request_is_refused_with_its_code(api: Api, path: str, changes: Json, code: str) -> None:
    """A preview refuses what a start would refuse."""
    expect_problem(await api.post(path, ask(3, **changes)), 422, code)


async def test_a_window_of_a_million_partitions_is_taken(crew: Crew) -> None:
    """Exactly as many as allowed; untouched they are a row, and those made ready are few."""
    made = await crew.start(
        0, window={"start": "2018-01-01T00:00:00Z", "end": "2019-11-26T10:40:00Z"}, partition="PT1M"
    )

    assert made["progress"]["batches"]["total"] == 1_000_000
    async with crew.api.plane.database.transaction(crew.api.tenant_id) as tx:
        ready = await tx.one("backfill_open", backfill_ids=[made["backfill_id"]])
        ranges = await tx.all("backfill_first_ranges", backfill_id=made["backfill_id"], most=100)
    assert ready["pending"] <= 64
    assert len(ranges) == 1
    *_, untouched = await crew.batches(made, page_size=100)
    assert (untouched["batch_id"], untouched["count"]) == (None, 1_000_000 - ready["pending"])


async def test_of_a_hundred_equal_requests_exactly_one_wins(crew: Crew) -> None:
    """The others learn whom they repeat, and that nothing of their window is left free."""
    answers = await asyncio.gather(*[crew.api.post("/backfills", ask(3)) for _ in range(100)])

    assert sorted(answer.status_code for answer in answers) == [202] + [409] * 99
    [winner] = [answer.json() for answer in answers if answer.status_code == 202]
    for answer in answers:
        if answer.status_code != 202:
            problem = expect_problem(answer, 409, "duplicate_backfill")
            assert [other["backfill_id"] for other in problem["overlaps"]] == [winner["backfill_id"]]
            assert problem["uncovered"] == []
    [only] = (await crew.api.get("/backfills")).json()["items"]
    assert only["backfill_id"] == winner["backfill_id"]


async def test_a_duplicate_names_what_is_still_free(crew: Crew) -> None:
    """An overlap of any part refuses the whole, and asking for the rest succeeds."""
    first = await crew.start(0, window=days(2, 4))

    problem = expect_problem(await crew.api.post("/backfills", ask(6)), 409, "duplicate_backfill")

    assert problem["overlaps"] == [{"backfill_id": first["backfill_id"], "status": "pending", "window": days(2, 4)}]
    assert problem["uncovered"] == [days(0, 2), days(4, 6)]
    for window in problem["uncovered"]:
        await crew.start(0, window=window)


@pytest.mark.parametrize(
    "changes", [{"source": "invoices"}, {"params": {"a": 1}}, {"window": days(3, 6)}, {"job_type": "patient"}]
)
async def test_another_key_is_no_duplicate(crew: Crew, changes: Json) -> None:
    """Job type, source, parameters and window all tell requests apart."""
    await crew.start(3)

    await crew.start(3, **changes)


async def test_equal_parameters_are_equal_however_they_are_written(crew: Crew) -> None:
    """Absent is ``{}``, and the order of members and the spelling of numbers say nothing."""
    await crew.start(3)
    await crew.start(3, source="b", params={"a": 1, "b": 100})

    for changes in ({"params": {}}, {"params": None}, {"source": "b", "params": {"b": 1e2, "a": 1.0}}):
        expect_problem(await crew.api.post("/backfills", ask(3, **changes)), 409, "duplicate_backfill")


async def test_completed_work_suppresses_for_a_day(crew: Crew, later: Any) -> None:
    """``all`` repeats it at once, and after the suppression window anybody may."""
    first = await crew.start(1)
    await crew.done(await crew.one())
    assert (await crew.show(first))["status"] == "completed"

    for reprocess in ("missing", "failed"):
        again = await crew.api.post("/backfills", ask(1, reprocess=reprocess))
        assert expect_problem(again, 409, "duplicate_backfill")["overlaps"][0]["status"] == "completed"
    second = await crew.start(1, reprocess="all")
    await crew.moved(second, "cancel")
    await later(crew.api.tenant_id, 24 * 3600 + 60)
    third = await crew.start(1)
    assert (third["status"], third["progress"]["batches"]["skipped"]) == ("completed", 1)


async def test_active_work_is_never_repeated(crew: Crew) -> None:
    """``all`` may repeat finished work only; failed and canceled ones suppress nobody."""
    first = await crew.start(1)
    expect_problem(await crew.api.post("/backfills", ask(1, reprocess="all")), 409, "duplicate_backfill")
    await crew.moved(first, "pause")
    expect_problem(await crew.api.post("/backfills", ask(1, reprocess="all")), 409, "duplicate_backfill")
    assert (await crew.moved(first, "cancel"))["status"] == "canceled"

    second = await crew.start(1)
    await crew.fail(await crew.one())
    assert (await crew.show(second))["status"] == "failed"
    await crew.start(1)


async def test_a_list_is_filtered_and_paged(crew: Crew) -> None:
    """Oldest first, by state, job type and source; a token continues its own list alone."""
    made = [await crew.start(1, source=source) for source in ("a", "b", "c")]
    await crew.moved(made[1], "pause")

    async def listed(**query: object) -> list[str]:
        answer = await crew.api.get("/backfills", params=query)
        assert answer.status_code == 200, answer.text
        return [item["source"] for item in answer.json()["items"]]

    assert await listed() == ["a", "b", "c"]
    assert await listed(status="paused") == ["b"]
    assert await listed(source="c", job_type="external") == ["c"]
    assert await listed(job_type="patient") == []
    page = (await crew.api.get("/backfills", params={"page_size": 2})).json()
    assert await listed(page_size=2, page_token=page["next_page_token"]) == ["c"]
    foreign = await crew.api.get("/backfills", params={"source": "a", "page_token": page["next_page_token"]})
    expect_problem(foreign, 422, "page_token_invalid")


@pytest.mark.parametrize("query", [{"status": "lost"}, {"job_type": "no such"}, {"source": "a\x00"}, {"color": "red"}])
async def test_a_list_refuses_a_filter_it_does_not_know(api: Api, query: Json) -> None:
    """A state that does not exist is a mistake and not an empty list."""
    expect_problem(await api.get("/backfills", params=query), 422, "validation_failed")


async def test_another_tenant_sees_and_moves_nothing(crew: Crew, stranger: Api) -> None:
    """The answer is the same as for a backfill that does not exist."""
    made = await crew.start()
    path = f"/backfills/{made['backfill_id']}"

    for answer in (
        await stranger.get(path),
        await stranger.get(f"{path}/batches"),
        await stranger.get(f"{path}/events"),
        *[await stranger.post(f"{path}/{move}") for move in ("pause", "resume", "cancel", "retry-failed")],
        await crew.api.get("/backfills/not-an-id"),
    ):
        expect_problem(answer, 404, "not_found")
    assert (await stranger.get("/backfills")).json()["items"] == []
    await Crew(stranger).start()


async def test_whatever_happens_to_a_backfill_is_in_the_log(crew: Crew, owner: Connection) -> None:
    """Each entry carries the reason of whoever acted; the end has nobody behind it."""
    made = await crew.start(1)
    expect_problem(await crew.api.post("/backfills", ask(1)), 409, "duplicate_backfill")
    await crew.moved(made, "pause")
    await crew.moved(made, "resume")
    await crew.done(await crew.one(), processed=2)

    found = await owner.execute(
        "select e.action, e.outcome, e.resource_id, t.text from audit_entries e left join audit_texts t"
        " on t.tenant_id = e.tenant_id and t.entry_id = e.entry_id and t.field = 'reason'"
        " where e.tenant_id = %s and e.action like 'backfill.%%' order by e.entry_id",
        [crew.api.tenant_id],
    )

    told = [(row["action"], row["outcome"], row["text"]) for row in await found.fetchall()]
    reason = "lost a day of events"
    assert told == [
        ("backfill.requested", "success", reason),
        ("backfill.duplicate_rejected", "refused", reason),
        ("backfill.paused", "success", reason),
        ("backfill.resumed", "success", reason),
        ("backfill.completed", "success", None),
    ]
