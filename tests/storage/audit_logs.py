"""Logs to test with: recorded and sequenced at a word, in a database where nothing else sequences."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

import psycopg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from psycopg.rows import dict_row
from tests.factories import NOW, Connection

from jobengine.audit.actions import Action, Outcome
from jobengine.audit.checkpoint import Checkpoint, VerifierKey, sign, verifier_key
from jobengine.audit.model import Actor, AuditEntry, Resource, SealedEntry
from jobengine.audit.signing import LogKeys
from jobengine.ids import new_id
from jobengine.storage.audit import LogHead, PostgresAudit, read_head
from jobengine.storage.audit_check import Verdict, check_log
from jobengine.storage.authority import add_tenant
from jobengine.storage.database import Database
from jobengine.storage.sequencer import Sequencer
from jobengine.tenancy.model import PLATFORM

KEY: Final = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEYS: Final = LogKeys({"test": KEY}, "test")
EVERY_SHARD: Final = tuple(range(64))


def note(checkpoint: Checkpoint) -> str:
    return sign(checkpoint, KEY)


def key_of(origin: str) -> VerifierKey:
    return verifier_key(origin, KEY)


def an_entry(tenant_id: str, number: int = 0, **changes: Any) -> AuditEntry:
    members: dict[str, Any] = {
        "entry_id": new_id(),
        "tenant_id": None if tenant_id == PLATFORM else tenant_id,
        "occurred_at": NOW + timedelta(milliseconds=number),
        "action": Action.QUOTA_ADJUSTED,
        "actor": Actor("client", "ops", "jec_test"),
        "outcome": Outcome.SUCCESS,
        "resource": Resource("quota", f"quota-{number}"),
        "reason": f"launch day {number}",
        "ticket": "OPS-1",
        "token_id": "jti-1",
        "properties": {"quota.reason": f"launch day {number}", "amount": number},
        "after": {"limits": {"max_active": number}},
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
    }
    return AuditEntry(**(members | changes))


@dataclass(frozen=True, slots=True)
class Log:
    """One tenant's log, and the owner of the database, whom nothing holds back."""

    database: Database
    owner: Connection
    tenant_id: str

    async def record(self, amount: int = 1, **changes: Any) -> list[SealedEntry]:
        """Record entries in one transaction."""
        async with self.database.transaction(self.tenant_id) as tx:
            intake = PostgresAudit(tx)
            return [await intake.record(an_entry(self.tenant_id, number, **changes)) for number in range(amount)]

    async def grow(self, amount: int) -> list[SealedEntry]:
        """Record entries and give them their places."""
        sealed = await self.record(amount)
        await self.sequencer().drain(EVERY_SHARD)
        return sealed

    def sequencer(self, owner: str = "one") -> Sequencer:
        """Return somebody who sequences."""
        return Sequencer(self.database, owner, lambda: KEYS)

    async def head(self) -> LogHead:
        """Return the log's head."""
        async with self.database.transaction(self.tenant_id) as tx:
            return await read_head(tx)

    async def check(self) -> Verdict:
        """Check the whole log."""
        return await check_log(self.database, self.tenant_id, KEYS)

    async def places(self) -> list[tuple[int, str]]:
        """Return the tree: places and entry ids."""
        rows = await self.sql("select sequence, entry_id from audit_tree where tenant_id = %(log)s order by sequence")
        return [(row["sequence"], str(row["entry_id"])) for row in rows]

    async def sql(self, statement: str, **values: object) -> list[dict[str, Any]]:
        """Do something to the database as its owner; ``%(log)s`` is this log."""
        cursor = await self.owner.execute(statement.encode(), {"log": self.tenant_id, **values})
        return await cursor.fetchall() if cursor.description else []


@asynccontextmanager
async def open_logs(conninfo: str) -> AsyncIterator[Log]:
    """Open a database that is only used for logs; the one it gives is the platform's."""
    database = Database(conninfo)
    await database.open()
    options = "-c search_path=jobengine -c timezone=UTC"
    try:
        async with await psycopg.AsyncConnection.connect(
            conninfo, autocommit=True, row_factory=dict_row, options=options
        ) as owner:
            async with database.system() as tx:
                await add_tenant(tx, PLATFORM)
            yield Log(database, owner, PLATFORM)
    finally:
        await database.close()


async def another_log(log: Log, tenant_id: str | None = None) -> Log:
    """Begin the log of a new tenant in the same database."""
    tenant_id = tenant_id or f"t-{new_id()}"
    async with log.database.system() as tx:
        await add_tenant(tx, tenant_id)
    return replace(log, tenant_id=tenant_id)
