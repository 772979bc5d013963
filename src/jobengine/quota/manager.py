"""Changing quotas: judge by the policy's rules, then write quota, history and audit entry in one transaction."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from jobengine.audit.act import Act, Family
from jobengine.audit.actions import Action, Outcome
from jobengine.audit.model import Resource
from jobengine.audit.ports import AuditIntake
from jobengine.clock import format_time
from jobengine.errors import Conflict, Malformed, NotFound, ValidationFailed, VersionConflict
from jobengine.ids import new_id
from jobengine.quota.model import LIMIT_NAMES, Limits, Number, Override, Quota, limits_json
from jobengine.quota.policy import Policy
from jobengine.quota.ports import QuotaRepository
from jobengine.quota.rules import (
    Proposal,
    Refused,
    WithinCeilings,
    WithinOverrideDuration,
    WithinRaiseFactor,
    judge,
)
from jobengine.tenancy.model import Purpose

DELETED_REMEMBERED = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class OverrideSpan:
    """How long an override is to hold; without *starts_at* it begins at once."""

    starts_at: datetime | None
    until: datetime


@dataclass(frozen=True, slots=True)
class QuotaManager:
    """Every way to change a quota; each method does all of its work in the transaction of *quotas* and *audit*.

    All raise `quota_reason_required` when the token says no valid reason, before anything is looked up.
    """

    quotas: QuotaRepository
    audit: AuditIntake
    act: Act

    async def create(self, job_type: str | None, limits: Limits) -> Quota | Refused:
        """Limit *job_type* (None: the whole tenant); raises Conflict `quota_exists`."""
        self._require_reason()
        if await self.quotas.has(job_type):
            raise Conflict("there is already a quota for this job type", code="quota_exists")
        policy = await self.quotas.policy()
        base = await self.quotas.deleted_limits(job_type, self.act.at - DELETED_REMEMBERED)
        wanted = {name: limits.value(name) for name in LIMIT_NAMES}
        if refused := self._judge(policy, Proposal(wanted, base)):
            await self._refuse(
                refused, Resource("job_type", job_type or "*"), {"job_type": job_type, "limits": limits.as_json()}
            )
            return refused
        quota = self._new(job_type, limits)
        entry_id = await self._record(Action.QUOTA_CREATED, quota.quota_id, None, quota)
        quota = replace(quota, last_entry_id=entry_id)
        await self.quotas.add(quota)
        await self.quotas.remember(None, quota)
        return quota

    async def adjust(
        self, quota_id: str, changes: Mapping[str, Number], version: int | None, *, emergency: bool = False
    ) -> Quota | Refused:
        """Change some limits; raises NotFound, or VersionConflict when *version* is not the stored one.

        An *emergency* is audited under its own name and needs a ticket: raises ValidationFailed without one.
        """
        purpose = self._require_reason()
        if emergency and purpose.ticket is None:
            path, message = "emergency", "needs a ticket: ask for a token with quota_reason and quota_ticket"
            raise ValidationFailed(path, message)
        quota = await self._lock(quota_id, version)
        policy = await self.quotas.policy()
        if refused := self._judge(policy, Proposal(changes, quota.limits)):
            await self._refuse(refused, Resource("quota", quota_id), {"limits": limits_json(changes)})
            return refused
        action = Action.QUOTA_EMERGENCY if emergency else Action.QUOTA_ADJUSTED
        return await self._change(action, quota, replace(quota, limits=quota.limits.changed(changes)))

    async def pause(self, quota_id: str, pause_reason: str | None, version: int | None) -> Quota:
        """Deny new work from now on; leases run on and the limits stay."""
        self._require_reason()
        quota = await self._lock(quota_id, version)
        return await self._change(Action.QUOTA_PAUSED, quota, replace(quota, paused=True, pause_reason=pause_reason))

    async def resume(self, quota_id: str, version: int | None) -> Quota:
        """Admit work again up to the limits."""
        self._require_reason()
        quota = await self._lock(quota_id, version)
        return await self._change(Action.QUOTA_RESUMED, quota, replace(quota, paused=False, pause_reason=None))

    async def delete(self, quota_id: str, version: int | None) -> None:
        """Take the quota away; the policy's default limits hold for its job type then."""
        self._require_reason()
        quota = await self._lock(quota_id, version)
        entry_id = await self._record(Action.QUOTA_DELETED, quota_id, quota, None)
        gone = self._next(quota, "deleted", entry_id)
        await self.quotas.delete(gone)
        await self.quotas.remember(quota, gone, deleted=True)

    async def add_override(
        self, quota_id: str, limits: Mapping[str, Number], span: OverrideSpan, version: int | None
    ) -> Override | Refused:
        """Raise some limits for a while; raises ValidationFailed for spans and limits that raise nothing."""
        self._require_reason()
        quota = await self._lock(quota_id, version)
        begins, until = span.starts_at or self.act.at, span.until
        _check_override(quota, limits, begins, until, self.act.at)
        policy = await self.quotas.policy()
        if refused := self._judge(policy, Proposal(limits, quota.limits, until - begins)):
            await self._refuse(refused, Resource("quota", quota_id), {"limits": limits_json(limits)})
            return refused
        override = Override(
            new_id(), quota_id, dict(limits), begins, until, self.act.at, self.act.principal.owner, entry_id=""
        )
        entry_id = await self._record_override(Action.QUOTA_OVERRIDE_ADDED, None, override)
        override = replace(override, entry_id=entry_id)
        await self.quotas.add_override(override)
        return override

    async def remove_override(self, quota_id: str, override_id: str, version: int | None) -> None:
        """End an override now; raises NotFound."""
        self._require_reason()
        await self._lock(quota_id, version)
        override = await self.quotas.remove_override(quota_id, override_id)
        await self._record_override(Action.QUOTA_OVERRIDE_REMOVED, override, None)

    def _require_reason(self) -> Purpose:
        purpose = self.act.principal.quota_purpose
        if purpose is None:
            message = "the token carries no quota_reason: ask for one with quota_reason (and quota_ticket) set"
            raise Malformed(message, code="quota_reason_required")
        return purpose

    def _judge(self, policy: Policy, proposal: Proposal) -> Refused | None:
        rules = (
            WithinCeilings(policy.ceilings),
            WithinRaiseFactor(policy.max_raise_factor),
            WithinOverrideDuration(policy.override_span),
        )
        verdict = judge(rules, proposal)
        return verdict if isinstance(verdict, Refused) else None

    async def _lock(self, quota_id: str, version: int | None) -> Quota:
        quota = await self.quotas.lock(quota_id)
        if version is not None and version != quota.version:
            raise VersionConflict(f"the quota is at version {quota.version}", version=quota.version)
        return quota

    def _new(self, job_type: str | None, limits: Limits) -> Quota:
        at = self.act.at
        return Quota(
            new_id(), self.act.tenant_id, job_type, limits, paused=False, pause_reason=None, version=1, created_at=at,
            updated_at=at, updated_by=self.act.principal.owner, last_action="created", last_entry_id="",
        )  # fmt: skip

    def _next(self, quota: Quota, action: str, entry_id: str) -> Quota:
        # The act began before it got the lock: another one's later time may already stand there.
        at = max(self.act.at, quota.updated_at)
        return replace(
            quota, version=quota.version + 1, updated_at=at, updated_by=self.act.principal.owner,
            last_action=action, last_entry_id=entry_id,
        )  # fmt: skip

    async def _change(self, action: Action, before: Quota, after: Quota) -> Quota:
        after = self._next(after, action.value.removeprefix("quota."), "")
        after = replace(after, last_entry_id=await self._record(action, before.quota_id, before, after))
        await self.quotas.save(after)
        await self.quotas.remember(before, after)
        return after

    async def _record(self, action: Action, quota_id: str, before: Quota | None, after: Quota | None) -> str:
        entry = self.act.entry(
            action,
            Resource("quota", quota_id),
            family=Family.QUOTA,
            before=before and before.as_json(),
            after=after and after.as_json(),
        )
        return (await self.audit.record(entry)).entry.entry_id

    async def _record_override(self, action: Action, before: Override | None, after: Override | None) -> str:
        override = after or before
        if override is None:
            raise NotFound("there is no such override")
        entry = self.act.entry(
            action,
            Resource("quota", override.quota_id),
            family=Family.QUOTA,
            before=before and _override_json(before),
            after=after and _override_json(after),
        )
        return (await self.audit.record(entry)).entry.entry_id

    async def _refuse(self, refused: Refused, resource: Resource, wanted: Mapping[str, object]) -> None:
        properties = {"code": refused.code, **refused.members}
        entry = self.act.entry(
            Action.QUOTA_REFUSED,
            resource,
            family=Family.QUOTA,
            outcome=Outcome.REFUSED,
            after=wanted,
            properties=properties,
        )
        await self.audit.record(entry)


def _override_json(override: Override) -> dict[str, object]:
    return {
        "override_id": override.override_id,
        "limits": limits_json(override.limits),
        "starts_at": format_time(override.starts_at),
        "until": format_time(override.until),
    }


def _check_override(
    quota: Quota, limits: Mapping[str, Number], begins: datetime, until: datetime, now: datetime
) -> None:
    if until <= now or until <= begins:
        path, message = "until", "must lie after starts_at and in the future"
        raise ValidationFailed(path, message)
    if not any(value > quota.limits.value(name) for name, value in limits.items()):
        path, message = "limits", "an override raises at least one limit; lower a limit with PATCH"
        raise ValidationFailed(path, message)
