"""Somebody who calls a server over HTTP as one client, in one tenant."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import httpx2
from tests.acceptance.serving import Credentials, each_item, eventually

API: Final = "/api/v1"
REASON: Final = "scale out for the launch"
TICKET: Final = "OPS-1"
INTENTS: Final = {
    "orch:quota": {"quota_reason": REASON, "quota_ticket": TICKET},
    "orch:govern": {"quota_reason": "platform review", "quota_ticket": "GOV-1"},
    "orch:backfill": {"backfill_reason": "lost a day of events", "backfill_ticket": "OPS-2"},
    "orch:operate": {"operator_reason": "stuck node", "operator_ticket": "OPS-3"},
}
TENANT_SCOPES: Final = (
    "orch:read", "orch:operate", "orch:quota", "orch:backfill", "orch:audit", "orch:admit", "orch:execute",
)  # fmt: skip
ROOMY: Final = {"max_active": 1_000, "max_per_hour": 1_000_000, "burst": 100_000, "refill_per_second": 100_000}
SMALL: Final = {"max_active": 4, "max_per_hour": 100, "burst": 10, "refill_per_second": 1.5}
LOG_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Caller:
    """One client in one tenant; tokens are asked for when a call first needs them."""

    http: httpx2.Client
    url: str
    credentials: Credentials
    tenant: str
    scopes: tuple[str, ...] = TENANT_SCOPES
    given: str | None = None
    _tokens: dict[tuple[str, ...], str] = field(default_factory=dict[tuple[str, ...], str], repr=False)

    def ask_token(self, scope: str, **form: str) -> httpx2.Response:
        """Ask the authority, and say nothing but what is given."""
        asked = {"grant_type": "client_credentials", "scope": scope, "tenant": self.tenant, **form}
        auth = (self.credentials.client_id, self.credentials.secret)
        return self.http.post(f"{self.url}/oauth2/token", data=asked, auth=auth)

    def token(self) -> str:
        """Return a token for all of the caller's scopes, with the reasons that they need."""
        if self.given is not None:
            return self.given
        if self.scopes not in self._tokens:
            said = [(name, text) for scope in self.scopes for name, text in INTENTS.get(scope, {}).items()]
            answer = self.ask_token(" ".join(self.scopes), **dict(said))
            assert answer.status_code == 200, answer.text
            self._tokens[self.scopes] = answer.json()["access_token"]
        return self._tokens[self.scopes]

    def speaking(self, *scopes: str) -> "Caller":
        """Return the same caller with other scopes."""
        return replace(self, scopes=scopes, given=None)

    def bearing(self, token: str) -> "Caller":
        """Return the same caller with this very token."""
        return replace(self, given=token)

    def at(self, url: str) -> "Caller":
        """Return the same caller at another server of the same installation."""
        return replace(self, url=url)

    def authorization(self) -> dict[str, str]:
        """Return the header that says who calls."""
        return {"Authorization": f"Bearer {self.token()}"}

    def request(self, method: str, path: str, **options: Any) -> httpx2.Request:
        """Return a request with the token; paths are those below `/api/v1`."""
        headers = [*self.authorization().items(), *_pairs(options.pop("headers", None))]
        return self.http.build_request(method, f"{self.url}{API}{path}", headers=headers, **options)

    def send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """Send a request with the token."""
        return self.http.send(self.request(method, path, **options))

    def get(self, path: str, **query: Any) -> Any:
        """Return a resource that must be there."""
        return done(self.send("GET", path, params=query))

    def post(self, path: str, body: object = None, **options: Any) -> httpx2.Response:
        """Send *body* as JSON; None sends none."""
        return self.send("POST", path, **({} if body is None else {"json": body}), **options)

    def patch(self, path: str, body: object, **options: Any) -> httpx2.Response:
        """Change a part."""
        return self.send("PATCH", path, json=body, **options)

    def items(self, path: str, **query: Any) -> list[Any]:
        """Return a whole list."""
        return list(each_item(partial(self._page, path, query)))

    def _page(self, path: str, query: Mapping[str, Any], token: str | None) -> Mapping[str, Any]:
        more = {} if token is None else {"page_token": token}
        return self.get(path, page_size=500, **query, **more)

    def quota(self, job_type: str | None = "scan", **limits: float) -> dict[str, Any]:
        """Create a quota with small limits, with *limits* by name, and return it."""
        return done(self.post("/quotas", {"job_type": job_type, "limits": {**SMALL, **limits}}), 201)

    def backfill(self, source: str = "s3", **changes: object) -> httpx2.Response:
        """Ask for a backfill of one day."""
        return self.post("/backfills", backfill_ask(source, **changes))

    def entry(self, entry_id: str) -> dict[str, Any]:
        """Return an audit entry as soon as it has its place in the log."""

        def look() -> dict[str, Any] | None:
            found: dict[str, Any] = self.get(f"/audit/entries/{entry_id}")
            return found if found["sequence"] is not None else None

        return eventually(look, LOG_SECONDS, "a sequence number")

    def logged(self, count: int, **filters: Any) -> list[dict[str, Any]]:
        """Return the *count* entries of the log that *filters* describe, as soon as they have their places."""

        def look() -> list[dict[str, Any]] | None:
            found = self.items("/audit/entries", **filters)
            return found if len(found) >= count else None

        found = eventually(look, LOG_SECONDS, f"{count} entries of {filters}")
        assert len(found) == count, found
        return found

    def ended(self, backfill_id: str, seconds: float) -> dict[str, Any]:
        """Return a backfill when nothing more happens to it."""

        def look() -> dict[str, Any] | None:
            found: dict[str, Any] = self.get(f"/backfills/{backfill_id}")
            return found if found["status"] in {"completed", "failed", "canceled"} else None

        return eventually(look, seconds, "an ended backfill")


def _pairs(headers: Mapping[str, str] | Sequence[tuple[str, str]] | None) -> Sequence[tuple[str, str]]:
    return list(headers.items()) if isinstance(headers, Mapping) else headers or []


def backfill_ask(source: str = "s3", **changes: object) -> dict[str, Any]:
    """Return the body of a request for one day's backfill, with *changes* by name."""
    window = {"start": "2026-03-01T00:00:00Z", "end": "2026-03-02T00:00:00Z"}
    return {"job_type": "external", "source": source, "window": window, "partition": "PT6H"} | changes


def done(answer: httpx2.Response, status: int | None = None) -> Any:
    """Return the JSON of an answer that must be a success, with this very status where one is named."""
    assert answer.is_success, f"{answer.request.method} {answer.url}: {answer.status_code} {answer.text[:2000]}"
    assert status in {None, answer.status_code}, f"{answer.status_code}, not {status}: {answer.text[:2000]}"
    return answer.json() if answer.content else None
