"""Clients, keys and revocations: rows ↔ values, and the keys and refusals that a process keeps at hand."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from jobengine.audit.merkle import EMPTY_ROOT
from jobengine.authority.clients import Client
from jobengine.authority.entries import summary_entry
from jobengine.authority.keys import (
    CHECKPOINT_AHEAD,
    CheckpointKey,
    SigningKey,
    generate_checkpoint_key,
    rotate,
    seal_checkpoint_key,
    seal_signing_key,
    unseal_checkpoint_key,
    unseal_signing_key,
)
from jobengine.authority.refusals import RefusalMeter, Summary
from jobengine.authority.scopes import Role
from jobengine.errors import Unavailable
from jobengine.storage.audit import PostgresAudit
from jobengine.storage.database import Database, Transaction

SHARDS = 64
INTAKE_WITHIN = timedelta(seconds=5)


async def find_client(tx: Transaction, client_id: str) -> Client | None:
    """Return the client with this id, disabled or not."""
    row = await tx.find("system_find_client", client_id=client_id)
    return None if row is None else _client_of(row)


async def list_clients(tx: Transaction) -> Sequence[Client]:
    """Return every client, oldest first."""
    return [_client_of(row) for row in await tx.all("system_list_clients")]


async def add_client(tx: Transaction, client: Client) -> None:
    """Store a client; its tenants exist from now on, each with a log of its own."""
    for tenant_id in client.tenants:
        await add_tenant(tx, tenant_id)
    await tx.run(
        "system_add_client",
        client_id=client.client_id,
        name=client.name,
        owner=client.owner,
        secret_hash=client.secret_hash,
        tenants=list(client.tenants),
        roles=[role.value for role in client.roles],
    )


async def add_tenant(tx: Transaction, tenant_id: str) -> None:
    """Make a tenant with an empty log, unless it exists; the log's name tells nothing about the tenant."""
    await tx.run("system_add_tenant", tenant_id=tenant_id)
    await tx.run(
        "system_add_log",
        tenant_id=tenant_id,
        origin=f"jobengine/log/{secrets.token_hex(16)}",
        shard=int.from_bytes(sha256(tenant_id.encode()).digest()[:2]) % SHARDS,
        root_hash=EMPTY_ROOT,
    )


async def disable_client(tx: Transaction, client_id: str) -> bool:
    """Disable a client for good; False when there is none that is enabled."""
    return await tx.find("system_disable_client", client_id=client_id) is not None


async def has_tenant(tx: Transaction, tenant_id: str) -> bool:
    """Tell whether the tenant exists."""
    return await tx.find("system_has_tenant", tenant_id=tenant_id) is not None


async def load_signing_keys(tx: Transaction, kek: bytes) -> tuple[SigningKey, ...]:
    """Return the keys of access tokens; raises SealBroken under another master key."""
    rows = await tx.all("system_list_keys", purpose="token")
    return tuple(
        unseal_signing_key(
            row["sealed_private"],
            kek,
            kid=row["kid"],
            created_at=row["created_at"],
            active_from=row["active_from"],
            retire_at=row["retire_at"],
        )
        for row in rows
    )


async def rotate_signing_keys(database: Database, kek: bytes) -> SigningKey:
    """Publish the next key of access tokens and set the end of the present ones; return the new key."""
    async with database.system() as tx:
        await tx.find("system_lock_keys")
        return await _rotate(tx, kek)


async def load_checkpoint_keys(tx: Transaction, kek: bytes) -> tuple[CheckpointKey, ...]:
    """Return the keys of checkpoints, oldest first; raises SealBroken under another master key."""
    return tuple(
        unseal_checkpoint_key(
            row["sealed_private"],
            kek,
            kid=row["kid"],
            created_at=row["created_at"],
            active_from=row["active_from"],
            retire_at=row["retire_at"],
        )
        for row in await tx.all("system_list_keys", purpose="checkpoint")
    )


async def rotate_checkpoint_key(tx: Transaction, kek: bytes) -> CheckpointKey:
    """Make the next key of checkpoints, and set when the present one stops signing; return the new key."""
    await tx.find("system_lock_keys")
    new = generate_checkpoint_key(tx.now, tx.now + CHECKPOINT_AHEAD)
    for key in await load_checkpoint_keys(tx, kek):
        if key.retire_at is None:
            await tx.run("system_retire_key", kid=key.kid, retire_at=new.active_from)
    await _add_checkpoint_key(tx, new, kek)
    return new


