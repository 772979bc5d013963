"""What tests are made of: tokens, tenants, a client that speaks for one, and time that passes without waiting."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import httpx2
import psycopg
from joserfc import jws
from psycopg.rows import DictRow

from jobengine.authority.keys import ALGORITHM, signing_key
from jobengine.authority.scopes import Role, Scope
from jobengine.authority.tokens import TOKEN_TYPE
from jobengine.bootstrap import Plane
from jobengine.clock import format_time, utc_now
from jobengine.ids import new_id
from jobengine.quota.model import Limits
from jobengine.settings import JobType
from jobengine.storage.authority import add_tenant, revoke

NOW: Final = datetime(2026, 3, 1, 12, tzinfo=UTC)
"""The moment at which unit tests happen."""

API: Final = "/api/v1"
BASE_URL: Final = "http://jobengine.test"
LIMITS: Final = {"max_active": 5, "max_per_hour": 100, "burst": 10, "refill_per_second": 1.5}
ROOMY: Final[Mapping[str, float]] = {
    "max_active": 1_000,
    "max_per_hour": 1_000_000,
    "burst": 100_000,
    "refill_per_second": 1_000,
}
LEASE: Final = {"lease_id", "fencing_token", "job_type", "slots", "expires_at", "quota_id", "kind", "job_id"}
INTENTS: Final = {
    "quota_reason": "launch day",
    "quota_ticket": "OPS-1",
    "backfill_reason": "lost a day of events",
    "backfill_ticket": "OPS-2",
    "operator_reason": "stuck node",
    "operator_ticket": "OPS-3",
}
TENANT_SCOPES: Final = tuple(scope.value for scope in Scope if scope is not Scope.GOVERN)
JOB_TYPES: Final = {
    "external": JobType("external"),
    "patient": JobType("external", lease_seconds=60),
    "once": JobType("external", max_attempts=1),
}

# Everything of a tenant that has a time, so that a test can let time pass for it alone.
_MOMENTS: Final = {
    "leases": ("granted_at", "expires_at", "ended_at"),
    "admission_accounts": ("bucket_at", "decided_at"),
    "admission_grants": ("at",),
    "admission_denials": ("minute",),
    "quotas": ("created_at", "updated_at", "deleted_at", "drain_after"),
    "quota_changes": ("requested_at", "expires_at", "decided_at", "starts_at", "until"),
    "quota_history": ("at",),
    "quota_overrides": ("starts_at", "until", "created_at", "removed_at"),
    "idempotency_keys": ("created_at",),
    "batches": ("not_before", "lease_expires_at", "finished_at"),
    "backfills": ("created_at", "started_at", "cancel_requested_at", "finished_at"),
}

Connection = psycopg.AsyncConnection[DictRow]


def limits(**changes: int | str) -> Limits:
    """Return roomy limits, with *changes* by name."""
    chosen: dict[str, Any] = {"max_active": 5, "max_per_hour": 100, "burst": 10, "refill_per_second": 1} | changes
    return Limits(**chosen | {"refill_per_second": Decimal(chosen["refill_per_second"])})


def forge_token(plane: Plane, tenant_id: str | None, *scopes: str, **claims: object) -> str:
    """Sign a token that *plane* trusts; *claims* stand beside or instead of the usual ones, None leaves one out."""
    issued = int(plane.clock.now().timestamp())
    usual: dict[str, object] = {
        "iss": plane.realm.issuer,
        "aud": plane.realm.audience,
        "sub": "jec_test",
        "client_id": "jec_test",
        "owner": "ops",
        "iat": issued,
        "exp": issued + 300,
        "jti": new_id(),
        "tenant": tenant_id,
        "scope": " ".join(scopes) or None,
        "roles": [Role.ADMIN.value],
    }
    said = {name: value for name, value in (usual | claims).items() if value is not None}
    key = signing_key(plane.keys, utc_now())
    header = {"alg": ALGORITHM, "typ": TOKEN_TYPE, "kid": key.kid}
    return jws.serialize_compact(header, json.dumps(said).encode(), key.private, algorithms=[ALGORITHM])


async def new_tenant(plane: Plane) -> str:
    """Make a tenant that nobody else has, with its log, and return its id."""
    tenant_id = f"t-{new_id()}"
    async with plane.database.system() as tx:
        await add_tenant(tx, tenant_id)
    return tenant_id


async def revoke_token(plane: Plane, tenant_id: str, token_id: str) -> None:
    """Revoke a token for good: what stands in one process's memory alone is forgotten at its next reading."""
    async with plane.database.transaction(tenant_id) as tx:
        await revoke(tx, token_id, "jec_anybody", utc_now() + timedelta(minutes=5))
    plane.revocations.add(token_id)


