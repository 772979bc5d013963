"""Anything in any order, through two servers on one database whose clock is told: a model judges each answer."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import httpx2
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from tests.conftest import MakeDatabase
from tests.factories import Api, new_tenant
from tests.model.reference_admission import HOUR, SECOND, TOO_MANY, Ask, Lease, Name, Override, Quota, Tenant
from tests.model.told_clock import Servers, servers_on, time_of

SPANS = [
    SECOND * 9 // 10,
    SECOND * 102 // 100,
    5 * SECOND,
    30 * SECOND,
    300 * SECOND - 1,
    300 * SECOND,
    HOUR // 2,
    HOUR,
]
Found = TypeVar("Found")

job_types = st.sampled_from(["scan", "scan", "index"])
names = st.sampled_from(["scan", "scan", None])
asks = st.builds(
    Ask,
    job_type=job_types,
    slots=st.sampled_from([1, 1, 1, 2, 3]),
    lease_seconds=st.sampled_from([5, 30, 300]),
    job_id=st.sampled_from([None, None, None, "a", "b"]),
    kind=st.sampled_from(["live", "live", "live", "backfill"]),
)
limits = st.fixed_dictionaries(
    {
        "max_active": st.integers(1, 5),
        "max_per_hour": st.integers(1, 10),
        "burst": st.integers(1, 6),
        "refill_per_second": st.sampled_from([1, 1, 0.5, 0.333333, 0]),
    }
)
some_limit = st.sampled_from([("max_active", 6), ("max_per_hour", 10), ("burst", 6)])
servers = st.sampled_from([0, 1])


@pytest.fixture
async def two_servers(migrated_database: MakeDatabase, tmp_path: Path) -> AsyncIterator[Servers]:
    """Two servers on a database of their own."""
    async with servers_on(await migrated_database(), tmp_path) as opened:
        yield opened


class Admissions(RuleBasedStateMachine):
    """One tenant with a quota, perhaps one for the whole of it, and a job type without; every answer is checked."""

    loop: ClassVar[asyncio.AbstractEventLoop]
    servers: ClassVar[Servers]

    def run(self, work: Coroutine[Any, Any, Found]) -> Found:
        """Wait in this thread for what the loop does."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=120)

    def at(self, server: int) -> Api:
        """Speak to one of the servers."""
        return self.servers.at(server, self.tenant_id)

    @initialize(mine=limits, whole=st.one_of(st.none(), limits))
    def begin(self, mine: dict[str, Any], whole: dict[str, Any] | None) -> None:
        """Make a tenant and its quotas."""
        self.tenant_id = self.run(new_tenant(self.servers.planes[0]))
        self.tenant = Tenant(self.servers.now)
        self.told: tuple[Ask, int] | None = None
        self.changed: set[Name] = set()
        """Whose limits are not the first ones: what is shown of their buckets goes by the limits of now alone."""
        for name, wanted in (("scan", mine), (None, whole)):
            if wanted is not None:
                answer = self.run(self.at(0).post("/quotas", {"job_type": name, "limits": wanted}))
                assert answer.status_code == 201, answer.text
                exact = {key: Fraction(str(value)) for key, value in wanted.items()}
                self.tenant.quotas[name] = Quota(answer.json()["quota_id"], exact)

    @rule(ask=asks, server=servers)
    def ask(self, ask: Ask, server: int) -> None:
        """Ask once."""
        self.judge([ask], [self.run(self.at(server).post("/admissions", vars(ask)))])

    @rule(ask=asks, count=st.integers(2, 8))
    def ask_at_once(self, ask: Ask, count: int) -> None:
        """Ask the same several times at once, through both servers."""

        async def crowd() -> Sequence[httpx2.Response]:
            at = [self.at(0), self.at(1)]
            return await asyncio.gather(*(at[number % 2].post("/admissions", vars(ask)) for number in range(count)))

        # Whoever came first is known afterwards: grants by their tokens, then repeats, then denials.
        answers = sorted(self.run(crowd()), key=lambda one: (-(one.status_code == 201), one.status_code, _token(one)))
        self.judge([ask] * count, answers)

    @rule(asked=st.lists(asks, min_size=1, max_size=5), server=servers)
    def ask_in_one_call(self, asked: list[Ask], server: int) -> None:
        """Ask for several jobs in one call; conflicts of names are another test's."""
        nameless = [Ask(one.job_type, one.slots, one.lease_seconds, None, one.kind) for one in asked]
        body = {"requests": [vars(one) for one in nameless]}
        answer = self.run(self.at(server).post("/admissions/batch", body))
        assert answer.status_code == 200, answer.text
        self.servers.operations += len(asked)
        for one, result in zip(nameless, answer.json()["results"], strict=True):
            if result["granted"]:
                self.granted(one, result)
            else:
                self.denied(one, result["blocking"])

    def judge(self, asked: Sequence[Ask], answers: Sequence[httpx2.Response]) -> None:
        """Hold answers against the model, in this order."""
        self.servers.operations += len(asked)
        for ask, answer in zip(asked, answers, strict=True):
            told = answer.json()
            if (same := self.tenant.same_job(ask)) is not None:
                equal = (ask.job_type, ask.slots, ask.kind) == (same.ask.job_type, same.ask.slots, same.ask.kind)
                assert answer.status_code == (200 if equal else 409), answer.text
                assert told["lease_id" if equal else "code"] == (same.lease_id if equal else "job_id_conflict")
            elif answer.status_code == 201:
                self.granted(ask, told)
            elif answer.status_code == 422:
                assert (told["code"], self.tenant.blocking(ask)) == ("slots_exceed_limit", TOO_MANY)
            else:
                assert answer.status_code == 429, answer.text
                self.denied(ask, told["blocking"])

    def granted(self, ask: Ask, told: dict[str, Any]) -> None:
        """Hold a grant against the model: nothing stood in its way."""
        assert self.tenant.blocking(ask) == []
        lease = self.tenant.grant(ask, told["lease_id"])
        assert (told["fencing_token"], told["expires_at"]) == (lease.token, time_of(lease.expires))

    def denied(self, ask: Ask, told: list[dict[str, Any]]) -> None:
        """Hold a denial against the model: these limits, these numbers, and a wait that is honest."""
        expected = self.tenant.blocking(ask)
        if expected == TOO_MANY:
            assert [one["retry_after_seconds"] for one in told] == [None]
            return
        numbers = [(one["limit"], one["job_type"], one["maximum"], one["used"], one["requested"]) for one in told]
        assert numbers == expected
        assert all(one["quota_id"] == self.quota_id(one["job_type"]) for one in told)
        waits = [one["retry_after_seconds"] for one in told]
        if None in waits:
            assert not [at for at in self.turning_points() if self.tenant.blocking(ask, at) == []]
            return
        ends = [self.tenant.now + round(wait * SECOND) for wait in waits]
        assert self.tenant.blocking(ask, max(ends) - 1) != []
        raises = [one for quota in self.tenant.quotas.values() for one in quota.overrides]
        if not any(one.starts <= self.tenant.now < one.until <= max(ends) for one in raises):
            assert self.tenant.blocking(ask, max(ends)) == []
        # A raise that ends meanwhile may close what was open: then each limit's wait speaks for that limit alone.
        last: dict[tuple[str, Name], int] = {}
        for (limit, name, *_), end in zip(numbers, ends, strict=True):
            last[limit, name] = max(end, last.get((limit, name), 0))
        for (limit, name), end in last.items():
            assert limit not in {found for found, *_ in self.tenant.blocking_of(ask, name, end)}
        self.told = ask, max(ends)

    def turning_points(self) -> set[int]:
        """Return the times at which something gives way by itself, as far as anybody can know now."""
        ends = {
            one.until for quota in self.tenant.quotas.values() for one in quota.overrides if one.until > self.tenant.now
        }
        hours = {moment + HOUR for moments in self.tenant.granted.values() for moment in moments}
        refilled = {self.tenant.now + seconds * SECOND for seconds in (1, 60, 3600)}
        return {
            at
            for at in {*ends, *hours, *refilled, *(one.expires for one in self.tenant.live())}
            if at > self.tenant.now
        }

    def quota_id(self, name: Name) -> str | None:
        """Return whose quota a limit is; the defaults are nobody's."""
        return self.tenant.quotas[name].quota_id if name in self.tenant.quotas else None

    @precondition(lambda self: self.tenant.leases)
    @rule(
        data=st.data(),
        verb=st.sampled_from(["renew", "renew", "release"]),
        seconds=st.sampled_from([None, 5, 600]),
        off=st.sampled_from([0, 0, 0, 0, 1, -1]),
        server=servers,
    )
    def say(self, data: st.DataObject, verb: str, seconds: int | None, off: int, server: int) -> None:
        """Renew or release, mostly with the right token."""
        lease: Lease = data.draw(st.sampled_from(self.tenant.leases[-6:]))
        body: dict[str, Any] = {"fencing_token": lease.token + off}
        body |= {"lease_seconds": seconds} if verb == "renew" and seconds else {}
        answer = self.run(self.at(server).post(f"/admissions/{lease.lease_id}/{verb}", body))
        self.servers.operations += 1
        if verb == "release" and lease.released and not off:
            assert lease.ended is not None
            assert answer.status_code == (204 if lease.ended > self.tenant.now - HOUR else 404), answer.text
        elif lease not in self.tenant.live() or off:
            assert (answer.status_code, answer.json()["code"]) == (409, "lease_lost"), answer.text
        elif verb == "release":
            assert answer.status_code == 204, answer.text
            lease.ended, lease.released = self.tenant.now, True
        else:
            lease.seconds = seconds or lease.seconds
            lease.expires = self.tenant.now + lease.seconds * SECOND
            assert (answer.status_code, answer.json()["expires_at"]) == (200, time_of(lease.expires))

    @precondition(lambda self: self.tenant.leases)
    @rule(data=st.data(), server=servers)
    def force_out(self, data: st.DataObject, server: int) -> None:
        """End a lease against its holder's will."""
        lease: Lease = data.draw(st.sampled_from(self.tenant.leases[-4:]))
        answer = self.run(self.at(server).delete(f"/admissions/{lease.lease_id}"))
        self.servers.operations += 1
        assert answer.status_code == (204 if lease in self.tenant.live() else 404), answer.text
        lease.ended = self.tenant.now if lease in self.tenant.live() else lease.ended

    @rule(span=st.sampled_from(SPANS))
    def let_pass(self, span: int) -> None:
        """Let leases expire, buckets refill, hours roll and raises end."""
        self.servers.let_pass(span)
        self.tenant.now = self.servers.now

    @precondition(lambda self: self.told is not None and self.told[1] >= self.tenant.now)
    @rule(server=servers)
    def wait_as_told(self, server: int) -> None:
        """Whoever waits as long as told and asks again is judged by the model: granted, if nothing else happened."""
        assert self.told is not None
        ask, until = self.told
        self.let_pass(until - self.tenant.now)
        self.ask(ask, server)

    @rule(name=names, limit=some_limit, data=st.data(), server=servers)
    def change(self, name: Name, limit: tuple[str, int], data: st.DataObject, server: int) -> None:
        """Raise or lower a limit under load."""
        if (quota := self.tenant.quotas.get(name)) is not None:
            # As in any database: what comes after a transaction has a later time, if by a microsecond.
            self.let_pass(1)
            value = data.draw(st.integers(1, limit[1]))
            self.tenant.change(name, limit[0], value)
            self.changed.add(name)
            self.done(server, "PATCH", f"/quotas/{quota.quota_id}", {"limits": {limit[0]: value}})

    @rule(name=names, server=servers)
    def pause_or_resume(self, name: Name, server: int) -> None:
        """Stop or let new work in; leases live on."""
        if (quota := self.tenant.quotas.get(name)) is not None:
            quota.paused = not quota.paused
            self.done(server, "POST", f"/quotas/{quota.quota_id}/{'pause' if quota.paused else 'resume'}")

    @rule(
        name=names,
        limit=some_limit,
        more=st.integers(1, 4),
        delay=st.sampled_from([0, 0, 60 * SECOND]),
        length=st.sampled_from([5 * SECOND, 300 * SECOND, HOUR]),
        server=servers,
    )
    def override(self, *, name: Name, limit: tuple[str, int], more: int, delay: int, length: int, server: int) -> None:
        """Raise a limit for a while."""
        if (quota := self.tenant.quotas.get(name)) is not None:
            starts = self.tenant.now + delay
            value = int(quota.base[limit[0]]) + more
            quota.overrides.append(Override(limit[0], value, starts, starts + length))
            body = {"limits": {limit[0]: value}, "starts_at": time_of(starts), "until": time_of(starts + length)}
            self.done(server, "POST", f"/quotas/{quota.quota_id}/overrides", body)

    def done(self, server: int, method: str, path: str, body: object = None) -> None:
        """Carry out what must succeed."""
        options = {} if body is None else {"json": body}
        answer = self.run(self.at(server).send(method, path, **options))
        self.servers.operations += 1
        assert answer.is_success, answer.text

    @rule(server=servers, this_time=st.sampled_from([False] * 7 + [True]))
    def restart(self, server: int, this_time: bool) -> None:
        """End a server now and then and start it again: it knows nothing that the database does not."""
        if this_time:
            self.run(self.servers.restart(server))

    @rule(server=servers)
    def look(self, server: int) -> None:
        """What is shown is what the model says; what is kept never differs from what the leases say."""
        shown = {one["job_type"]: one["usage"] for one in self.run(self.at(server).get("/quotas")).json()["items"]}
        now = self.tenant.now
        for name in self.tenant.quotas:
            usage = shown[name]
            found = (usage["active"], usage["active_backfill"], usage["granted_last_hour"])
            assert found == (
                *(self.tenant.held(name, now, kind) for kind in ("live backfill", "backfill")),
                self.tenant.hour(name, now),
            )
            if not self.tenant.quotas[name].overrides and name not in self.changed:
                assert usage["tokens"] == pytest.approx(float(self.tenant.level(name, now)), abs=2e-6)
        leases = self.run(self.at(server).get("/admissions", params={"page_size": 500})).json()["items"]
        assert {one["lease_id"] for one in leases} == {one.lease_id for one in self.tenant.live()}
        assert self.run(self.at(server).get("/quotas/drift")).json()["drift"] == 0

    def teardown(self) -> None:
        """Whatever happened: both servers show what the model says."""
        if hasattr(self, "tenant"):
            self.look(0)
            self.look(1)


def _token(answer: httpx2.Response) -> int:
    return answer.json().get("fencing_token", 0)


async def test_two_servers_and_a_model_agree_on_every_admission(two_servers: Servers) -> None:
    """Grants, denials with their numbers and waits, tokens, ends and use, whatever happens in whichever order."""
    Admissions.loop, Admissions.servers = asyncio.get_running_loop(), two_servers
    many = settings.default.max_examples
    steps = 40 if many < 1_000 else 500
    # To shrink forty steps of two servers takes longer than to read them.
    phases = [Phase.explicit, Phase.reuse, Phase.generate]
    chosen = settings(max_examples=many // 2, stateful_step_count=steps, deadline=None, phases=phases)

    await asyncio.to_thread(run_state_machine_as_test, Admissions, settings=chosen)

    print(f"{two_servers.operations} operations")