async def start_keys(database: Database, kek: bytes) -> tuple[tuple[SigningKey, ...], tuple[CheckpointKey, ...]]:
    """Return the keys, making the first ones where there are none."""
    async with database.system() as tx:
        await tx.find("system_lock_keys")
        keys = await load_signing_keys(tx, kek)
        if not any(not key.retired(tx.now) for key in keys):
            await _rotate(tx, kek)
            keys = await load_signing_keys(tx, kek)
        if not await tx.find("system_list_keys", purpose="checkpoint"):
            await _add_checkpoint_key(tx, generate_checkpoint_key(tx.now), kek)
        return keys, await load_checkpoint_keys(tx, kek)


async def _rotate(tx: Transaction, kek: bytes) -> SigningKey:
    keys = await load_signing_keys(tx, kek)
    known = {key.kid: key for key in keys}
    *ended, new = rotate(keys, tx.now)
    for key in ended:
        if key.retire_at != known[key.kid].retire_at:
            await tx.run("system_retire_key", kid=key.kid, retire_at=key.retire_at)
    await tx.run(
        "system_add_key",
        kid=new.kid,
        purpose="token",
        public_key=Jsonb(dict(new.public_jwk)),
        sealed_private=seal_signing_key(new, kek),
        created_at=new.created_at,
        active_from=new.active_from,
        retire_at=new.retire_at,
    )
    return new


async def _add_checkpoint_key(tx: Transaction, key: CheckpointKey, kek: bytes) -> None:
    await tx.run(
        "system_add_key",
        kid=key.kid,
        purpose="checkpoint",
        public_key=Jsonb({"kty": "OKP", "crv": "Ed25519", "x": key.private.public_key().public_bytes_raw().hex()}),
        sealed_private=seal_checkpoint_key(key, kek),
        created_at=key.created_at,
        active_from=key.active_from,
        retire_at=key.retire_at,
    )


@asynccontextmanager
async def recording(
    database: Database, log: str, within: timedelta = INTAKE_WITHIN
) -> AsyncGenerator[tuple[Transaction, PostgresAudit]]:
    """Open a transaction of *log* for something that must not happen unrecorded.

    Whatever fails in the database, or takes longer than *within*, raises Unavailable: then nothing has happened.
    """
    try:
        async with asyncio.timeout(within.total_seconds()), database.transaction(log) as tx:
            yield tx, PostgresAudit(tx)
    except (psycopg.Error, TimeoutError) as error:
        raise Unavailable("the audit intake does not answer") from error


async def record_summaries(database: Database, meter: RefusalMeter, summaries: Sequence[Summary]) -> None:
    """Write *summaries* into their logs; what cannot be written goes back to *meter*, and Unavailable is raised."""
    waiting, fault = list(summaries), None
    try:
        for summary in summaries:
            try:
                async with recording(database, summary.log) as (tx, audit):
                    await audit.record(summary_entry(summary, tx.now))
                waiting.remove(summary)
            except Unavailable as error:
                # One log that takes nothing must not keep the others from being told.
                fault = error
    finally:
        for summary in waiting:
            meter.add(summary)
    if fault is not None:
        raise fault


async def revoke(tx: Transaction, jti: str, client_id: str, expires_at: datetime) -> bool:
    """Revoke a token of the transaction's tenant; False when it was revoked before."""
    row = await tx.find("revoke_token", jti=jti, client_id=client_id, expires_at=expires_at)
    return row is not None


class Revocations:
    """What every process must refuse, at most a second old: revoked tokens by jti, and disabled clients."""

    def __init__(self) -> None:
        self._tokens: frozenset[str] = frozenset()
        self._clients: frozenset[str] = frozenset()
        self._just_revoked: set[str] = set()
        self._reading = asyncio.Lock()

    async def refresh(self, database: Database) -> None:
        """Read the present state."""
        # One reading at a time: an older one that ends last would bring revoked tokens back.
        async with self._reading:
            committed = frozenset(self._just_revoked)
            async with database.system() as tx:
                rows = await tx.all("system_list_revoked")
            self._tokens = frozenset(row["id"] for row in rows if row["kind"] == "token")
            self._clients = frozenset(row["id"] for row in rows if row["kind"] == "client")
            self._just_revoked -= committed

    def refuse(self, token_id: str, client_id: str) -> bool:
        """Tell whether a token must be refused whatever its signature says."""
        return token_id in self._tokens or token_id in self._just_revoked or client_id in self._clients

    def add(self, token_id: str) -> None:
        """Refuse a token in this process at once; call it when the revocation is committed."""
        # Kept beside the stored ones until a reading that began later has seen it.
        self._just_revoked.add(token_id)


def _client_of(row: Mapping[str, Any]) -> Client:
    return Client(
        client_id=row["client_id"],
        owner=row["owner"],
        name=row["name"],
        tenants=tuple(row["tenants"]),
        roles=tuple(Role(role) for role in row["roles"]),
        secret_hash=row["secret_hash"],
        disabled_at=row["disabled_at"],
    )
