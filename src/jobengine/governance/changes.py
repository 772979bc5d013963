"""Four eyes: a raise that waits for a second person, what becomes of it, and what a tenant asks for itself."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from jobengine.audit.act import Act, Family
from jobengine.audit.actions import Action, Outcome
from jobengine.audit.model import Actor, AuditEntry, Resource
from jobengine.audit.ports import AuditIntake
from jobengine.errors import Conflict, Malformed, NotFound
from jobengine.governance.change import ChangeStatus, Origin, QuotaChange
from jobengine.governance.ports import ChangeRepository
from jobengine.ids import new_id
from jobengine.quota.manager import OverrideSpan, QuotaManager, Waits
from jobengine.quota.model import Limits, Number, Override, Quota
from jobengine.quota.rules import Refused

MOST_WAITING = 100
_COMMENT = "comment.reason"


@dataclass(frozen=True, slots=True)
class ChangeManager:
    """Every change of a tenant's quotas that may have to wait; each method works in the one open transaction.

    What `quotas` says must wait becomes a pending change; everything else is its answer.
    """

    quotas: QuotaManager
    changes: ChangeRepository
    audit: AuditIntake
    act: Act

    async def create(self, job_type: str | None, limits: Limits) -> Quota | Refused | QuotaChange:
        """Limit *job_type*, as `QuotaManager.create` does."""
        made = await self.quotas.create(job_type, limits)
        return await self._ask(made) if isinstance(made, Waits) else made

    async def adjust(
        self,
        quota_id: str,
        changes: Mapping[str, Number],
        version: int | None,
        *,
        emergency: bool = False,
        drain: bool = False,
    ) -> Quota | Refused | QuotaChange:
        """Change some limits, as `QuotaManager.adjust` does; an *emergency* is listed among the changes."""
        before = await self.quotas.quotas.lock(quota_id) if emergency else None
        made = await self.quotas.adjust(quota_id, changes, version, emergency=emergency, drain=drain)
        if isinstance(made, Waits):
            return await self._ask(made)
        if before is not None and isinstance(made, Quota):
            await self.changes.add(self._emergency(before, made, changes))
        return made

    async def add_override(
        self, quota_id: str, limits: Mapping[str, Number], span: OverrideSpan, version: int | None
    ) -> Override | Refused | QuotaChange:
        """Raise some limits for a while, as `QuotaManager.add_override` does."""
        made = await self.quotas.add_override(quota_id, limits, span, version)
        return await self._ask(made) if isinstance(made, Waits) else made

    async def request(
        self, job_type: str | None, limits: Mapping[str, Number], until: datetime | None, request_reason: str
    ) -> QuotaChange | Refused:
        """Ask for more, for good or *until* a time; somebody else decides, whatever the policy says."""
        waits = await self.quotas.ask(job_type, limits, until)
        return waits if isinstance(waits, Refused) else await self._ask(waits, "request", request_reason)

    async def approve(self, change_id: str, comment: str | None) -> QuotaChange | Refused:
        """Make the change, judged again by the rules of now, if the limits are still those it was asked for.

        Raises NotFound, `quota_reason_required`, and Conflict (`invalid_state`, `change_outdated`).
        """
        change = await self._decidable(change_id)
        if isinstance(change, Refused):
            return change
        made = await self._carry_out(change)
        if isinstance(made, Refused):
            return made
        return await self._decide(change, ChangeStatus.APPROVED, comment)

    async def reject(self, change_id: str, comment: str | None) -> QuotaChange | Refused:
        """Let the change never be; raises as `approve` does."""
        change = await self._decidable(change_id)
        return change if isinstance(change, Refused) else await self._decide(change, ChangeStatus.REJECTED, comment)

    async def _ask(self, waits: Waits, origin: Origin = "operator", said: str | None = None) -> QuotaChange:
        if await self.changes.count_waiting(self.act.at) >= MOST_WAITING:
            raise Conflict(f"{MOST_WAITING} changes wait already; have them decided first")
        span = waits.span
        change = QuotaChange(
            change_id=new_id(), kind=waits.kind, origin=origin, status=ChangeStatus.PENDING, quota_id=waits.quota_id,
            job_type=waits.job_type, before=waits.before, wanted=waits.wanted, requested_by=self.act.principal.owner,
            client_id=self.act.principal.client_id, requested_at=self.act.at, expires_at=self.act.at + waits.expires,
            starts_at=span and span.starts_at, until=span and span.until,
        )  # fmt: skip
        entry = self.act.entry(
            Action.QUOTA_CHANGE_REQUESTED,
            Resource("quota_change", change.change_id),
            family=Family.QUOTA,
            after=change.as_json(),
        )
        if said is not None:
            entry = replace(entry, reason=said, ticket=None)
        change = replace(change, entry_id=(await self.audit.record(entry)).entry.entry_id)
        await self.changes.add(change)
        return change

    def _emergency(self, before: Quota, after: Quota, wanted: Mapping[str, Number]) -> QuotaChange:
        at, by = self.act.at, self.act.principal
        return QuotaChange(
            change_id=new_id(), kind="adjust", origin="operator", status=ChangeStatus.EMERGENCY,
            quota_id=before.quota_id, job_type=before.job_type, before=before.limits, wanted=wanted,
            requested_by=by.owner, client_id=by.client_id, requested_at=at, expires_at=at,
            entry_id=after.last_entry_id, decided_by=by.owner, decided_at=at, decision_entry_id=after.last_entry_id,
        )  # fmt: skip

    async def _decidable(self, change_id: str) -> QuotaChange | Refused:
        if self.act.principal.quota_purpose is None:
            raise Malformed("the token carries no quota_reason", code="quota_reason_required")
        change = await self.changes.lock(change_id)
        if change.status is ChangeStatus.PENDING and change.status_at(self.act.at) is ChangeStatus.EXPIRED:
            await expire(self.changes, self.audit, change, self.act.tenant_id)
        if change.status_at(self.act.at) is ChangeStatus.EXPIRED:
            return Refused("change_expired", "nobody decided in time; ask again")
        if change.status is not ChangeStatus.PENDING:
            raise Conflict(f"the change is {change.status.value}", code="invalid_state")
        if change.requested_by == self.act.principal.owner:
            refused = Refused("same_person", "whoever asked for the change does not decide on it")
            await self._record(Action.QUOTA_REFUSED, change, {"code": refused.code}, Outcome.REFUSED)
            return refused
        return change

    async def _carry_out(self, change: QuotaChange) -> Quota | Override | Refused:
        cleared = {
            "change_id": change.change_id,
            "requested_by": change.requested_by,
            "approved_by": self.act.principal.owner,
            "request_entry_id": change.entry_id,
        }
        quotas = replace(self.quotas, cleared=cleared)
        if change.quota_id is None:
            made = await quotas.create(change.job_type, change.after)
        else:
            await self._check_base(change, change.quota_id)
            made = await self._change(quotas, change, change.quota_id)
        if isinstance(made, Waits):
            raise TypeError("what was cleared does not wait again")
        return made

    async def _change(
        self, quotas: QuotaManager, change: QuotaChange, quota_id: str
    ) -> Quota | Override | Refused | Waits:
        if change.until is None:
            return await quotas.adjust(quota_id, change.wanted, None)
        span = OverrideSpan(change.starts_at, change.until)
        return await quotas.add_override(quota_id, change.wanted, span, None)

    async def _check_base(self, change: QuotaChange, quota_id: str) -> None:
        try:
            quota = await self.quotas.quotas.lock(quota_id)
        except NotFound:
            raise Conflict("the quota is gone", code="change_outdated") from None
        if quota.limits != change.before:
            raise Conflict("the limits are no longer those that were to be raised", code="change_outdated")

    async def _decide(self, change: QuotaChange, status: ChangeStatus, comment: str | None) -> QuotaChange:
        approved = status is ChangeStatus.APPROVED
        action = Action.QUOTA_CHANGE_APPROVED if approved else Action.QUOTA_CHANGE_REJECTED
        said = {} if comment is None else {_COMMENT: comment}
        entry_id = await self._record(action, change, said, Outcome.SUCCESS)
        decided = replace(
            change, status=status, decided_by=self.act.principal.owner, decided_at=self.act.at,
            decision_entry_id=entry_id,
        )  # fmt: skip
        await self.changes.settle(decided)
        return decided

    async def _record(self, action: Action, change: QuotaChange, said: Mapping[str, object], outcome: Outcome) -> str:
        entry = self.act.entry(
            action,
            Resource("quota_change", change.change_id),
            family=Family.QUOTA,
            outcome=outcome,
            before=change.as_json(),
            properties={"requested_by": change.requested_by, "decided_by": self.act.principal.owner, **said},
        )
        return (await self.audit.record(entry)).entry.entry_id


async def expire(changes: ChangeRepository, audit: AuditIntake, change: QuotaChange, tenant_id: str) -> None:
    """Store that nobody decided on a locked change in time, in the service's own name."""
    entry = AuditEntry(
        entry_id=new_id(),
        tenant_id=tenant_id,
        occurred_at=change.expires_at,
        action=Action.QUOTA_CHANGE_EXPIRED,
        actor=Actor("system", "governance"),
        outcome=Outcome.SUCCESS,
        resource=Resource("quota_change", change.change_id),
        before=change.as_json(),
        properties={"requested_by": change.requested_by},
    )
    entry_id = (await audit.record(entry)).entry.entry_id
    expired = replace(change, status=ChangeStatus.EXPIRED, decided_at=change.expires_at, decision_entry_id=entry_id)
    await changes.settle(expired)