@dataclass(frozen=True, slots=True)
class Api:
    """Somebody with an access token who speaks for one tenant; paths are those below ``/api/v1``."""

    client: httpx2.AsyncClient
    plane: Plane
    tenant_id: str
    token: str

    def speaking(self, *scopes: str, **claims: object) -> "Api":
        """Return somebody else of the same tenant: with these scopes, without a reason unless *claims* say one."""
        return replace(self, token=forge_token(self.plane, self.tenant_id, *scopes, **claims))

    async def send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """Send a request with the token; *options* are those of httpx2."""
        sent = {"Authorization": f"Bearer {self.token}", **(options.pop("headers", None) or {})}
        return await self.client.request(method, f"{API}{path}", headers=sent, **options)

    async def get(self, path: str, **options: Any) -> httpx2.Response:
        """Read."""
        return await self.send("GET", path, **options)

    async def post(self, path: str, body: object = None, **options: Any) -> httpx2.Response:
        """Send *body* as JSON; None sends none."""
        return await self.send("POST", path, **_json(body), **options)

    async def patch(self, path: str, body: object, **options: Any) -> httpx2.Response:
        """Change a part."""
        return await self.send("PATCH", path, json=body, **options)

    async def put(self, path: str, body: object, **options: Any) -> httpx2.Response:
        """Change members."""
        return await self.send("PUT", path, json=body, **options)

    async def delete(self, path: str, **options: Any) -> httpx2.Response:
        """Take away."""
        return await self.send("DELETE", path, **options)

    async def in_future(self, **span: float) -> str:
        """Return a time of the database's clock as the API writes it; *span* is that of a timedelta."""
        async with self.plane.database.transaction(self.tenant_id) as tx:
            return format_time(tx.now + timedelta(**span))

    async def quota(self, job_type: str | None = "scan", **changes: float) -> dict[str, Any]:
        """Create a quota with roomy limits, with *changes* by name, and return it."""
        answer = await self.post("/quotas", {"job_type": job_type, "limits": LIMITS | changes})
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def admit(self, job_type: str = "scan", **ask: object) -> httpx2.Response:
        """Ask for an admission."""
        return await self.post("/admissions", {"job_type": job_type, **ask})


def make_api(client: httpx2.AsyncClient, plane: Plane, tenant_id: str, *scopes: str, **claims: object) -> Api:
    """Return somebody of *tenant_id* who may do everything there and says why, unless *scopes* and *claims* differ."""
    token = forge_token(plane, tenant_id, *(scopes or TENANT_SCOPES), **(INTENTS | claims))
    return Api(client, plane, tenant_id, token)


def _json(body: object) -> Mapping[str, Any]:
    return {} if body is None else {"json": body}


def expect_problem(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """Return the problem document of *answer* after checking what every one must have (RFC 9457)."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    document = answer.json()
    assert document["code"] == code, document
    assert document["type"] == f"urn:jobengine:problem:{code}"
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert len(document["trace_id"]) == 32
    return document


async def audit_trail(owner: Connection, tenant_id: str) -> list[dict[str, Any]]:
    """Return what the log of *tenant_id* holds, oldest first, as it was sealed: texts stand as hashes."""
    query = b"select leaf from jobengine.audit_entries where tenant_id = %s order by entry_id"
    rows = await (await owner.execute(query, (tenant_id,))).fetchall()
    return [json.loads(bytes(row["leaf"])) for row in rows]


async def pass_time(owner: Connection, tenant_id: str, span: timedelta) -> None:
    """Let *span* pass for one tenant: everything of it is that much longer ago, and ends that much sooner."""
    for table, columns in _MOMENTS.items():
        moves = ", ".join(f"{column} = {column} - %(span)s::interval" for column in columns)
        where = {"span": span, "tenant_id": tenant_id}
        await owner.execute(f"update jobengine.{table} set {moves} where tenant_id = %(tenant_id)s".encode(), where)
