"""The API as a command uses it: a token for the scope it needs, a request, and its failure as an exit code."""

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
import msgspec

from jobengine import __version__
from jobengine.authority.scopes import Scope, requirement
from jobengine.cli.call import DEFAULT_URL, Call
from jobengine.cli.exits import CommandFailed, Exit
from jobengine.tenancy.model import COVERED_BY_GOVERN, GOVERN, Family

TIMEOUT_SECONDS: Final = 60.0
RENEW_BEFORE_SECONDS: Final = 30.0
PAGE_SIZE: Final = 500
_STANDARD_MEMBERS: Final = {"type", "title", "status", "detail", "code", "trace_id", "errors", "instance"}
_LOOPBACK: Final = {"localhost", "127.0.0.1", "::1"}


@dataclass(slots=True)
class Api:
    """One server, one client of the authority; tokens are asked for when a request first needs their scope."""

    call: Call
    http: httpx2.Client
    _tokens: dict[str, tuple[str, float]] = field(default_factory=dict[str, tuple[str, float]], repr=False)

    def get(self, path: str, scope: str, **query: object) -> Any:
        """Return the resource at *path*; query members that are None are left out."""
        return self.send("GET", path, scope, query=query)

    def send(
        self,
        method: str,
        path: str,
        scope: str,
        *,
        body: object = None,
        query: Mapping[str, object] | None = None,
        version: int | None = None,
    ) -> Any:
        """Send a request and return its JSON, None where there is none; *version* becomes ``If-Match``."""
        headers = self._headers(scope) | ({} if version is None else {"If-Match": f'"{version}"'})
        with _reached(self.call.url):
            response = self.http.request(method, f"/api/v1{path}", params=_query(query), headers=headers, json=body)
        if not response.is_success:
            raise failure(response)
        return _json(response) if response.content else None

    def items(self, path: str, scope: str, limit: int, **query: object) -> dict[str, Any]:
        """Return a list as one page of at most *limit* items, following the pages of the API."""
        found: list[Any] = []
        token: str | None = None
        while True:
            size = max(1, min(PAGE_SIZE, limit - len(found)))
            page = self.get(path, scope, **query, page_size=size, page_token=token)
            found += page["items"]
            token = page["next_page_token"]
            if token is None or len(found) >= limit:
                return {**page, "items": found, "next_page_token": token}

    @contextmanager
    def stream(self, path: str, scope: str, **query: object) -> Generator[Iterator[bytes]]:
        """Open the answer at *path* as chunks of bytes."""
        headers = self._headers(scope)
        with (
            _reached(self.call.url),
            self.http.stream("GET", f"/api/v1{path}", params=_query(query), headers=headers) as response,
        ):
            if not response.is_success:
                response.read()
                raise failure(response)
            yield response.iter_bytes()

    def token(self, scope: str) -> dict[str, Any]:
        """Ask for a token that carries *scope* and what its scopes need; return the whole answer."""
        client_id, secret = self.call.setting("CLIENT_ID"), self.call.setting("CLIENT_SECRET")
        if client_id is None or secret is None:
            raise CommandFailed(
                "JOBENGINE_CLIENT_ID and JOBENGINE_CLIENT_SECRET are not set",
                Exit.AUTH,
                hint="make a client (jobengine client create NAME --tenant T --role R) and export what it prints",
            )
        form = {"grant_type": "client_credentials", "scope": scope, **self._intent(scope)}
        # A governor's token is of its own tenant; the one that it acts in is named by a header.
        if (tenant := self.call.setting("TENANT")) and not self.call.govern:
            form["tenant"] = tenant
        with _reached(self.call.url):
            response = self.http.post("/oauth2/token", data=form, auth=(client_id, secret))
        if not response.is_success:
            raise token_failure(response)
        answer: dict[str, Any] = _json(response)
        return answer

    def tenant(self, scope: str) -> str:
        """Return the tenant that tokens for *scope* speak for, as the authority tells it (RFC 7662)."""
        token = self._headers(scope)["Authorization"].removeprefix("Bearer ")
        client = (self.call.setting("CLIENT_ID") or "", self.call.setting("CLIENT_SECRET") or "")
        with _reached(self.call.url):
            response = self.http.post("/oauth2/introspect", data={"token": token}, auth=client)
        if not response.is_success:
            raise token_failure(response)
        if (tenant := _json(response).get("tenant")) is None:
            raise CommandFailed("this client speaks for no tenant", Exit.AUTH, hint="set JOBENGINE_TENANT")
        return str(tenant)

    def _intent(self, scope: str) -> dict[str, str]:
        said: dict[str, str | None] = {}
        for family in families(scope):
            said[family.reason] = self.call.reason_for(family)
            said[family.ticket] = self.call.ticket_for(family)
        return {name: text for name, text in said.items() if text is not None}

    def _headers(self, scope: str) -> dict[str, str]:
        if self.call.govern and scope in COVERED_BY_GOVERN:
            scope = GOVERN
        token, until = self._tokens.get(scope, ("", 0.0))
        if monotonic() >= until:
            answer = self.token(scope)
            token = answer["access_token"]
            self._tokens[scope] = token, monotonic() + answer["expires_in"] - RENEW_BEFORE_SECONDS
        tenant = self.call.setting("TENANT") if self.call.govern else None
        return {"Authorization": f"Bearer {token}"} | ({"X-StellaOps-Tenant": tenant} if tenant else {})


