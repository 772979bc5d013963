"""The first answer to a request, kept for its repeats in the transaction of the request itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from psycopg.types.json import Jsonb

from jobengine.errors import ValidationFailed
from jobengine.storage.database import Transaction

MAX_KEPT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer as it was sent."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    succeeded: bool = True


@dataclass(frozen=True, slots=True)
class IdempotencyKeys:
    """One key of one client in one tenant and path; a concurrent repeat waits for the first to commit or roll back."""

    tx: Transaction
    client_id: str
    key: str
    path: str
    body_digest: bytes

    async def begin(self) -> Kept | None:
        """Take the key, or return the answer kept under it; raises `idempotency_key_reused` for another body."""
        if await self.tx.find("idempotency_claim", **self._where(), body_digest=self.body_digest):
            return None
        row = await self.tx.one("idempotency_find", **self._where())
        if bytes(row["body_digest"]) != self.body_digest:
            raise ValidationFailed("Idempotency-Key", "was used for another request", code="idempotency_key_reused")
        return Kept(row["status"], row["headers"], bytes(row["body"]))

    async def end(self, answer: Kept) -> None:
        """Keep a success for the repeats, free the key otherwise; raises `idempotency_unsupported` when too large."""
        if not answer.succeeded:
            await self.tx.run("idempotency_free", **self._where())
            return
        if len(answer.body) > MAX_KEPT_BYTES:
            message = f"the answer is over {MAX_KEPT_BYTES} bytes"
            raise ValidationFailed("Idempotency-Key", message, code="idempotency_unsupported")
        await self.tx.run(
            "idempotency_keep",
            **self._where(),
            status=answer.status,
            headers=Jsonb(dict(answer.headers)),
            body=answer.body,
        )

    def _where(self) -> dict[str, Any]:
        return {"client_id": self.client_id, "key": self.key, "path": self.path}
