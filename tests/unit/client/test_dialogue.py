"""What the client says, step by step: answers are given by hand, and time passes by being told to."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import pytest

from jobengine.client.dialogue import TRIES, Answer, Dialogue, NeedToken, Patience, Pause, Send, Steps
from jobengine.client.errors import (
    AuthError,
    ClientError,
    Denied,
    JobIdConflict,
    LeaseLost,
    Overloaded,
    Refused,
    Unavailable,
)
from jobengine.client.grant import Ask, Grant
from jobengine.client.leasing import Held, acquire, release, renew

ASK = Ask.of("scan", {"job_id": "nightly", "lease_seconds": 60})
LEASE = {
    "lease_id": "0198", "fencing_token": 7, "job_type": "scan", "slots": 1, "expires_at": "2026-03-01T12:01:00Z",
    "quota_id": None, "kind": "live", "job_id": "nightly",
}  # fmt: skip
TOKEN = {"access_token": "t1", "token_type": "Bearer", "expires_in": 900, "scope": "orch:admit"}


def said(status: int, document: object = None, **headers: str) -> Answer:
    """Return an answer of a server."""
    return Answer(status, headers, b"" if document is None else json.dumps(document).encode())


def problem(status: int, code: str, **members: object) -> Answer:
    """Return an answer that is no success."""
    return said(status, {"code": code, "detail": f"{code}!", "status": status, **members})


def denial(*waits: tuple[str, float | None]) -> Answer:
    """Return a denial by these limits, each with its wait."""
    numbers = {"quota_id": None, "job_type": "scan", "maximum": 1, "used": 1, "requested": 1}
    found = [{"limit": limit, "retry_after_seconds": wait, **numbers} for limit, wait in waits]
    return problem(429, "admission_denied", blocking=found)


@dataclass
class World:
    """A clock that is told, a jitter that is known, and a server whose answers stand ready in their order."""

    answers: list[Answer | ClientError] = field(default_factory=list)
    now: float = 1_000.0
    sent: list[Send] = field(default_factory=list)
    paused: list[float] = field(default_factory=list)
    tokens: int = 0

    def __post_init__(self) -> None:
        self.dialogue = Dialogue("jec_1", "jes_1", "acme", clock=lambda: self.now, random=lambda: 1.0)

    def run(self, steps: Steps[Any]) -> Any:
        """Carry the steps out."""
        try:
            step = next(steps)
            while True:
                reply = self.reply(step)
                step = steps.throw(reply) if isinstance(reply, ClientError) else steps.send(reply)
        except StopIteration as end:
            return end.value

    def reply(self, step: object) -> object:
        """Answer one step."""
        match step:
            case NeedToken():
                self.tokens += 1
                return f"t{self.tokens}"
            case Pause(seconds):
                self.paused.append(seconds)
                self.now += seconds
                return None
            case Send():
                self.sent.append(step)
                return self.answers.pop(0)
            case _:
                raise AssertionError(step)

    def bodies(self) -> list[Any]:
        """Return what was sent."""
        return [json.loads(sent.body) for sent in self.sent]


def held(world: World, **changes: Any) -> Held:
    """Return a lease of a minute, just acquired."""
    world.answers.insert(0, said(201, LEASE | changes))
    return Held(world.dialogue, world.run(acquire(world.dialogue, ASK, 0)))


def test_a_grant_says_what_was_asked_and_until_when() -> None:
    """Its end by the own clock counts from before the request, whatever the database's clock says."""
    world = World([said(201, LEASE)])

    grant = world.run(acquire(world.dialogue, ASK, 0))

    assert (grant.lease_id, grant.fencing_token, grant.valid_until) == ("0198", 7, 1_060.0)
    assert (grant.job_id, grant.repeated) == ("nightly", False)
    wanted = {"job_type": "scan", "slots": 1, "lease_seconds": 60, "kind": "live", "job_id": "nightly"}
    assert (world.bodies(), world.sent[0].path) == ([wanted], "/api/v1/admissions")
    assert world.sent[0].headers["Authorization"] == "Bearer t1"


def test_a_job_without_a_name_gets_one_that_a_repeat_keeps() -> None:
    """A time-out tells nobody whether there is a lease now; the same name brings the same lease."""
    world = World([Unavailable("time-out"), said(201, LEASE)])

    world.run(acquire(world.dialogue, Ask.of("scan", {}), 0))

    first, second = world.bodies()
    assert first == second
    assert first["job_id"].startswith("call-")
    assert Ask.of("scan", {}).job_id != first["job_id"]


def test_a_lease_that_was_there_before_is_renewed_before_it_is_used() -> None:
    """How much of it was left nobody knows."""
    world = World([said(200, LEASE), said(200, LEASE)])

    grant = world.run(acquire(world.dialogue, ASK, 0))

    assert (grant.repeated, world.sent[1].path) == (True, "/api/v1/admissions/0198/renew")
    assert world.bodies()[1] == {"fencing_token": 7, "lease_seconds": 60}


