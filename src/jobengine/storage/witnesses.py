"""What is shown to witnesses outside, and the cosignatures that they gave."""

from collections.abc import Sequence
from dataclasses import dataclass

from jobengine.audit.checkpoint import VerifierKey, parse_note
from jobengine.audit.witness import Submission
from jobengine.storage.audit import LogHead
from jobengine.storage.audit_proofs import prove_consistency
from jobengine.storage.database import Database, Transaction


@dataclass(frozen=True, slots=True)
class Unwitnessed:
    """A log that has grown since a witness cosigned it at the size *cosigned*."""

    tenant_id: str
    origin: str
    cosigned: int


async def find_unwitnessed(database: Database, witness: VerifierKey) -> Sequence[Unwitnessed]:
    """Return the logs whose newest head *witness* has not cosigned."""
    async with database.system() as tx:
        rows = await tx.all("system_unwitnessed_logs", witness=str(witness))
    return [Unwitnessed(row["tenant_id"], row["origin"], row["cosigned"]) for row in rows]


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown to a witness of a log, up to its entry *size*."""

    tenant_id: str
    size: int
    submission: Submission


async def make_submission(database: Database, tenant_id: str, old_size: int) -> Shown:
    """Return what to show a witness that saw *old_size* entries; raises ValidationFailed where there are fewer."""
    async with database.transaction(tenant_id) as tx:
        proof = await prove_consistency(tx, old_size, None)
    return Shown(tenant_id, proof.to_size, Submission(old_size, tuple(proof.hashes), proof.head.checkpoint))


async def keep_cosignature(database: Database, shown: Shown, witness: VerifierKey, line: str, at: int) -> None:
    """Keep the line by which *witness* cosigned what it was shown."""
    async with database.system() as tx:
        await tx.run(
            "system_keep_cosignature",
            log=shown.tenant_id,
            witness=str(witness),
            size=shown.size,
            checkpoint=shown.submission.note,
            line=line,
            cosigned_at=at,
        )


async def cosigned_note(tx: Transaction) -> str | None:
    """Return the newest checkpoint of the transaction's log that witnesses cosigned, with their lines."""
    rows = await tx.all("audit_cosignatures")
    if not rows:
        return None
    note = str(rows[0]["checkpoint"])
    text = parse_note(note).text
    return note + "".join(f"{row['line']}\n" for row in rows if parse_note(row["checkpoint"]).text == text)


async def cosignatures_of(tx: Transaction, head: LogHead) -> str:
    """Return the lines of those witnesses that cosigned exactly this head."""
    text = head.checkpoint.partition("\n\n")[0]
    rows = await tx.all("audit_cosignatures")
    return "".join(f"{row['line']}\n" for row in rows if row["checkpoint"].partition("\n\n")[0] == text)