@contextmanager
def open_api(call: Call) -> Generator[Api]:
    """Open the API at the call's address; raises CommandFailed for an address that is none."""
    host = urlsplit(call.url).hostname
    if not call.url.startswith(("http://", "https://")) or not host:
        raise CommandFailed(f"{call.url} is not the address of a server", Exit.USAGE, hint=f"like {DEFAULT_URL}")
    with httpx2.Client(
        base_url=call.url,
        timeout=TIMEOUT_SECONDS,
        headers={"User-Agent": f"jobengine/{__version__}"},
        # A proxy of the environment is no way to this machine itself.
        trust_env=host not in _LOOPBACK,
    ) as http:
        yield Api(call, http)


def families(scope: str) -> list[Family]:
    """Return which kinds of intent the scopes in *scope* ask for; an unknown scope asks for none.

    >>> families("orch:read orch:quota orch:govern")
    [<Family.QUOTA: 'quota'>]
    """
    known = [Scope(name) for name in scope.split(" ") if name in set(Scope)]
    needs = [requirement(name, backfill_ticket_required=False) for name in known]
    return list(dict.fromkeys(need.family for need in needs if need is not None))


def failure(response: httpx2.Response) -> CommandFailed:
    """Return how a command ends on this answer of the API."""
    problem = _members(response)
    name = str(problem.get("code") or f"http_{response.status_code}")
    detail = str(problem.get("detail") or response.reason_phrase)
    lines = [f"{error.get('path')}: {error.get('message')}" for error in problem.get("errors", [])]
    lines = [] if lines == [detail] else lines
    lines += [
        f"{member}: {value if isinstance(value, str) else json.dumps(value)}"
        for member, value in problem.items()
        if member not in _STANDARD_MEMBERS
    ]
    if name == "internal_error":
        lines.append(f"trace_id: {problem.get('trace_id')}")
    return CommandFailed.of_problem(detail, name, response.status_code, hint=_wait(response), lines=lines)


def token_failure(response: httpx2.Response) -> CommandFailed:
    """Return how a command ends when the authority gives no token (RFC 6749 section 5.2)."""
    answer = _members(response)
    name = str(answer.get("error") or f"http_{response.status_code}")
    detail = str(answer.get("error_description") or "the authority gives no token")
    hint = _wait(response)
    if name == "invalid_request":
        hint = next((advice for word, advice in _TOKEN_HINTS.items() if word in detail), None)
    return CommandFailed.of_problem(detail, name, response.status_code, hint=hint)


_TOKEN_HINTS: Final[Mapping[str, str]] = {
    "quota_reason": "say why: --reason, or JOBENGINE_QUOTA_REASON",
    "quota_ticket": "name a ticket: --ticket, or JOBENGINE_QUOTA_TICKET",
    "backfill_reason": "say why: --reason, or JOBENGINE_BACKFILL_REASON",
    "backfill_ticket": "name a ticket: --ticket, or JOBENGINE_BACKFILL_TICKET",
    "operator_reason": "say why: --reason",
    "operator_ticket": "name a ticket: --ticket",
    "tenant": "set JOBENGINE_TENANT to one of the client's tenants",
}


def _wait(response: httpx2.Response) -> str | None:
    seconds = response.headers.get("retry-after")
    return f"try again in {seconds} s" if seconds else None


@contextmanager
def _reached(url: str) -> Generator[None]:
    try:
        yield
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise CommandFailed(f"{url} is not the address of a server: {error}", Exit.USAGE) from None
    except httpx2.ConnectError as error:
        hint = "start the server (jobengine serve), or name its address: --url, or JOBENGINE_URL"
        raise CommandFailed(f"no server answers at {url}: {error}", Exit.RETRY_LATER, hint=hint) from None
    except httpx2.HTTPError as error:
        text = str(error) or type(error).__name__
        raise CommandFailed(f"{url} broke off: {text}", Exit.RETRY_LATER, hint="try again in a moment") from None


def _query(query: Mapping[str, object] | None) -> dict[str, str]:
    given = {name: value for name, value in (query or {}).items() if value is not None}
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in given.items()}


def _members(response: httpx2.Response) -> dict[str, Any]:
    try:
        return msgspec.json.decode(response.content, type=dict[str, Any])
    except msgspec.MsgspecError:
        return {}


def _json(response: httpx2.Response) -> Any:
    try:
        return msgspec.json.decode(response.content)
    except msgspec.MsgspecError:
        hint = "is this the address of a jobengine server?"
        raise CommandFailed(f"{response.url} does not answer with JSON", Exit.ERROR, hint=hint) from None