def test_a_lease_that_ended_before_it_could_be_renewed_is_asked_for_anew() -> None:
    """It was there, and is not any more."""
    world = World([said(200, LEASE), problem(409, "lease_lost"), said(201, LEASE | {"fencing_token": 8})])

    grant = world.run(acquire(world.dialogue, ASK, 0))

    assert (grant.fencing_token, grant.repeated) == (8, False)


def test_a_denial_that_waiting_cannot_help_is_raised_at_once() -> None:
    """One limit without a wait is enough, however long the caller would wait."""
    world = World([denial(("max_active", 5.0), ("paused", None))])

    with pytest.raises(Denied) as denied:
        world.run(acquire(world.dialogue, ASK, 3_600))

    assert ([found.limit for found in denied.value.blocking], world.paused) == (["max_active", "paused"], [])
    assert denied.value.retry_after is None


def test_a_denial_whose_wait_ends_after_the_deadline_is_raised_at_once() -> None:
    """Only time gives a token or an admission of the hour back."""
    world = World([denial(("max_per_hour", 61.0))])

    with pytest.raises(Denied) as denied:
        world.run(acquire(world.dialogue, ASK, 60))

    assert (denied.value.retry_after, world.paused) == (61.0, [])


def test_a_token_is_waited_for_at_least_as_long_as_it_takes() -> None:
    """The jitter comes on top: asking before is certain to be in vain."""
    world = World([denial(("rate", 4.0)), said(201, LEASE)])

    world.run(acquire(world.dialogue, ASK, 60))

    assert world.paused == [4.2]


def test_a_slot_is_asked_for_again_before_its_lease_must_end() -> None:
    """Leases are given back early; the pauses double, with full jitter, and never pass the honest wait."""
    world = World([*[denial(("max_active", 3.0))] * 6, said(201, LEASE)])

    world.run(acquire(world.dialogue, ASK, 600))

    assert world.paused == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.0, 3.0])


def test_the_deadline_is_asked_at_once_more_and_then_it_is_over() -> None:
    """The last pause is cut at the deadline."""
    world = World([denial(("max_active", 300.0))] * 9)

    with pytest.raises(Denied):
        world.run(acquire(world.dialogue, ASK, 1.0))

    assert world.paused == pytest.approx([0.2, 0.4, 0.4])
    assert len(world.sent) == 4


def test_without_a_wait_a_denial_is_raised_after_one_question() -> None:
    """Nobody waits who did not say so."""
    world = World([denial(("max_active", 0.01))])

    with pytest.raises(Denied):
        world.run(acquire(world.dialogue, ASK, 0))

    assert (len(world.sent), world.paused) == (1, [])


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (problem(409, "job_id_conflict"), JobIdConflict),
        (problem(422, "slots_exceed_limit"), Refused),
        (problem(403, "insufficient_scope"), AuthError),
        (said(404), Refused),
        (said(201, []), Unavailable),
        (said(201, {}), Unavailable),
        (said(201, LEASE | {"expires_at": "soon"}), Unavailable),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_answer_that_repeating_cannot_help_is_raised_at_once(answer: Answer, kind: type[ClientError]) -> None:
    """Each as what it is; what is no answer of this service too."""
    world = World([answer])

    with pytest.raises(kind) as raised:
        world.run(acquire(world.dialogue, ASK, 60))

    assert (type(raised.value), len(world.sent)) == (kind, 1)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Unavailable("refused"), Unavailable),
        (said(502), Unavailable),
        (problem(500, "internal_error"), Unavailable),
        (problem(503, "overloaded"), Overloaded),
        (problem(429, "throttled"), Unavailable),
    ],
)
def test_what_may_pass_is_repeated_and_bounded(answer: Answer | ClientError, kind: type[ClientError]) -> None:
    """So many tries, each after a longer pause."""
    world = World([answer] * 9)

    with pytest.raises(kind) as raised:
        world.run(acquire(world.dialogue, ASK, 0))

    assert (type(raised.value), len(world.sent)) == (kind, TRIES)
    assert world.paused == pytest.approx([0.2, 0.4, 0.8, 1.6])


def test_the_servers_own_wait_is_kept() -> None:
    """`Retry-After` is the least pause."""
    overloaded = said(503, {"code": "overloaded", "detail": "later"}, **{"retry-after": "3"})
    world = World([overloaded, said(201, LEASE)])

    world.run(acquire(world.dialogue, ASK, 0))

    assert world.paused == [3.0]


def test_a_refused_token_is_fetched_anew_once() -> None:
    """A second refusal is the answer."""
    world = World([problem(401, "invalid_token"), said(201, LEASE)])
    world.run(acquire(world.dialogue, ASK, 0))
    assert [sent.headers["Authorization"] for sent in world.sent] == ["Bearer t1", "Bearer t2"]

    world.answers = [problem(401, "invalid_token"), problem(401, "invalid_token")]
    with pytest.raises(AuthError):
        world.run(acquire(world.dialogue, ASK, 0))


