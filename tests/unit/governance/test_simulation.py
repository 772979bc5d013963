"""Deciding recorded asks again: the same under the limits of the time, and what other limits would have done."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.quota.world import Admitted, decision

from jobengine.governance.simulation import Moment, Question
from jobengine.governance.simulation_replay import simulate
from jobengine.quota.admission import WHOLE_TENANT, Account, Ask
from jobengine.quota.model import Limits
from jobengine.quota.standing import micros_of
from jobengine.quota.waiting import HOUR
from jobengine.storage.asks import NO_ROW, AskLog, _Reader

START = datetime(2026, 3, 1, tzinfo=UTC)
SMALL = Limits(4, 6, 3, Decimal("0.5"))


@dataclass
class World:
    """A tenant as admission keeps it, with every decision by `decide`, and the record that is made of it."""

    now: datetime = START
    share: Decimal = Decimal("0.5")
    accounts: dict[str, Account] = field(default_factory=dict)
    hours: dict[str, list[datetime]] = field(default_factory=dict)
    leases: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    decisions: list[bool] = field(default_factory=list)
    tokens: int = 0

    def __post_init__(self) -> None:
        for name, quota in ((WHOLE_TENANT, None), ("scan", "q"), ("mail", None)):
            self.accounts[name] = Account(name, quota, SMALL)
            self.hours[name] = []

    def limit(self, name: str, quota_id: str | None, limits: Limits) -> None:
        """Change limits: the bucket is counted up to here at the old rate."""
        settled = self.accounts[name]
        if settled.bucket_at is not None and self.now > settled.bucket_at:
            settled = replace(settled, bucket_pico=settled.level_pico(self.now), bucket_at=self.now)
        self.accounts[name] = replace(settled, quota_id=quota_id, limits=limits)

    def transact(self, *steps: Ask | tuple[str, int], waits: bool = False) -> list[int]:
        """Carry out asks, and releases by job type and token; return the tokens of the grants, 0 for denials."""
        for name, hour in self.hours.items():
            hour[:] = [at for at in hour if at > self.now - HOUR]
            self.accounts[name] = replace(self.accounts[name], granted_hour=len(hour), batch_waits=waits)
        log = AskLog(self.now, self.share, self.accounts)
        over = [lease for lease in self.leases.values() if lease["expires_at"] <= self.now]
        for lease in over:
            log.ended(lease)
            self.end(lease)
        given: list[int] = []
        for step in steps:
            if isinstance(step, Ask):
                given.append(self.ask(step))
                log.asked(step, given[-1])
            elif lease := self.leases.get(step):
                log.ended(lease)
                self.end(lease)
        if (columns := log.columns(self.accounts)) is not NO_ROW:
            self.rows.append(read(columns, self.now))
        return given

    @property
    def moments(self) -> list[Moment]:
        """The whole record."""
        return self.since(0)

    def since(self, micros: int) -> list[Moment]:
        """The record as it is read for a replay from *micros* on: with the hour before it."""
        first = micros - 3_600 * 10**6
        reader = _Reader(first if any(row["micros"] < first for row in self.rows) else None)
        return [reader.moment(row) for row in self.rows if row["micros"] >= first]

    def ask(self, ask: Ask) -> int:
        whole = self.accounts[WHOLE_TENANT]
        concerned = [self.accounts[ask.job_type], *([whole] if whole.quota_id else [])]
        match decision(ask, concerned, backfill_share=self.share, now=self.now):
            case Admitted(accounts):
                self.decisions.append(True)
            case _:
                self.decisions.append(False)
                return 0
        for account in accounts:
            self.accounts[account.name] = account
        backfill = ask.slots if ask.kind == "backfill" else 0
        if whole.quota_id is None:
            self.accounts[WHOLE_TENANT] = replace(
                whole, active=whole.active + ask.slots, active_backfill=whole.active_backfill + backfill,
                granted_hour=whole.granted_hour + 1,
            )  # fmt: skip
        for name in (WHOLE_TENANT, ask.job_type):
            self.hours[name].append(self.now)
        self.tokens += 1
        self.leases[ask.job_type, self.tokens] = {
            "job_type": ask.job_type, "slots": ask.slots, "kind": ask.kind, "fencing_token": self.tokens,
            "expires_at": self.now + timedelta(seconds=ask.lease_seconds),
        }  # fmt: skip
        return self.tokens

    def end(self, lease: Mapping[str, Any]) -> None:
        del self.leases[lease["job_type"], lease["fencing_token"]]
        backfill = lease["slots"] if lease["kind"] == "backfill" else 0
        for name in (WHOLE_TENANT, lease["job_type"]):
            account = self.accounts[name]
            self.accounts[name] = replace(
                account, active=account.active - lease["slots"], active_backfill=account.active_backfill - backfill
            )

    def wait(self, seconds: float) -> "World":
        """Let time pass."""
        self.now += timedelta(seconds=seconds)
        return self


def read(columns: Mapping[str, Any], at: datetime) -> dict[str, Any]:
    """Return a row as the database gives it back: arrays as their text."""
    row = {name.removeprefix("asked_"): value for name, value in columns.items()}
    names = [name.strip('"') for name in row["accounts"].strip("{}").split(",")]
    return {**row, "accounts": names, "micros": micros_of(at), "share": str(row["share"])}


def asking(account: str = "scan", **limits: int) -> Question:
    """Return the question for other limits."""
    return Question(account, SMALL.changed(limits))


def live(seed: int) -> World:
    """Live through a random history: asks of two job types, releases, expiries, changes, pauses, batches that wait."""
    rng = random.Random(seed)  # noqa: S311 - a history that can be lived again
    world = World()
    for _ in range(rng.randrange(1, 80)):
        world.wait(rng.choice([0, 0.000001, 0.3, 2, 40, 900]))
        if rng.random() < 0.15:
            name = rng.choice(list(world.accounts))
            quota = "q" if name == "scan" else rng.choice([None, "q"])
            limits = Limits(rng.randrange(8), rng.randrange(12), rng.randrange(6), Decimal(rng.randrange(4)) / 4)
            world.limit(name, quota, limits)
            world.accounts[name] = replace(world.accounts[name], paused=rng.random() < 0.1)
        world.share = rng.choice([Decimal("0.5"), Decimal("0.25"), Decimal(1)])
        steps: list[Ask | tuple[str, int]] = list(
            rng.sample(sorted(world.leases), min(len(world.leases), rng.randrange(3)))
        )
        for _ in range(rng.randrange(5)):
            kind = rng.choice(["live", "live", "backfill"])
            steps.append(Ask(rng.choice(["scan", "mail"]), rng.choice([1, 1, 2, 9]), rng.choice([5, 60, 3600]), kind))
        rng.shuffle(steps)
        world.transact(*steps, waits=rng.random() < 0.3)
    return world


@given(seed=st.integers(0, 2**32))
def test_under_the_limits_of_the_time_every_decision_is_the_recorded_one(seed: int) -> None:
    """Whatever happened: changes, pauses, overrides, expiries, releases, batches of asks, the share of backfills."""
    world = live(seed)

    found = simulate(world.moments, Question(WHOLE_TENANT))

    assert found.changed == 0
    assert (found.asks, found.granted) == (len(world.decisions), sum(world.decisions))


@given(seed=st.integers(0, 2**32))
def test_a_replay_that_begins_later_decides_the_rest_the_same(seed: int) -> None:
    """What was in use then is known from the hour before."""
    world = live(seed)
    since = world.rows[len(world.rows) // 2]["micros"] if world.rows else 0

    found = simulate(world.since(since), Question(WHOLE_TENANT, since=since))

    assert found.changed == 0


@given(seed=st.integers(0, 2**32), tried=st.tuples(*[st.integers(0, 12)] * 3))
def test_an_answer_adds_up_and_repeats_itself(seed: int, tried: tuple[int, int, int]) -> None:
    """Each ask is counted once then and once now, and the same question on the same record has the same hash."""
    world = live(seed)
    question = asking(max_active=tried[0], max_per_hour=tried[1], burst=tried[2])

    found = simulate(world.moments, question)

    shown = found.as_json()
    assert shown["asks"] == shown["granted"] + shown["denied"] == shown["would_grant"] + shown["would_deny"]
    assert found.peak_active <= max(tried[0], 0)
    assert simulate(world.moments, question).result_hash("acme", question) == found.result_hash("acme", question)
    assert found.result_hash("other", question) != found.result_hash("acme", question)


def full(world: World) -> list[int]:
    """Take all four slots of `scan` and be denied a fifth."""
    world.limit("scan", "q", replace(SMALL, burst=100, max_per_hour=1000))
    return world.transact(*[Ask("scan")] * 5)


def test_a_raise_grants_what_was_denied() -> None:
    """A fifth slot is there, and the peak says so."""
    world = World()
    full(world)

    found = simulate(world.moments, asking(max_active=5, burst=100, max_per_hour=1000))

    assert (found.asks, found.granted, found.would_grant, found.peak_active) == (5, 4, 5, 5)


def test_an_ask_waits_until_the_same_ask_would_be_granted() -> None:
    """Denied at 0 s, a slot comes free at 7 s: nineteen of twenty wait no longer than that."""
    world = World()
    [held, *_] = full(world)
    world.wait(7).transact(("scan", held))

    found = simulate(world.moments, asking(burst=100, max_per_hour=1000))

    assert (found.would_grant, found.wait_p95_seconds) == (4, 7.0)


def test_a_wait_for_the_clock_alone_ends_between_the_moments() -> None:
    """A token comes after 2 s, though nothing happened before 60 s; an expiry counts from when it was."""
    by_rate, by_expiry = World(), World()
    by_rate.transact(*[Ask("scan")] * 4)
    by_rate.wait(60).transact(Ask("mail"))
    by_expiry.limit("scan", "q", Limits(1, 1000, 100, Decimal(1)))
    by_expiry.transact(Ask("scan", lease_seconds=5), Ask("scan"))
    by_expiry.wait(60).transact(Ask("mail"))

    assert simulate(by_rate.moments, asking()).wait_p95_seconds == 2.0
    assert simulate(by_expiry.moments, asking(max_active=1, burst=100, max_per_hour=1000)).wait_p95_seconds == 5.0


def test_a_wait_that_never_ends_is_not_made_up() -> None:
    """Where more than one in twenty is not granted to the end of the record, there is no figure."""
    world = World()
    full(world)
    world.wait(7).transact(Ask("mail"))

    assert simulate(world.moments, asking(max_active=0)).wait_p95_seconds is None


def test_a_lease_that_is_not_held_here_ends_nowhere() -> None:
    """The release of a lease that the replay denied gives nothing back; use never falls below nothing."""
    world = World()
    [first, second, *_] = full(world)
    world.wait(1).transact(("scan", first), ("scan", second))
    world.wait(1).transact(Ask("scan"))

    found = simulate(world.moments, asking(max_active=1, burst=100, max_per_hour=1000))

    # One of the first five; after its own release, the sixth.
    assert (found.would_grant, found.peak_active) == (2, 1)


def test_an_ask_that_was_denied_holds_as_long_as_others_did() -> None:
    """Nobody knows how long its work would have run: the mean of its job type's leases, or its own lease."""
    world = World()
    world.limit("scan", "q", Limits(1, 1000, 100, Decimal(100)))
    [held] = world.transact(Ask("scan"))
    world.wait(10).transact(("scan", held))
    world.transact(Ask("scan", lease_seconds=30), Ask("scan"))
    # At 20 s the one that was denied then has held its ten seconds; the other one runs on.
    world.wait(10).transact(Ask("scan"), Ask("scan"))

    found = simulate(world.moments, asking(max_active=2, burst=100, max_per_hour=1000))

    assert (found.granted, found.would_grant) == (2, 4)


def test_a_pause_of_the_time_holds_in_the_replay() -> None:
    """Other limits change nothing about a pause."""
    world = World()
    world.accounts["scan"] = replace(world.accounts["scan"], paused=True)
    world.transact(Ask("scan"))

    assert simulate(world.moments, asking(max_active=1000)).would_grant == 0


def test_asks_of_other_job_types_are_not_counted_but_use_the_tenant() -> None:
    """Under a limit on the whole tenant all asks count; a job type's quota counts its own."""
    world = World()
    world.transact(Ask("scan"), Ask("mail"))

    own, whole = (simulate(world.moments, asking(name)) for name in ("scan", WHOLE_TENANT))

    assert (own.asks, whole.asks) == (1, 2)


@pytest.mark.parametrize("question", [Question("scan"), asking()])
def test_an_empty_record_has_an_answer(question: Question) -> None:
    """Nothing was asked, nobody waited."""
    found = simulate([], question)

    assert found.as_json() == {
        "asks": 0, "granted": 0, "denied": 0, "would_grant": 0, "would_deny": 0, "peak_active": 0,
        "wait_p95_seconds": 0.0,
    }  # fmt: skip
