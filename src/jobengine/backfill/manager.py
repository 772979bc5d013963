"""The BackfillManager: preview, start and move backfills, each in the one open transaction."""

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from jobengine.audit.act import Act
from jobengine.audit.actions import Action, Outcome
from jobengine.audit.model import Resource
from jobengine.audit.ports import AuditIntake
from jobengine.backfill.model import (
    BackfillRequest,
    BackfillStatus,
    Move,
    Order,
    Reprocess,
    StopRules,
    canonical_params,
    params_digest,
)
from jobengine.backfill.planner import Plan, check_window, plan_batches, take
from jobengine.backfill.ports import BackfillRepository, JobKind, Key
from jobengine.backfill.suppressor import Ask, Duplicate, DuplicateSuppressor
from jobengine.backfill.window import EventTimeWindow, Partition
from jobengine.clock import format_time
from jobengine.errors import Conflict, Malformed, ValidationFailed
from jobengine.ids import new_id
from jobengine.tenancy.model import Family

ACTION_OF_MOVE: Mapping[Move, Action] = {
    Move.PAUSE: Action.BACKFILL_PAUSED,
    Move.RESUME: Action.BACKFILL_RESUMED,
    Move.CANCEL: Action.BACKFILL_CANCELED,
    Move.RETRY_FAILED: Action.BACKFILL_RETRIED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillAsk:
    """A backfill as somebody asks for it, before anything of it has been judged."""

    job_type: str
    source: str
    start: datetime
    end: datetime
    partition: str = "P1D"
    order: Order = Order.FORWARD
    reprocess: Reprocess = Reprocess.MISSING
    max_active: int | None = None
    max_failures: int | None = None
    max_failure_rate: float | None = None
    params: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True, slots=True)
class Preview:
    """What a backfill would do now; *plan_token* makes `start` do exactly this or nothing."""

    plan: Plan
    first: EventTimeWindow | None
    last: EventTimeWindow | None
    duplicate: Duplicate | None
    warnings: tuple[str, ...]
    plan_token: str


@dataclass(frozen=True, slots=True)
class _Planned:
    key: Key
    job: JobKind
    plan: Plan
    params: bytes
    duplicate: Duplicate | None
    token: str


