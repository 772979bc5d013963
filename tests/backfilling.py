"""What tests of backfills share: how to ask for one, how to work on its batches, and what must always hold."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx2
import uvicorn
from tests.factories import Api

START: Final = datetime(2020, 1, 1, tzinfo=UTC)
ROOMY: Final = {"max_active": 100, "max_per_hour": 100_000, "burst": 10_000, "refill_per_second": 1_000}
STATES: Final = ("pending", "running", "succeeded", "failed", "skipped", "canceled")

Json = dict[str, Any]


def days(first: int, last: int) -> dict[str, str]:
    """Return the days from *first* to *last*, counted from 0."""
    return {"start": _time(first), "end": _time(last)}


def ask(last: int = 3, /, **changes: object) -> Json:
    """Return the body that asks for the days before *last*, with *changes* by name."""
    return {"job_type": "external", "source": "orders", "window": days(0, last)} | changes


@dataclass(frozen=True, slots=True)
class Crew:
    """Somebody who starts backfills and works on their batches over the API."""

    api: Api

    async def start(self, last: int = 3, /, **changes: object) -> Json:
        """Start a backfill that is no duplicate and return it."""
        answer = await self.api.post("/backfills", ask(last, **changes))
        assert answer.status_code == 202, answer.text
        return answer.json()

    async def show(self, backfill: Json) -> Json:
        """Return a backfill as it stands, its counts checked."""
        answer = await self.api.get(f"/backfills/{backfill['backfill_id']}")
        assert answer.status_code == 200, answer.text
        found = answer.json()
        counts = found["progress"]["batches"]
        assert sum(counts[state] for state in STATES) == counts["total"], counts
        return found

    async def counts(self, backfill: Json) -> dict[str, int]:
        """Return the counts that are not zero."""
        found = await self.show(backfill)
        return {name: count for name, count in found["progress"]["batches"].items() if count}

    async def batches(self, backfill: Json, **query: object) -> list[Json]:
        """Return the first page of a backfill's batches."""
        answer = await self.api.get(f"/backfills/{backfill['backfill_id']}/batches", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()["items"]

    async def move(self, backfill: Json, move: str) -> httpx2.Response:
        """Pause, resume, cancel or retry-failed."""
        return await self.api.post(f"/backfills/{backfill['backfill_id']}/{move}")

    async def moved(self, backfill: Json, move: str) -> Json:
        """Make an allowed move and return what it answers."""
        answer = await self.move(backfill, move)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def claim(self, most: int = 1, *job_types: str) -> list[Json]:
        """Take up to *most* batches."""
        answer = await self.api.post("/batches/claim", {"job_types": job_types or ["external"], "max": most})
        assert answer.status_code == 200, answer.text
        return answer.json()["batches"]

    async def one(self, *job_types: str) -> Json:
        """Take the one batch that must be there."""
        [batch] = await self.claim(1, *job_types)
        return batch

    async def say(self, batch: Mapping[str, Any], verb: str, **body: object) -> httpx2.Response:
        """Say something about a batch under its own fencing token, unless *body* names another."""
        named = {"fencing_token": batch["fencing_token"]} | body
        return await self.api.post(f"/batches/{batch['batch_id']}/{verb}", named)

    async def done(self, batch: Mapping[str, Any], **events: int) -> None:
        """Complete a batch."""
        answer = await self.say(batch, "complete", events=events)
        assert answer.status_code == 204, answer.text

    async def fail(self, batch: Mapping[str, Any], *, retryable: bool = False) -> None:
        """Fail a batch's attempt."""
        answer = await self.say(batch, "fail", error="no luck", retryable=retryable)
        assert answer.status_code == 204, answer.text

    async def keys(self, batch: Mapping[str, Any], *keys: str) -> tuple[list[str], list[str], list[str]]:
        """Claim event keys and return those that are fresh, duplicate and busy."""
        answer = await self.say(batch, "events/claim", keys=keys)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        return found["fresh"], found["duplicates"], found["busy"]

    async def drift(self) -> int:
        """Return how far kept use has parted from the leases."""
        return (await self.api.get("/quotas/drift")).json()["drift"]

    async def active(self) -> int:
        """Return how many leases live."""
        return len((await self.api.get("/admissions", params={"page_size": 500})).json()["items"])


async def make_crew(api: Api, *job_types: str) -> Crew:
    """Return a crew with room for its batches of these job types."""
    for job_type in job_types or ["external"]:
        await api.quota(job_type, **ROOMY)
    return Crew(api)


def _time(day: int) -> str:
    return f"{START + timedelta(days=day):%Y-%m-%dT%H:%M:%SZ}"


@asynccontextmanager
async def serving(app: Any, bound: socket.socket | None = None) -> AsyncIterator[str]:
    """Serve *app* over a real port of this machine, in this very loop, and yield its address."""
    bound = bound or socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    # Not serve(): that would take the signals of the test run. Whoever calls before it accepts waits in the backlog.
    running = asyncio.create_task(server._serve([bound]))
    try:
        yield "http://{}:{}".format(*bound.getsockname())
    finally:
        server.should_exit = True
        await running
        bound.close()
