"""Pause, resume, cancel and retry while workers claim and complete: what was answered holds in every interleaving."""

import asyncio
from dataclasses import dataclass, field

import httpx2
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.backfilling import Crew, Json, make_crew
from tests.factories import make_api, new_tenant

from jobengine.bootstrap import Plane

DAYS = 30
WORKERS = 3
MOVES = ("pause", "resume", "cancel", "retry-failed")


@dataclass
class Race:
    """One backfill, the workers that run it, and somebody who moves it meanwhile."""

    crew: Crew
    made: Json
    failing: int
    silent_since: int | None = None
    """The turn from which on nothing may be handed out, until somebody asks for more."""
    turn: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def work(self) -> None:
        """Claim and end batches until the race is over."""
        while not self.over.is_set():
            self.turn += 1
            asked_at = self.turn
            batches = await self.crew.claim(2)
            # Silence that was answered before this claim was sent, and that nobody has broken since.
            silent = self.silent_since is not None and asked_at > self.silent_since
            assert not (silent and batches), "a batch was handed out after the answer to a pause or a cancel"
            for batch in batches:
                if batch["fencing_token"] % 5 < self.failing:
                    await self.crew.fail(batch)
                else:
                    await self.crew.done(batch)

    async def move(self, move: str) -> None:
        """Make a move that may be forbidden by now; only what was answered with success counts."""
        silent, self.silent_since = self.silent_since, None
        answer = await self.crew.move(self.made, move)
        assert answer.status_code in {200, 409}, answer.text
        if answer.status_code == 200 and move in {"pause", "cancel"}:
            self.silent_since = self.turn
        elif answer.status_code == 409:
            self.silent_since = silent

    async def run(self, moves: list[tuple[str, int]]) -> None:
        """Let everybody go, then let everything end, and look at what is left."""
        workers = [asyncio.create_task(self.work()) for _ in range(WORKERS)]
        for move, claims in moves:
            until = self.turn + claims
            while self.turn < until and not any(worker.done() for worker in workers):  # noqa: ASYNC110 - the workers count turns
                await asyncio.sleep(0)
            await self.move(move)
        self.over.set()
        await asyncio.gather(*workers)
        if (await self.crew.show(self.made))["status"] in {"pending", "running", "paused"}:
            assert (await self.crew.move(self.made, "cancel")).status_code == 200
        shown = await self.crew.show(self.made)
        assert shown["status"] in {"completed", "failed", "canceled"}
        counts = shown["progress"]["batches"]
        assert (counts["pending"], counts["running"]) == (0, 0)
        assert (await self.crew.active(), await self.crew.drift()) == (0, 0)


async def test_moves_hold_against_workers_at_full_speed(plane: Plane, client: httpx2.AsyncClient) -> None:
    """No batch starts after the answer to a pause or a cancel, nothing is left running, no slot leaks."""
    loop = asyncio.get_running_loop()

    async def race(moves: list[tuple[str, int]], failing: int) -> None:
        crew = await make_crew(make_api(client, plane, await new_tenant(plane)))
        await Race(crew, await crew.start(DAYS), failing).run(moves)

    @settings(max_examples=settings.default.max_examples // 3, deadline=None)
    @given(
        moves=st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 6)), min_size=1, max_size=6),
        failing=st.sampled_from([0, 1, 5]),
    )
    def races(moves: list[tuple[str, int]], failing: int) -> None:
        asyncio.run_coroutine_threadsafe(race(moves, failing), loop).result(120)

    await asyncio.to_thread(races)
