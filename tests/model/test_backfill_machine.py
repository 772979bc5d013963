"""Anything in any order: a real service beside a simple model of it, which must agree after every step."""

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, ClassVar, TypeVar

import httpx2
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from tests.backfilling import STATES, Crew, ask, days, make_crew
from tests.factories import Connection, make_api, new_tenant, pass_time
from tests.model.backfill_model import LEASE, Attempt, Backfill, Batch, World

from jobengine.bootstrap import Plane

STEP = 25
"""Seconds: two are well within a lease of 60, three well beyond, and one is more than a backoff and a fence."""
KEYS = ("a", "b", "c")
KIND = "patient"

Found = TypeVar("Found")
some_keys = st.lists(st.sampled_from(KEYS), min_size=1, max_size=5)


class Backfills(RuleBasedStateMachine):
    """One tenant, a week of days, one job type; every answer is held against the model."""

    loop: ClassVar[asyncio.AbstractEventLoop]
    plane: ClassVar[Plane]
    client: ClassVar[httpx2.AsyncClient]
    owner: ClassVar[Connection]

    def run(self, work: Coroutine[Any, Any, Found]) -> Found:
        """Wait in this thread for what the loop does."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=60)

    @initialize()
    def begin(self) -> None:
        """Make a tenant."""
        self.world = World()
        self.past: list[Attempt] = []
        self.tenant_id = self.run(new_tenant(self.plane))
        self.crew: Crew = self.run(make_crew(make_api(self.client, self.plane, self.tenant_id), KIND))
        self.start(0, 3, "missing", "forward", None)
        self.claim(2)

    @rule(
        first=st.integers(0, 4),
        length=st.integers(1, 3),
        reprocess=st.sampled_from(["missing", "missing", "failed", "all"]),
        order=st.sampled_from(["forward", "backward"]),
        max_active=st.sampled_from([None, None, 1, 2]),
    )
    def start(self, first: int, length: int, reprocess: str, order: str, max_active: int | None) -> None:
        """Ask for some days."""
        wanted = range(first, first + length)
        body = ask(job_type=KIND, window=days(first, first + length), reprocess=reprocess, order=order)
        answer = self.run(self.crew.api.post("/backfills", body | {"max_active": max_active}))
        if self.world.suppressed(wanted, reprocess):
            assert answer.status_code == 409, answer.text
            return
        assert answer.status_code == 202, answer.text
        backfill = Backfill(answer.json()["backfill_id"], wanted, reprocess, max_active)
        self.world.add(backfill)
        self.agree(backfill)

    @rule(most=st.integers(1, 6))
    def claim(self, most: int) -> None:
        """Take batches: only those that may be had, and at least those that must be."""
        self.world.sweep()
        taken = self.run(self.crew.claim(most, KIND))
        for claimed in taken:
            self.take(claimed)
        assert len(taken) == most or not list(self.world.eligible())

    def take(self, claimed: dict[str, Any]) -> None:
        """Hold one claimed batch against the model."""
        [backfill] = [one for one in self.world.backfills if one.backfill_id == claimed["backfill_id"]]
        [batch] = [one for one in backfill.batches.values() if days(one.day, one.day + 1) == claimed["window"]]
        assert batch in self.world.eligible(), (batch.status, backfill.status)
        batch.status, batch.attempts, batch.batch_id = "running", batch.attempts + 1, claimed["batch_id"]
        batch.lease_until, batch.backing_off = self.world.now + LEASE, False
        assert (claimed["attempt"], claimed["checkpoint"]) == (batch.attempts, batch.checkpoint)
        assert claimed["fencing_token"] > self.world.last_token
        self.world.last_token = claimed["fencing_token"]
        batch.attempt = Attempt(batch, claimed["fencing_token"])
        self.past.append(batch.attempt)
        backfill.status = "running"

    def any_attempt(self, data: st.DataObject) -> Attempt:
        """Choose an attempt, mostly a late one."""
        return data.draw(st.sampled_from(self.past[-6:]))

    def say(self, attempt: Attempt, verb: str, **body: object) -> httpx2.Response | None:
        """Say something for an attempt; None where it has lost its batch, and is told so."""
        named = {"batch_id": attempt.batch.batch_id, "fencing_token": attempt.token}
        answer = self.run(self.crew.say(named, verb, **body))
        if attempt.batch.attempt is attempt and self.world.held(attempt.batch):
            assert answer.status_code in {200, 204}, answer.text
            return answer
        again = verb == "complete" and attempt.batch.status == "succeeded" and attempt is self.winner(attempt.batch)
        assert answer.status_code == (204 if again else 409), answer.text
        return None

    def winner(self, batch: Batch) -> Attempt:
        """Return the last attempt at a batch."""
        return next(attempt for attempt in reversed(self.past) if attempt.batch is batch)

    @precondition(lambda self: self.past)
    @rule(data=st.data(), checkpoint=st.sampled_from([None, 1, {"at": 2}]))
    def beat(self, data: st.DataObject, checkpoint: object) -> None:
        """Stay alive, perhaps with a checkpoint."""
        attempt = self.any_attempt(data)
        answer = self.say(attempt, "heartbeat", checkpoint=checkpoint)
        if answer is None:
            return
        assert answer.json()["cancel_requested"] == (attempt.batch.backfill.status == "canceling")
        attempt.batch.lease_until = self.world.now + LEASE
        if checkpoint is not None:
            attempt.batch.checkpoint = checkpoint
            self.world.finalize(attempt)

    @precondition(lambda self: self.past)
    @rule(data=st.data(), keys=some_keys)
    def name_keys(self, data: st.DataObject, keys: list[str]) -> None:
        """Claim event keys."""
        attempt = self.any_attempt(data)
        answer = self.say(attempt, "events/claim", keys=keys)
        if answer is None:
            return
        told, call = answer.json(), frozenset(keys)
        assert [*told] == ["fresh", "duplicates", "busy"]
        assert sorted(key for found in told.values() for key in found) == sorted(call)
        for verdict, found in told.items():
            assert found == [key for key in dict.fromkeys(keys) if key in found]
            for key in found:
                allowed = self.world.answers(attempt, key, call)
                assert verdict in allowed, (key, verdict, allowed)
        for key in told["fresh"]:
            attempt.claims.setdefault(key, call)

    @precondition(lambda self: self.past)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        """End a batch well."""
        attempt = self.any_attempt(data)
        if self.say(attempt, "complete", events={"processed": len(attempt.claims)}) is not None:
            self.world.complete(attempt.batch)
        self.agree(attempt.batch.backfill)

    @precondition(lambda self: self.past)
    @rule(data=st.data(), retryable=st.booleans())
    def fail(self, data: st.DataObject, retryable: bool) -> None:
        """End an attempt badly."""
        attempt = self.any_attempt(data)
        if self.say(attempt, "fail", error="no luck", retryable=retryable) is not None:
            self.world.lose(attempt.batch, again=retryable, backing_off=True)
            # Steps take what time they take: a backoff lasts until time passes here, and not until a clock says so.
            longer = "update batches set not_before = not_before + interval '20 s' where batch_id = %s"
            self.run(self.owner.execute(longer, [attempt.batch.batch_id]))
        self.agree(attempt.batch.backfill)

    @rule()
    def wait(self) -> None:
        """Let some time pass."""
        self.run(pass_time(self.owner, self.tenant_id, timedelta(seconds=STEP)))
        self.world.now += STEP
        for batch in self.world.batches("pending"):
            batch.backing_off = False

    @precondition(lambda self: self.world.batches("running"))
    @rule(data=st.data())
    def force_out(self, data: st.DataObject) -> None:
        """End the admission of a running batch."""
        batch = data.draw(st.sampled_from(self.world.batches("running")))
        leases = self.run(self.crew.api.get("/admissions")).json()["items"]
        found = [lease for lease in leases if batch.attempt and lease["fencing_token"] == batch.attempt.token]
        assert len(found) == self.world.held(batch)
        for lease in found:
            assert self.run(self.crew.api.delete(f"/admissions/{lease['lease_id']}")).status_code == 204
            batch.lease_until = self.world.now

    @precondition(lambda self: self.world.backfills)
    @rule(data=st.data(), move=st.sampled_from(["pause", "pause", "resume", "resume", "cancel", "retry-failed"]))
    def move(self, data: st.DataObject, move: str) -> None:
        """Pause, resume, cancel or retry."""
        backfill = data.draw(st.sampled_from(self.world.backfills[-4:]))
        answer = self.run(self.crew.api.post(f"/backfills/{backfill.backfill_id}/{move}"))
        allowed = self.allows(backfill, move)
        assert answer.status_code == (200 if allowed else 409), answer.text
        if allowed:
            self.carry_out(backfill, move)
        self.agree(backfill)

    def allows(self, backfill: Backfill, move: str) -> bool:
        """Tell whether a backfill takes a move."""
        match move:
            case "pause":
                return backfill.status in {"pending", "running"}
            case "resume":
                return backfill.status == "paused"
            case "cancel":
                return backfill.status in {"pending", "running", "paused"}
            case _:
                return backfill.status == "failed" and not self.world.suppressed(backfill.days, "all")

    def carry_out(self, backfill: Backfill, move: str) -> None:
        """Do to the model what the service did."""
        match move:
            case "pause":
                backfill.status = "paused"
            case "resume":
                backfill.status = "running" if any(batch.attempts for batch in backfill.batches.values()) else "pending"
            case "cancel":
                backfill.status, backfill.canceled_at = "canceling", self.world.now
                for batch in backfill.batches.values():
                    batch.status = "canceled" if batch.status == "pending" else batch.status
            case _:
                backfill.status = "running"
                for batch in backfill.batches.values():
                    if batch.status == "failed":
                        batch.status, batch.attempts = "pending", 0
        backfill.settle()

    def agree(self, backfill: Backfill) -> None:
        """Hold state and counts of a backfill against the model."""
        shown = self.run(self.crew.show({"backfill_id": backfill.backfill_id}))
        counts = shown["progress"]["batches"]
        assert {state: counts[state] for state in STATES} == {state: backfill.count(state) for state in STATES}
        assert shown["status"] == backfill.status

    def teardown(self) -> None:
        """Whatever happened: each backfill stands where the model says, and the leases are those of held batches."""
        if not hasattr(self, "world"):
            return
        for backfill in self.world.backfills:
            self.agree(backfill)
        held = sum(self.world.held(batch) for batch in self.world.batches("running"))
        assert (self.run(self.crew.active()), self.run(self.crew.drift())) == (held, 0)


async def test_a_service_and_its_model_agree_whatever_happens(
    plane: Plane, client: httpx2.AsyncClient, owner: Connection
) -> None:
    """Counts always sum up, no key is processed twice, no batch is handed out while paused, no slot leaks."""
    Backfills.loop, Backfills.plane = asyncio.get_running_loop(), plane
    Backfills.client, Backfills.owner = client, owner
    chosen = settings(max_examples=settings.default.max_examples // 2, stateful_step_count=40, deadline=None)

    await asyncio.to_thread(run_state_machine_as_test, Backfills, settings=chosen)