@dataclass(frozen=True, slots=True)
class BackfillManager:
    """Every way to make and move a backfill; all that a method does commits or rolls back together."""

    backfills: BackfillRepository
    audit: AuditIntake
    act: Act
    suppressor: DuplicateSuppressor
    jobs: Mapping[str, JobKind]
    plan_key: bytes = field(repr=False)

    async def preview(self, ask: BackfillAsk) -> Preview:
        """Plan *ask* and change nothing, not even a lock; raises ValidationFailed as `start` does."""
        planned = await self._plan(ask)
        plan = planned.plan
        (indices, _), (backwards, _) = (take(plan.ranges, order, 1) for order in (Order.FORWARD, Order.BACKWARD))
        return Preview(
            plan=plan,
            first=plan.window_of(indices[0]) if indices else None,
            last=plan.window_of(backwards[0]) if backwards else None,
            duplicate=planned.duplicate,
            warnings=_warnings(plan),
            plan_token=planned.token,
        )

    async def start(self, ask: BackfillAsk, plan_token: str | None) -> BackfillRequest | Duplicate:
        """Make a backfill; a Duplicate is audited and makes nothing.

        Raises `backfill_reason_required`, ValidationFailed (`unknown_job_type`, `window_*`, `too_many_partitions`), and
        Conflict `plan_changed` when *plan_token* stands for another plan.
        """
        if self.act.principal.backfill_purpose is None:
            raise _no_reason()
        # Of any number of equal requests one decides at a time, and sees what the others before it made.
        await self.backfills.lock_key(_key(ask))
        planned = await self._plan(ask)
        if planned.duplicate:
            await self._reject(ask, planned.duplicate)
            return planned.duplicate
        if plan_token is not None and not hmac.compare_digest(plan_token.encode(), planned.token.encode()):
            raise Conflict("the plan is no longer what the preview showed", code="plan_changed")
        request = await self._requested(ask, planned)
        await self.backfills.add(request, planned.plan, planned.job, self.act.trace_id)
        return request

    async def move(self, backfill_id: str, move: Move) -> None:
        """Pause, resume, cancel or retry; raises NotFound, `backfill_reason_required`, or Conflict `invalid_state`."""
        family = self._family()
        request = await self.backfills.lock(backfill_id)
        after = request.after(move)
        if move is Move.RETRY_FAILED:
            await self._check_free(request)
        await self.backfills.move(backfill_id, move)
        entry = self.act.entry(
            ACTION_OF_MOVE[move],
            Resource("backfill", backfill_id),
            family=family,
            before={"status": request.status.value},
            after={"status": after.status.value},
        )
        await self.audit.record(entry)

    def _family(self) -> Family:
        # orch:operate moves a backfill as well, under the reason of its own that it cannot be had without.
        principal = self.act.principal
        if principal.backfill_purpose is not None:
            return Family.BACKFILL
        if principal.operator_purpose is None:
            raise _no_reason()
        return Family.OPERATE

    async def _plan(self, ask: BackfillAsk) -> _Planned:
        job = self.jobs.get(ask.job_type)
        if job is None:
            raise ValidationFailed("job_type", "is not configured", code="unknown_job_type")
        window = check_window(ask.start, ask.end, self.act.at)
        try:
            partition = Partition(ask.partition)
        except ValueError as error:
            raise ValidationFailed("partition", str(error)) from None
        params, key = canonical_params(ask.params), _key(ask)
        earlier = await self.backfills.earlier(key, window)
        verdict = self.suppressor.decide(Ask(window, ask.reprocess), earlier, self.act.at)
        coverage = await self.backfills.coverage(key, window, ask.reprocess)
        plan = plan_batches(window, partition, order=ask.order, reprocess=ask.reprocess, coverage=coverage)
        token = self._token(plan, key, job, ask)
        return _Planned(key, job, plan, params, verdict if isinstance(verdict, Duplicate) else None, token)

    def _token(self, plan: Plan, key: Key, job: JobKind, ask: BackfillAsk) -> str:
        digest = plan.digest(
            job_type=key.job_type, source=key.source, params_digest=key.params_digest, handler_version=job.handler
        )
        rules = repr((self.act.tenant_id, ask.max_active, ask.max_failures, ask.max_failure_rate, job))
        mac = hmac.digest(self.plan_key, digest + rules.encode(), "sha256")
        return urlsafe_b64encode(mac).decode().rstrip("=")

    async def _requested(self, ask: BackfillAsk, planned: _Planned) -> BackfillRequest:
        backfill_id = new_id()
        plan = planned.plan
        entry = self.act.entry(
            Action.BACKFILL_REQUESTED,
            Resource("backfill", backfill_id),
            family=Family.BACKFILL,
            after=_described(ask) | {"batches": plan.pending, "skipped": plan.total - plan.pending},
        )
        sealed = await self.audit.record(entry)
        return BackfillRequest(
            backfill_id=backfill_id,
            tenant_id=self.act.tenant_id,
            job_type=ask.job_type,
            source=ask.source,
            window=plan.window,
            params=planned.params,
            params_digest=planned.key.params_digest,
            partition=plan.partition,
            order=ask.order,
            reprocess=ask.reprocess,
            max_active=ask.max_active,
            stop_rules=StopRules(max_failures=ask.max_failures, max_failure_rate=ask.max_failure_rate),
            status=BackfillStatus.PENDING,
            requested_by=self.act.principal.owner,
            token_id=self.act.principal.token_id,
            audit_entry_id=sealed.entry.entry_id,
            created_at=self.act.at,
        )

    async def _reject(self, ask: BackfillAsk, duplicate: Duplicate) -> None:
        overlaps = [other.backfill_id for other in duplicate.overlaps]
        entry = self.act.entry(
            Action.BACKFILL_DUPLICATE_REJECTED,
            Resource("backfill", overlaps[0]),
            family=Family.BACKFILL,
            outcome=Outcome.REFUSED,
            after=_described(ask),
            properties={"overlaps": overlaps},
        )
        await self.audit.record(entry)

    async def _check_free(self, request: BackfillRequest) -> None:
        # A failed backfill suppresses nobody, so another may hold its window by now.
        key = Key(request.job_type, request.source, request.params_digest)
        await self.backfills.lock_key(key)
        earlier = await self.backfills.earlier(key, request.window)
        verdict = self.suppressor.decide(Ask(request.window, Reprocess.ALL), earlier, self.act.at)
        if isinstance(verdict, Duplicate):
            message = "another backfill works on this window by now"
            raise Conflict(message, code="invalid_state")


def _key(ask: BackfillAsk) -> Key:
    return Key(ask.job_type, ask.source, params_digest(ask.params))


def _no_reason() -> Malformed:
    message = "the token carries no backfill_reason: ask for one with backfill_reason set"
    return Malformed(message, code="backfill_reason_required")


def _described(ask: BackfillAsk) -> dict[str, object]:
    return {
        "job_type": ask.job_type,
        "source": ask.source,
        "window": {"start": format_time(ask.start), "end": format_time(ask.end)},
        "partition": ask.partition,
        "order": ask.order.value,
        "reprocess": ask.reprocess.value,
        "params": dict(ask.params),
    }


def _warnings(plan: Plan) -> tuple[str, ...]:
    found: list[str] = []
    if skipped := plan.total - plan.pending:
        found.append(f"{skipped} of {plan.total} batches are skipped")
    if not plan.pending:
        found.append("nothing is left to run")
    return tuple(found)
