"""Contract section 6: a backfill's progress as Server-Sent Events, read over a real connection."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from litestar import Litestar
from tests.backfilling import Crew, Json, make_crew, serving
from tests.factories import API, Api, expect_problem, revoke_token

from jobengine.clock import utc_now
from jobengine.ids import new_id
from jobengine.web import backfill_events


@dataclass(frozen=True)
class Event:
    """One message of a stream; a comment has no name."""

    name: str | None
    id: int | None
    data: Any


Listen = Callable[..., AbstractAsyncContextManager[AsyncIterator[Event]]]


@pytest.fixture
async def crew(api: Api) -> Crew:
    """Somebody with room for their batches."""
    return await make_crew(api)


@pytest.fixture
async def url(app: Litestar) -> AsyncIterator[str]:
    """The address of the application, served for real."""
    async with serving(app) as address:
        yield address


@pytest.fixture
def listen(crew: Crew, url: str, monkeypatch: pytest.MonkeyPatch) -> Listen:
    """What opens the stream of a backfill, which looks more often than in the field."""
    monkeypatch.setattr(backfill_events, "LOOK_EVERY", timedelta(milliseconds=10))

    @asynccontextmanager
    async def opened(
        made: Json, last_event_id: object = None, token: str | None = None
    ) -> AsyncIterator[AsyncIterator[Event]]:
        headers = {"Authorization": f"Bearer {token or crew.api.token}"}
        if last_event_id is not None:
            headers["Last-Event-ID"] = str(last_event_id)
        path = f"{url}{API}/backfills/{made['backfill_id']}/events"
        async with (
            httpx2.AsyncClient(trust_env=False, timeout=10) as client,
            client.stream("GET", path, headers=headers) as answer,
        ):
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["cache-control"] == "no-cache"
            yield events(answer)

    return opened


async def events(answer: httpx2.Response) -> AsyncIterator[Event]:
    """Read the messages of a stream (HTML standard, section 9.2)."""
    fields: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            number = int(fields["id"]) if "id" in fields else None
            yield Event(fields.get("event"), number, json.loads(fields["data"]) if "data" in fields else fields.get(""))
            fields = {}


def running(event: Event) -> int:
    """Return how many batches an event says are running."""
    return int(event.data["progress"]["batches"]["running"])


async def test_a_stream_tells_every_change_and_the_end(crew: Crew, listen: Listen) -> None:
    """The state at once, each change in its turn with a greater id, and `end` when nothing more happens."""
    made = await crew.start(1)
    async with listen(made) as stream:
        first = await anext(stream)
        assert (first.name, first.data) == ("progress", made)
        batch = await crew.one()
        second = await anext(stream)
        assert (second.name, second.data["status"], running(second)) == ("progress", "running", 1)
        await crew.done(batch, processed=3)
        third, end = [event async for event in stream]

    assert (third.name, third.data["status"], third.data["progress"]["events"]["processed"]) == (
        "progress", "completed", 3,
    )  # fmt: skip
    assert (end.name, end.id, end.data["status"]) == ("end", None, "completed")
    assert first.id < second.id < third.id


async def test_a_reader_that_comes_back_is_told_what_it_missed(crew: Crew, listen: Listen) -> None:
    """The state at once when it has changed since the last event, and nothing when it has not."""
    made = await crew.start(2)
    async with listen(made) as stream:
        seen = (await anext(stream)).id

    first, second = await crew.claim(2)
    async with listen(made, seen) as stream:
        told = await anext(stream)
        assert (told.name, running(told)) == ("progress", 2)
    async with listen(made, told.id) as stream:
        await crew.done(first)
        assert running(await anext(stream)) == 1
    await crew.done(second)
    async with listen(made, told.id) as stream:
        last, end = [event async for event in stream]
    assert (last.name, last.data["status"], end.name) == ("progress", "completed", "end")
    async with listen(made, last.id) as stream:
        assert [event.name async for event in stream] == ["end"]


@pytest.mark.parametrize("last_event_id", ["", "x", "-1", "9" * 60, "1.5", "0"])
async def test_a_foreign_event_id_resumes_nothing(crew: Crew, listen: Listen, last_event_id: str) -> None:
    """The stream begins with the state as it stands."""
    made = await crew.start(1)
    async with listen(made, last_event_id) as stream:
        assert (await anext(stream)).name == "progress"


async def test_a_quiet_stream_says_that_it_lives(crew: Crew, listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comment now and then, which no reader takes for an event; time alone is no change."""
    monkeypatch.setattr(backfill_events, "QUIET_FOR", timedelta(milliseconds=30))
    made = await crew.start(2)
    await crew.done(await crew.one())
    async with listen(made) as stream:
        assert (await anext(stream)).name == "progress"
        assert [await anext(stream) for _ in range(3)] == [Event(None, None, "nothing new")] * 3


async def test_a_stream_ends_with_its_token(crew: Crew, listen: Listen) -> None:
    """Nobody reads on with a token that is over."""
    made = await crew.start(1)
    reader = crew.api.speaking("orch:read", exp=int(utc_now().timestamp()) + 2)

    async with listen(made, token=reader.token) as stream:
        assert [event.name async for event in stream] == ["progress"]

    assert (await reader.get(f"/backfills/{made['backfill_id']}")).status_code == 401


async def test_a_stream_ends_when_its_token_is_revoked(crew: Crew, listen: Listen) -> None:
    """As every other request with that token does, within a second."""
    made = await crew.start(1)
    token_id = new_id()
    reader = crew.api.speaking("orch:read", jti=token_id)

    async with listen(made, token=reader.token) as stream:
        assert (await anext(stream)).name == "progress"
        await revoke_token(crew.api.plane, crew.api.tenant_id, token_id)
        assert [event async for event in stream] == []


async def test_a_stream_ends_when_its_reader_is_gone(
    crew: Crew, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody looks for a reader that hung up."""
    look, looks = backfill_events._look, [0]

    async def counted(edge: Any, backfill_id: str) -> backfill_events.State:
        looks[0] += 1
        return await look(edge, backfill_id)

    monkeypatch.setattr(backfill_events, "_look", counted)
    made = await crew.start(1)
    async with listen(made) as stream:
        await anext(stream)

    before = -1
    while before != looks[0]:
        before = looks[0]
        # Ten looks' time, over another connection.
        for _ in range(30):
            await crew.show(made)
    assert looks[0] == before


async def test_only_readers_of_the_tenant_may_follow(crew: Crew, stranger: Api) -> None:
    """Refusals are problem documents and not streams."""
    path = f"/backfills/{(await crew.start(1))['backfill_id']}/events"
    expect_problem(await stranger.get(path), 404, "not_found")
    expect_problem(await crew.api.get("/backfills/0198c0de-0000-7000-8000-000000000000/events"), 404, "not_found")
    expect_problem(await crew.api.speaking("orch:execute").get(path), 403, "insufficient_scope")
    expect_problem(await crew.api.get(path, params={"since": "1"}), 422, "validation_failed")