def test_a_token_is_asked_for_once_and_again_before_it_ends() -> None:
    """Half a minute before; and at once when it was refused."""
    world = World([said(200, TOKEN), said(200, TOKEN | {"access_token": "t2"}), said(200, TOKEN)])

    first = world.run(world.dialogue.token(None))
    world.now += 869
    same = world.run(world.dialogue.token(None))
    world.now += 1
    second = world.run(world.dialogue.token(None))
    known = world.run(world.dialogue.token(first))
    third = world.run(world.dialogue.token(second))

    assert (first, same, second, known, third) == ("t1", "t1", "t2", "t2", "t1")
    form = parse_qs(world.sent[0].body.decode())
    assert (form["scope"], form["tenant"], form["client_id"]) == (["orch:admit"], ["acme"], ["jec_1"])
    assert "jes_1" not in repr(world.dialogue) + repr(world.sent)


def test_an_authority_that_refuses_is_an_error_of_its_own() -> None:
    """Wrong secret, wrong tenant, a scope it may not have: all say why; one that is down is something else."""
    refused = said(401, {"error": "invalid_client", "error_description": "who?"})
    world = World([refused, said(503), said(200, {"token_type": "Bearer"})])

    with pytest.raises(AuthError, match="who"):
        world.run(world.dialogue.token(None))
    for _ in range(2):
        with pytest.raises(Unavailable):
            world.run(world.dialogue.token(None))


def test_a_lease_is_renewed_after_a_third_of_its_time() -> None:
    """Two more renewals fit when one fails; each renewal moves its end."""
    world = World()
    kept = held(world)
    world.answers = [said(200, LEASE), said(200, LEASE), problem(409, "lease_lost")]

    world.run(kept.keep())

    assert world.paused == pytest.approx([20.0, 20.0, 20.0])
    assert (kept.lost, kept.grant.valid_until) == (True, 1_100.0)
    with pytest.raises(LeaseLost, match="lease_lost!"):
        kept.check()


def test_a_lease_that_nobody_can_confirm_is_lost_at_its_end_and_not_before() -> None:
    """A server that is away for a while costs nothing if it is back in time."""
    world = World()
    kept = held(world)
    world.answers = [*[Unavailable("away")] * 5, said(200, LEASE), *[Unavailable("away")] * 99]

    world.run(kept.keep())

    assert world.now == pytest.approx(kept.grant.valid_until, abs=0.2)
    assert kept.grant.valid_until > 1_080.0
    assert kept.refusal is None
    with pytest.raises(LeaseLost, match="could not be renewed"):
        kept.check()


def test_a_renewal_never_waits_for_an_answer_beyond_the_end() -> None:
    """An answer that comes later says nothing that helps."""
    world = World()
    kept = held(world)
    world.answers = [Unavailable("away")] * 99

    world.run(kept.keep())

    assert all(sent.timeout <= 10.0 for sent in world.sent)
    assert world.sent[-1].timeout < 10.0


def test_a_disabled_client_keeps_its_lease_until_its_end() -> None:
    """The slot is still taken: the authority's word ends no lease."""
    world = World()
    kept = held(world)
    world.answers = [problem(401, "invalid_token")] * 99

    world.run(kept.keep())

    assert (kept.lost, kept.refusal, type(kept.silence)) == (True, None, AuthError)


def test_a_lease_that_was_lost_is_still_given_back_where_it_might_be_held() -> None:
    """Lost by the own clock may be held by the database's for a moment: the slot is free sooner."""
    world = World()
    kept = held(world)
    world.now = kept.grant.valid_until
    world.answers = [said(204)]

    with pytest.raises(LeaseLost):
        world.run(kept.leave())

    assert world.sent[-1].path == "/api/v1/admissions/0198/release"


def test_a_lease_that_the_server_calls_lost_is_not_given_back() -> None:
    """There is nothing to give."""
    world = World()
    kept = held(world)
    kept.refusal = LeaseLost("gone")

    with pytest.raises(LeaseLost, match="gone"):
        world.run(kept.leave())


def test_a_release_that_nobody_answers_is_told_and_no_error() -> None:
    """The work is done, and the lease ends by itself."""
    world = World()
    kept = held(world)
    world.answers = [Unavailable("away")] * 9

    assert isinstance(world.run(kept.leave()), Unavailable)
    assert len(world.sent) == 4


@pytest.mark.parametrize("say", [renew, release])
@pytest.mark.parametrize("answer", [problem(404, "not_found"), problem(409, "lease_lost")])
def test_a_lease_that_is_not_there_is_lost(say: Callable[..., Steps[Grant | None]], answer: Answer) -> None:
    """Unknown and over are the same for whoever works under it."""
    world = World()
    kept = held(world)
    world.answers = [answer]
    more = (Patience(),) if say is renew else ()

    with pytest.raises(LeaseLost):
        world.run(say(world.dialogue, kept.grant, *more))
