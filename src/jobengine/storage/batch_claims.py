"""Batches handed out: each under an admission, decided together, fair among the backfills of a tenant."""

from collections.abc import Sequence
from typing import Any

from jobengine.backfill.attempts import ClaimedBatch
from jobengine.backfill.window import EventTimeWindow
from jobengine.quota.admission import Ask, Denied
from jobengine.storage.admission import AdmissionDesk, Answer, Lease
from jobengine.storage.backfill import params_of
from jobengine.storage.batch_words import Claim
from jobengine.storage.course import Row, lock_rows, refill
from jobengine.storage.database import Transaction


class Claims:
    """What one transaction hands out of the *backfills* it has locked, and locks for that."""

    def __init__(self, tx: Transaction, desk: AdmissionDesk, backfills: dict[str, Row]) -> None:
        self._tx = tx
        self._desk = desk
        self._backfills = backfills

    async def hand_out(self, claim: Claim, due: set[str]) -> list[ClaimedBatch]:
        """Hand out what a claim asks for, of job types that are *due*; what a quota denies is left out."""
        wanted = due & set(claim.job_types)
        handed: list[ClaimedBatch] = []
        while wanted and len(handed) < claim.most:
            candidates = await self._candidates(claim, wanted, claim.most - len(handed))
            if not candidates:
                if await refill(self._tx, list(self._backfills.values())):
                    continue
                break
            asks = [Ask(row["job_type"], 1, row["lease_seconds"], "backfill") for row in candidates]
            answers = await self._desk.ask(asks, claim.client_id, counted=False)
            answered = list(zip(candidates, answers, strict=True))
            granted = [(row, answer) for row, answer in answered if isinstance(answer, Lease)]
            handed += await self._start(granted, claim.client_id)
            wanted -= self._note_denied([(row, answer) for row, answer in answered if not isinstance(answer, Lease)])
        return handed

    async def _candidates(self, claim: Claim, wanted: set[str], most: int) -> list[dict[str, Any]]:
        about = {"handler_kind": claim.kind, "job_types": sorted(wanted)}
        fairest = await self._tx.all("backfill_fairest", **about, most=most)
        backfill_ids = {str(row["backfill_id"]) for row in fairest}
        # What was paused, canceled or stopped meanwhile shows once the rows are locked, and has no candidates.
        self._backfills |= await lock_rows(self._tx, backfill_ids - self._backfills.keys())
        if not backfill_ids:
            return []
        return await self._tx.all("batch_candidates", backfill_ids=sorted(backfill_ids), most=most)

    async def _start(self, granted: Sequence[tuple[Row, Lease]], client_id: str) -> list[ClaimedBatch]:
        if not granted:
            return []
        held = {
            "batch_ids": [row["batch_id"] for row, _ in granted],
            "fencing_tokens": [lease.fencing_token for _, lease in granted],
        }
        leases = {
            "lease_ids": [lease.lease_id for _, lease in granted],
            "ends": [lease.expires_at for _, lease in granted],
        }
        backfill_ids = [row["backfill_id"] for row, _ in granted]
        batches, _ = await self._tx.together(
            ("batch_start", held | leases),
            ("attempt_add", held | {"backfill_ids": backfill_ids, "client_id": client_id, "now": self._desk.now}),
        )
        started = {batch["batch_id"]: batch for batch in batches}
        return [self._handed(started[row["batch_id"]], row, lease) for row, lease in granted]

    def _handed(self, batch: Row, candidate: Row, lease: Lease) -> ClaimedBatch:
        row, now = self._backfills[str(candidate["backfill_id"])], self._desk.now
        row |= {"status": "running", "started_at": row["started_at"] or now, "dispatched_at": now, "blocked_by": None}
        return ClaimedBatch(
            tenant_id=self._tx.tenant_id,
            batch_id=str(batch["batch_id"]),
            backfill_id=str(candidate["backfill_id"]),
            job_type=row["job_type"],
            source=row["source"],
            window=EventTimeWindow(batch["window_start"], batch["window_end"]),
            params=params_of(row),
            attempt=batch["attempts"],
            fencing_token=lease.fencing_token,
            lease_expires_at=lease.expires_at,
            lease_seconds=lease.lease_seconds,
            checkpoint=batch["checkpoint"],
        )

    def _note_denied(self, denied: Sequence[tuple[Row, Answer]]) -> set[str]:
        for candidate, answer in denied:
            by_share = isinstance(answer, Denied) and all(found.by_share for found in answer.blocking)
            self._backfills[str(candidate["backfill_id"])]["blocked_by"] = "share" if by_share else "quota"
        return {candidate["job_type"] for candidate, _ in denied}
