"""Acquire, keep and give back: the conversations about a lease, without any I/O."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from http import HTTPStatus
from typing import Any

from jobengine.client.dialogue import Answer, Dialogue, Patience, Pause, Steps, document_of, failed
from jobengine.client.errors import ClientError, Denied, LeaseLost, Unavailable
from jobengine.client.grant import Ask, Grant

RELEASE_TRIES = 3
# Two more renewals fit into a lease when one fails.
RENEW_AFTER = 1 / 3


class Held:
    """A lease while it is kept: what is known of it, and whether it is lost."""

    def __init__(self, dialogue: Dialogue, grant: Grant) -> None:
        self._dialogue = dialogue
        self.grant = grant
        self.refusal: LeaseLost | None = None
        self.silence: ClientError | None = None

    @property
    def lost(self) -> bool:
        """Whether the server said that it is over, or nobody could confirm in time that it is not."""
        return self.refusal is not None or self._dialogue.clock() >= self.grant.valid_until

    def check(self) -> None:
        """Raise LeaseLost when the lease is lost."""
        if self.refusal is not None:
            raise LeaseLost(str(self.refusal), code=self.refusal.code, status=self.refusal.status) from self.refusal
        if self.lost:
            raise LeaseLost("the lease could not be renewed before its end", code="lease_lost") from self.silence

    def keep(self) -> Steps[None]:
        """Renew until it is lost; closing the generator ends it before."""
        failures = 0
        while not self.lost:
            left = self.grant.valid_until - self._dialogue.clock()
            wait = left - self.grant.lease_seconds * (1 - RENEW_AFTER)
            yield Pause(max(0.0, wait) if not failures else min(left, self._dialogue.jitter(failures)))
            try:
                self.grant = yield from renew(self._dialogue, self.grant, Patience(0, self.grant.valid_until))
                failures = 0
            except LeaseLost as refusal:
                self.refusal = refusal
            except ClientError as silence:
                self.silence = silence
                failures += 1

    def leave(self) -> Steps[ClientError | None]:
        """Give the lease back, and return what kept it from that; raises LeaseLost when it was lost before."""
        lost, unreleased = self.lost, None
        if self.refusal is None:
            try:
                yield from release(self._dialogue, self.grant)
            except LeaseLost as refusal:
                self.refusal = refusal
            except ClientError as silence:
                unreleased = silence
        if lost or self.refusal is not None:
            self.check()
        return unreleased


def acquire(dialogue: Dialogue, ask: Ask, wait: float) -> Steps[Grant]:
    """Return the grant, asking again for *wait* seconds at most; raises Denied as soon as waiting cannot help."""
    deadline, number = dialogue.clock() + wait, 0
    body = {"job_type": ask.job_type, "slots": ask.slots, "lease_seconds": ask.lease_seconds}
    body |= {"kind": ask.kind, "job_id": ask.job_id}
    while True:
        answer, before = yield from dialogue.ask("/admissions", body, Patience(until=deadline))
        if answer.status in {HTTPStatus.OK, HTTPStatus.CREATED}:
            if grant := (yield from _taken(dialogue, ask, answer, before)):
                return grant
            continue
        failure = failed(answer)
        if not isinstance(failure, Denied):
            raise failure
        number += 1
        yield Pause(_pause(dialogue, failure, number, deadline - dialogue.clock()))


def _taken(dialogue: Dialogue, ask: Ask, answer: Answer, before: float) -> Steps[Grant | None]:
    grant = _grant(document_of(answer), ask, before)
    if answer.status == HTTPStatus.CREATED:
        return grant
    # The job had this lease before: how much of it is left, only a renewal tells.
    try:
        return replace((yield from renew(dialogue, grant, Patience())), repeated=True)
    except LeaseLost:
        return None


def _pause(dialogue: Dialogue, denied: Denied, number: int, left: float) -> float:
    """Return how long to wait after a denial; raises it where that cannot help, or not within the *left* seconds.

    An hour's admission or a token comes back with time alone: before that nobody need ask. A slot may come back at any
    moment before its lease ends. Full jitter on top keeps those who wait from coming all at once.
    """
    longest, least = denied.retry_after, denied.least_wait
    if longest is None or left <= 0 or least > left:
        raise denied
    spread = dialogue.jitter(number)
    return min(left, least + (min(spread, longest - least) if longest > least else spread))


def renew(dialogue: Dialogue, grant: Grant, patience: Patience) -> Steps[Grant]:
    """Return the grant with its new end; raises LeaseLost."""
    body = {"fencing_token": grant.fencing_token, "lease_seconds": grant.lease_seconds}
    answer, before = yield from dialogue.ask(f"/admissions/{grant.lease_id}/renew", body, patience)
    _expect(answer, HTTPStatus.OK)
    told = _moment(document_of(answer))
    return replace(grant, expires_at=told, valid_until=before + grant.lease_seconds)


def release(dialogue: Dialogue, grant: Grant) -> Steps[None]:
    """Give the slots back; raises LeaseLost when they were not held any more."""
    body = {"fencing_token": grant.fencing_token}
    patience = Patience(RELEASE_TRIES)
    answer, _ = yield from dialogue.ask(f"/admissions/{grant.lease_id}/release", body, patience)
    _expect(answer, HTTPStatus.NO_CONTENT)


def _expect(answer: Answer, status: HTTPStatus) -> None:
    if answer.status == status:
        return
    failure = failed(answer)
    if answer.status == HTTPStatus.NOT_FOUND:
        raise LeaseLost(str(failure), code=failure.code, status=failure.status)
    raise failure


def _grant(told: Mapping[str, Any], ask: Ask, before: float) -> Grant:
    try:
        return Grant(
            lease_id=told["lease_id"],
            fencing_token=told["fencing_token"],
            job_type=told["job_type"],
            slots=told["slots"],
            lease_seconds=ask.lease_seconds,
            expires_at=_moment(told),
            quota_id=told["quota_id"],
            job_id=ask.job_id,
            valid_until=before + ask.lease_seconds,
        )
    except KeyError as missing:
        raise Unavailable(f"an answer without {missing}") from None


def _moment(told: Mapping[str, Any]) -> datetime:
    try:
        return datetime.fromisoformat(told["expires_at"])
    except (KeyError, ValueError, TypeError):
        raise Unavailable("an answer without an end of the lease") from None
