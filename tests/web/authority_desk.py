"""A client with a secret at the desk of the authority, at an address that no other test uses, and the log it fills."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Final

import httpx2
from litestar import Litestar
from tests.factories import BASE_URL

from jobengine.authority.clients import Client, new_client
from jobengine.authority.scopes import Role
from jobengine.bootstrap import Plane
from jobengine.storage.audit import get_entry
from jobengine.storage.authority import add_client
from jobengine.tenancy.model import PLATFORM

FORM: Final = "application/x-www-form-urlencoded"
GRANT_TYPE: Final = {"grant_type": "client_credentials"}
EVERY_ROLE: Final = [role.value for role in Role]
_addresses = count(1)


@dataclass(frozen=True, slots=True)
class Desk:
    """One client, its secret, and the connection over which it asks."""

    http: httpx2.AsyncClient
    plane: Plane
    client: Client
    secret: str
    address: str

    @property
    def basic(self) -> tuple[str, str]:
        return (self.client.client_id, self.secret)

    @property
    def in_body(self) -> dict[str, str]:
        return {"client_id": self.client.client_id, "client_secret": self.secret}

    async def ask(self, path: str = "/oauth2/token", **form: str) -> httpx2.Response:
        """Send *form* with the client's secret in the Authorization header."""
        return await self.http.post(path, data=form, auth=self.basic)

    async def token(self, scope: str = "orch:read", **form: str) -> httpx2.Response:
        """Ask for a token."""
        return await self.ask(**GRANT_TYPE, scope=scope, **form)

    async def granted(self, scope: str = "orch:read", **form: str) -> str:
        """Ask for a token that must be granted, and return its text."""
        answer = await self.token(scope, **form)
        assert answer.status_code == 200, answer.text
        return answer.json()["access_token"]

    async def send(self, body: str | bytes, *headers: tuple[str, str], query: str = "") -> httpx2.Response:
        """Send exactly this to the token endpoint."""
        return await self.http.post(f"/oauth2/token{query}", content=body, headers=[*headers])

    async def introspect(self, token: str) -> dict[str, Any]:
        """Ask what *token* says."""
        answer = await self.ask("/oauth2/introspect", token=token)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def opens(self, token: str) -> bool:
        """Tell whether the API takes *token*."""
        answer = await self.http.get("/api/v1/quotas", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code in {200, 401}, answer.text
        return answer.status_code == 200

    async def another(self, **changes: Any) -> "Desk":
        """Return another client at the same address, of the same tenants and roles unless *changes* say otherwise."""
        kind = {"tenants": self.client.tenants, "roles": self.client.roles} | changes
        made, secret = await _made(self.plane, **kind)
        return replace(self, client=made, secret=secret)

    async def entries(self, log: str | None = None) -> list[dict[str, Any]]:
        """Return what the log of the client's first tenant holds."""
        return await entries(self.plane, log or self.client.tenants[0])

    async def told_of_the_address(self) -> list[dict[str, Any]]:
        """Return what the platform's log holds of this address."""
        found = await entries(self.plane, PLATFORM)
        return [entry for entry in found if entry["properties"].get("address") == self.address]


async def open_desk(
    app: Litestar, plane: Plane, tenants: Sequence[str], roles: Sequence[str] = EVERY_ROLE, owner: str = "ops-team"
) -> Desk:
    """Make a client, and a connection from a new address."""
    made, secret = await _made(plane, tenants=tenants, roles=roles, owner=owner)
    address = f"2001:db8::{next(_addresses):x}"
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False, client=(address, 40000))
    return Desk(httpx2.AsyncClient(transport=transport, base_url=BASE_URL), plane, made, secret, address)


async def _made(plane: Plane, **kind: Any) -> tuple[Client, str]:
    made = new_client("nightly", pepper=plane.pepper, **kind)
    async with plane.database.system() as tx:
        await add_client(tx, made.client)
    return made.client, made.secret


async def entries(plane: Plane, log: str) -> list[dict[str, Any]]:
    """Return the public view of every entry of a log, oldest first, whether or not it has its place in the tree."""
    async with plane.database.transaction(log) as tx:
        cursor = await tx._connection.execute(
            "select entry_id from audit_entries where tenant_id = %s order by entry_id", [log]
        )
        ids = [str(row["entry_id"]) for row in await cursor.fetchall()]
        return [await get_entry(tx, entry_id) for entry_id in ids]


def refused(answer: httpx2.Response, status: int, error: str) -> Mapping[str, str]:
    """Return the refusal after checking what every one must have (RFC 6749 section 5.2)."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["pragma"] == "no-cache"
    document = answer.json()
    assert document.keys() == {"error", "error_description"}
    assert document["error"] == error, document
    description = document["error_description"]
    assert description
    # RFC 6749 section 5.2: %x20-21 / %x23-5B / %x5D-7E.
    assert all(" " <= char <= "~" and char not in '"\\' for char in description)
    return document
