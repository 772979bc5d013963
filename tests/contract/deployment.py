"""Any deployment of the service, known by its address and three clients; it is asked byte by byte, over HTTP/1.1."""

import base64
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPSConnection
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from tests.acceptance.callers import INTENTS, TENANT_SCOPES

GOVERN: Final = "orch:govern"
FORM: Final = "application/x-www-form-urlencoded"
Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Heard:
    """An answer as it came."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the document that it holds."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class ClientOf:
    """A client of a deployment and the one tenant in which it speaks."""

    client_id: str
    secret: str = field(repr=False)
    tenant: str

    @property
    def basic(self) -> str:
        """What stands behind `Basic` in its Authorization header."""
        halves = f"{quote(self.client_id, safe='')}:{quote(self.secret, safe='')}"
        return base64.b64encode(halves.encode()).decode()


@dataclass(frozen=True, slots=True)
class Deployment:
    """A server, a client with every role of a tenant, and a governor of the platform."""

    url: str
    owner: ClientOf
    governor: ClientOf

    def send(self, method: str, target: str, headers: Headers = (), body: bytes | None = None) -> Heard:
        """Send exactly this on a connection of its own, with the length of the body and nothing else added."""
        place = urlsplit(self.url)
        kind = HTTPSConnection if place.scheme == "https" else HTTPConnection
        connection = kind(place.hostname or "", place.port, timeout=60)
        try:
            connection.putrequest(method, target, skip_accept_encoding=True)
            for name, value in headers:
                connection.putheader(name, value.encode("utf-8"))
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders()
            return self._answer(connection, body)
        finally:
            connection.close()

    @staticmethod
    def _answer(connection: HTTPConnection, body: bytes | None) -> Heard:
        # A server that refuses a large body need not read it to its end.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.send(body or b"")
        answer = connection.getresponse()
        return Heard(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())

    def call(self, token: str, method: str, path: str, body: object = None, *more: tuple[str, str]) -> Heard:
        """Call the API with *token*; *body* is sent as JSON, None sends none."""
        headers = [("Authorization", f"Bearer {token}"), *more]
        if body is None:
            return self.send(method, f"/api/v1{path}", headers)
        return self.send(
            method, f"/api/v1{path}", [*headers, ("Content-Type", "application/json")], json.dumps(body).encode()
        )

    def token(self, client: ClientOf, *scopes: str) -> str:
        """Return a token of *client* for *scopes*, with the reasons that they need."""
        said = {name: text for scope in scopes for name, text in INTENTS.get(scope, {}).items()}
        asked = {"grant_type": "client_credentials", "scope": " ".join(scopes), "tenant": client.tenant, **said}
        headers = [("Content-Type", FORM), ("Authorization", f"Basic {client.basic}")]
        answer = self.send("POST", "/oauth2/token", headers, urlencode(asked).encode())
        assert answer.status == 200, answer.body
        return answer.json()["access_token"]

    def everything(self) -> str:
        """Return a token of the owner for every scope of a tenant."""
        return self.token(self.owner, *TENANT_SCOPES)
