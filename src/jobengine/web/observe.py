"""What an operator sees of each request: one log line, two metrics, one span. Never a token, a secret or a reason."""

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from time import perf_counter
from typing import Any, Final

import msgspec
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import Counter, Histogram

from jobengine.authority.clients import Client
from jobengine.authority.grants import Grant
from jobengine.clock import format_time, utc_now
from jobengine.logs import Level, hears, write_line
from jobengine.metrics import HTTP_REQUESTS, HTTP_SECONDS
from jobengine.tenancy.model import Family, Principal
from jobengine.tracing import Span, Traces
from jobengine.web.edge import CALLER
from jobengine.web.grants import CLIENT, GRANT
from jobengine.web.trace import carrier_of, set_trace_id, trace_id_of

# Asked every few seconds by machines: told only to whoever wants to hear everything.
_QUIET: Final = frozenset({"/healthz", "/readyz", "/metrics"})
_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})
_UNKNOWN: Final = "unknown"
_NO_ANSWER: Final = "none"
_MILLISECONDS: Final = 1_000

_UNTRACED: Final = nullcontext[None]()


@dataclass(frozen=True, slots=True)
class Who:
    """Who sent a request, as far as that is proved; *actor* is whom the audit log names."""

    tenant_id: str | None = None
    client_id: str | None = None
    actor: str | None = None
    ticket: str | None = None

    def attributes(self) -> dict[str, str]:
        """Return what a span tells of it."""
        told = {"tenant": self.tenant_id, "client_id": self.client_id, "actor": self.actor, "ticket": self.ticket}
        return {f"jobengine.{name}": value for name, value in told.items() if value is not None}


class _Line(msgspec.Struct):
    event: str
    level: Level
    method: str
    route: str
    status: int | None
    duration_ms: float
    trace_id: str
    tenant: str | None
    client_id: str | None
    timestamp: str


class _Watch:
    """One request while it is answered."""

    __slots__ = ("_began", "_head_after", "_scope", "_status")

    def __init__(self, scope: Any) -> None:
        self._scope = scope
        self._status: int | None = None
        self._began = perf_counter()
        self._head_after: float | None = None

    def see(self, message: Message) -> None:
        """Look at a message of the answer."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._head_after = perf_counter() - self._began

    def end(self, span: Span | None) -> None:
        """Tell of the request, which is over."""
        scope = self._scope
        method = scope["method"] if scope["method"] in _METHODS else _UNKNOWN
        route = scope.get("path_template") or _UNKNOWN
        took = perf_counter() - self._began
        requests, seconds = _counters(route, method, _NO_ANSWER if self._status is None else str(self._status))
        requests.inc()
        seconds.observe(took if self._head_after is None else self._head_after)
        level: Level = "debug" if route in _QUIET else "info"
        if span is None and not hears(level):
            return
        who = _who(scope.get("state") or {})
        if span is not None:
            self._note(span, method, route, who)
        if hears(level):
            trace_id, millis = trace_id_of(scope), round(took * _MILLISECONDS, 3)
            said = (method, route, self._status, millis, trace_id, who.tenant_id, who.client_id)
            write_line(_Line("request.done", level, *said, format_time(utc_now())))

    def _note(self, span: Span, method: str, route: str, who: Who) -> None:
        span.rename(f"{method} {route}")
        span.note({"http.request.method": method, "http.route": route, **who.attributes()})
        if self._status is not None:
            span.note({"http.response.status_code": self._status})
        if self._status is None or self._status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            span.fail()


def observed(app: ASGIApp) -> ASGIApp:
    """Return *app* with everything it answers logged, counted and traced."""

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        watch = _Watch(scope)

        async def seen(message: Message) -> None:
            watch.see(message)
            await send(message)

        with _traced(scope) as span:
            try:
                await app(scope, receive, seen)
            finally:
                watch.end(span)

    return handle


def _traced(scope: Any) -> AbstractContextManager[Span | None]:
    traces: Traces = scope["litestar_app"].state.plane.traces
    return _in_trace(traces, scope) if traces.are_kept else _UNTRACED


@contextmanager
def _in_trace(traces: Traces, scope: Any) -> Generator[Span]:
    with traces.answering(carrier_of(scope)) as span:
        set_trace_id(scope, span.trace_id)
        yield span


@lru_cache(maxsize=4_096)
def _counters(route: str, method: str, status: str) -> tuple[Counter, Histogram]:
    return HTTP_REQUESTS.labels(route, method, status), HTTP_SECONDS.labels(route, method)


def _who(state: Any) -> Who:
    match state.get(CALLER), state.get(GRANT), state.get(CLIENT):
        case (Principal() as principal, tenant_id), _, _:
            return Who(tenant_id, principal.client_id, principal.owner, _ticket(principal.intents))
        case _, Grant() as grant, _:
            return Who(grant.tenant_id, grant.client_id, grant.owner, _ticket(grant.intent.claims))
        case _, _, Client() as client:
            return Who(None, client.client_id, client.owner)
        case _:
            return Who()


def _ticket(claims: Mapping[str, str]) -> str | None:
    tickets = dict.fromkeys(claims[family.ticket] for family in Family if family.ticket in claims)
    return ",".join(tickets) or None
