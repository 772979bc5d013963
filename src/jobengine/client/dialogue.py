"""What is said to a server and how its answers are taken, without any I/O.

Each conversation is a generator: it yields what it needs (a request sent, a token, a pause) and is sent what came of
it. `Client` and `AsyncClient` only carry the steps out, so that both speak with one voice and tests need no server.
"""

import json
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from random import random
from typing import Any, Final, TypeAlias, TypeVar, cast
from urllib.parse import urlencode

from jobengine.client.errors import (
    AuthError,
    Blocking,
    ClientError,
    Denied,
    JobIdConflict,
    LeaseLost,
    Overloaded,
    Refused,
    Unavailable,
)

SCOPE: Final = "orch:admit"
TRIES: Final = 5
FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 10.0
REFRESH_TOKEN_BEFORE_SECONDS: Final = 30.0

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Send:
    """Post this and answer with what comes back within *timeout* seconds; throw Unavailable otherwise."""

    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    timeout: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Let seconds pass."""

    seconds: float


@dataclass(frozen=True, slots=True)
class NeedToken:
    """Answer with an access token, one caller at a time; *refused* is one that was not taken."""

    refused: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said; names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


Step: TypeAlias = Send | Pause | NeedToken
Steps: TypeAlias = Generator[Step, Any, Found]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to repeat what nobody answered: so many tries at least, and then until a time of the clock."""

    tries: int = TRIES
    until: float = 0.0


def awake_clock() -> float:
    """Return seconds of a clock that no one sets and that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass(slots=True)
class Dialogue:
    """One client's side of all conversations with one server; *client_secret* never shows."""

    client_id: str
    client_secret: str = field(repr=False)
    tenant: str | None = None
    timeout: float = 10.0
    clock: Callable[[], float] = awake_clock
    random: Callable[[], float] = random
    _token: str | None = field(default=None, init=False, repr=False)
    _token_until: float = field(default=0.0, init=False, repr=False)

    def ask(self, path: str, body: Mapping[str, object], patience: Patience) -> Steps[tuple[Answer, float]]:
        """Return the answer to an authorised request, and the time before which it was sent.

        Every request of this client may be repeated: an acquire names its job, a renewal and a release their lease.
        """
        number = 0
        while True:
            before = self.clock()
            try:
                answer = yield from self._authorised(path, json.dumps(body).encode(), patience)
                if answer.status < HTTPStatus.INTERNAL_SERVER_ERROR and not _is_throttled(answer):
                    return answer, before
                failure, least = failed(answer), _retry_after(answer)
            except Unavailable as silence:
                failure, least = silence, 0.0
            number += 1
            pause = max(least, self.jitter(number))
            if number >= patience.tries and self.clock() + pause > patience.until:
                raise failure
            yield Pause(pause)

    def jitter(self, number: int) -> float:
        """Return seconds to wait after try *number*: anything up to a bound that doubles, so that a herd scatters."""
        return self.random() * min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**number)

    def token(self, refused: str | None) -> Steps[str]:
        """Return an access token that lives for a while; raises AuthError and Unavailable."""
        if self._token is not None and self._token != refused and self.clock() < self._token_until:
            return self._token
        form = {"grant_type": "client_credentials", "scope": SCOPE}
        form |= {"client_id": self.client_id, "client_secret": self.client_secret}
        if self.tenant is not None:
            form["tenant"] = self.tenant
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        before = self.clock()
        answer: Answer = yield Send("/oauth2/token", headers, urlencode(form).encode(), self.timeout)
        if answer.status != HTTPStatus.OK:
            raise failed(answer) if _is_throttled(answer) or _is_broken(answer) else _no_token(answer)
        token, life = _token_of(answer)
        # The end first: another thread that sees the token sees when it ends.
        self._token_until = before + life - min(REFRESH_TOKEN_BEFORE_SECONDS, life / 2)
        self._token = token
        return token

    def _authorised(self, path: str, body: bytes, patience: Patience) -> Steps[Answer]:
        token: str = yield NeedToken()
        answer: Answer = yield self._request(path, body, token, patience)
        if answer.status == HTTPStatus.UNAUTHORIZED:
            # It may have been revoked, or the server's keys renewed: one fresh token is worth a try.
            token = yield NeedToken(refused=token)
            answer = yield self._request(path, body, token, patience)
        return answer

    def _request(self, path: str, body: bytes, token: str, patience: Patience) -> Send:
        # Where the answer is worth nothing after a time, nobody waits for it beyond that time.
        timeout = self.timeout if patience.tries else max(0.1, min(self.timeout, patience.until - self.clock()))
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        return Send(f"/api/v1{path}", headers, body, timeout)


def _token_of(answer: Answer) -> tuple[str, float]:
    told = document_of(answer)
    try:
        return str(told["access_token"]), float(told["expires_in"])
    except (KeyError, TypeError, ValueError):
        raise Unavailable("the authority's answer holds no access token") from None


def document_of(answer: Answer) -> dict[str, Any]:
    """Return the JSON object of an answer; raises Unavailable for anything else: that was not our server."""
    try:
        found: dict[str, Any] | object = json.loads(answer.body)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Unavailable(f"an answer of {answer.status} that is no JSON object", status=answer.status)
    return cast("dict[str, Any]", found)


def failed(answer: Answer) -> ClientError:
    """Return what an answer that is no success means."""
    try:
        problem = document_of(answer)
    except Unavailable:
        problem = {}
    code = str(problem.get("code") or problem.get("error") or f"http_{answer.status}")
    detail = str(problem.get("detail") or problem.get("error_description") or code)
    if code == "admission_denied":
        return Denied(detail, [_blocking(found) for found in problem.get("blocking", [])])
    return _kind(answer, code)(detail, code=code, status=answer.status)


def _kind(answer: Answer, code: str) -> type[ClientError]:
    known = {"job_id_conflict": JobIdConflict, "lease_lost": LeaseLost, "overloaded": Overloaded}
    if code in known:
        return known[code]
    if answer.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return AuthError
    return Unavailable if _is_broken(answer) or _is_throttled(answer) else Refused


def _no_token(answer: Answer) -> AuthError:
    found = failed(answer)
    return AuthError(f"no access token: {found}", code=found.code, status=found.status)


def _blocking(found: Mapping[str, Any]) -> Blocking:
    members: dict[str, Any] = {name: found.get(name) for name in Blocking.__dataclass_fields__}
    return Blocking(**members)


def _is_broken(answer: Answer) -> bool:
    return answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR


def _is_throttled(answer: Answer) -> bool:
    return answer.status == HTTPStatus.TOO_MANY_REQUESTS and b'"admission_denied"' not in answer.body


def _retry_after(answer: Answer) -> float:
    said = answer.headers.get("retry-after", "")
    return float(said) if said.isdigit() else 0.0
