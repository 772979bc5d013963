"""Changing quotas: judge by the policy's rules, then write quota, history and audit entry in one transaction."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from jobengine.audit.act import Act, Family
from jobengine.audit.actions import Action, Outcome
from jobengine.audit.model import Resource
from jobengine.audit.ports import AuditIntake
from jobengine.clock import format_time, parse_duration
from jobengine.errors import Conflict, Malformed, NotFound, ValidationFailed, VersionConflict
from jobengine.ids import new_id
from jobengine.quota.model import DRAIN_GRACE, LIMIT_NAMES, Limits, Number, Override, Quota, limits_json
from jobengine.quota.policy import Policy
from jobengine.quota.ports import QuotaRepository
from jobengine.quota.rules import (
    Proposal,
    Refused,
    Rule,
    WithinAllocation,
    WithinCeilings,
    WithinOverrideDuration,
    WithinRaiseFactor,
    judge,
    needs_second_person,
)
from jobengine.tenancy.model import Purpose

DELETED_REMEMBERED = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class OverrideSpan:
    """How long an override is to hold; without *starts_at* it begins at once."""

    starts_at: datetime | None
    until: datetime


@dataclass(frozen=True, slots=True)
class Waits:
    """A raise that needs a second person: *wanted* in the place of *before*. Nothing has changed yet.

    It waits no longer than *expires*; *quota_id* is None for a quota that is to be made.
    """

    kind: Literal["create", "adjust", "override"]
    quota_id: str | None
    job_type: str | None
    before: Limits | None
    wanted: Mapping[str, Number]
    expires: timedelta
    span: OverrideSpan | None = None


@dataclass(frozen=True, slots=True)
class QuotaManager:
    """Every way to change a quota; each method does all of its work in the transaction of *quotas* and *audit*.

    All raise `quota_reason_required` when the token says no valid reason, before anything is looked up. What a second
    person has *cleared* waits no more, and its words stand in the properties of the entries.
    """

    quotas: QuotaRepository
    audit: AuditIntake
    act: Act
    cleared: Mapping[str, object] | None = None

    async def create(self, job_type: str | None, limits: Limits) -> Quota | Refused | Waits:
        """Limit *job_type* (None: the whole tenant); raises Conflict `quota_exists`.

        It is a raise from the limits of a quota deleted within a day, or else from the default limits.
        """
        self._require_reason()
        if await self.quotas.has(job_type):
            raise Conflict("there is already a quota for this job type", code="quota_exists")
        policy = await self.quotas.policy()
        deleted = await self.quotas.deleted_limits(job_type, self.act.at - DELETED_REMEMBERED)
        wanted = {name: limits.value(name) for name in LIMIT_NAMES}
        most = policy.default_limits.max_active
        if refused := await self._judge(policy, job_type, most, Proposal(wanted, deleted)):
            await self._refuse(
                refused, Resource("job_type", job_type or "*"), {"job_type": job_type, "limits": limits.as_json()}
            )
            return refused
        base = deleted or (None if job_type is None else policy.default_limits)
        if self._waits(policy, Proposal(wanted, base)):
            return Waits("create", None, job_type, base, wanted, parse_duration(policy.approval_expires))
        return await self._add(self._new(job_type, limits))

    async def _add(self, quota: Quota) -> Quota:
        entry_id = await self._record(Action.QUOTA_CREATED, quota.quota_id, None, quota)
        quota = replace(quota, last_entry_id=entry_id)
        await self.quotas.add(quota)
        await self.quotas.remember(None, quota)
        return quota

    async def adjust(
        self,
        quota_id: str,
        changes: Mapping[str, Number],
        version: int | None,
        *,
        emergency: bool = False,
        drain: bool = False,
    ) -> Quota | Refused | Waits:
        """Change some limits; raises NotFound, or VersionConflict when *version* is not the stored one.

        An *emergency* waits for nobody, is audited under its own name and needs a ticket: raises ValidationFailed
        without one. With *drain* leases above the limit are soon not renewed any more.
        """
        purpose = self._require_reason()
        if emergency and purpose.ticket is None:
            path, message = "emergency", "needs a ticket: ask for a token with quota_reason and quota_ticket"
            raise ValidationFailed(path, message)
        quota = await self._lock(quota_id, version)
        policy = await self.quotas.policy()
        proposal = Proposal(changes, quota.limits)
        if refused := await self._judge(policy, quota.job_type, quota.limits.max_active, proposal):
            await self._refuse(refused, Resource("quota", quota_id), {"limits": limits_json(changes)})
            return refused
        if not emergency and self._waits(policy, proposal):
            expires = parse_duration(policy.approval_expires)
            return Waits("adjust", quota_id, quota.job_type, quota.limits, changes, expires)
        action = Action.QUOTA_EMERGENCY if emergency else Action.QUOTA_ADJUSTED
        drain_after = self.act.at + DRAIN_GRACE if drain else None
        after = replace(quota, limits=quota.limits.changed(changes), drain_after=drain_after)
        return await self._change(action, quota, after)

    async def ask(self, job_type: str | None, limits: Mapping[str, Number], until: datetime | None) -> Waits | Refused:
        """Judge what a tenant asks for itself, without a quota's reason and without changing anything.

        Raises ValidationFailed where nothing would be raised, and where there is nothing to raise.
        """
        policy = await self.quotas.policy()
        quota = await self.quotas.find(job_type)
        base = quota.limits if quota else policy.default_limits
        if quota is None and job_type is None:
            path, message = "job_type", "nothing limits the tenant as a whole"
            raise ValidationFailed(path, message)
        if until is not None:
            if quota is None:
                path, message = "until", "there is no quota to raise for a while; ask for one without until"
                raise ValidationFailed(path, message)
            _check_override(quota, limits, self.act.at, until, self.act.at)
        elif not any(value > base.value(name) for name, value in limits.items()):
            path, message = "limits", "a request raises at least one limit"
            raise ValidationFailed(path, message)
        lasts = None if until is None else until - self.act.at
        if refused := await self._judge(policy, job_type, base.max_active, Proposal(limits, base, lasts)):
            return refused
        expires = parse_duration(policy.approval_expires)
        span = None if until is None else OverrideSpan(None, until)
        kind = "create" if quota is None else "adjust" if until is None else "override"
        return Waits(kind, quota and quota.quota_id, job_type, base, limits, expires, span)

    async def allocate(self, job_type: str, quota: Quota | None, max_active: int) -> Quota:
        """Give *quota*, which the caller has locked, its share of a pool; None makes one with the default limits.

        Raise and ceiling were judged on the pool.
        """
        share = {"max_active": max_active}
        if quota is None:
            policy = await self.quotas.policy()
            return await self._add(self._new(job_type, policy.default_limits.changed(share)))
        return await self._change(Action.QUOTA_ADJUSTED, quota, replace(quota, limits=quota.limits.changed(share)))

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

    async def delete(self, quota_id: str, version: int | None) -> Refused | None:
        """Take the quota away; the policy's default limits hold for its job type then."""
        self._require_reason()
        quota = await self._lock(quota_id, version)
        policy = await self.quotas.policy()
        then = {"max_active": policy.default_limits.max_active}
        rules = await self._allocated(quota.job_type, quota.limits.max_active)
        if isinstance(refused := judge(rules, Proposal(then, None)), Refused):
            await self._refuse(refused, Resource("quota", quota_id), {"limits": then})
            return refused
        entry_id = await self._record(Action.QUOTA_DELETED, quota_id, quota, None)
        gone = self._next(quota, "deleted", entry_id)
        await self.quotas.delete(gone)
        await self.quotas.remember(quota, gone, deleted=True)
        return None

    async def add_override(
        self, quota_id: str, limits: Mapping[str, Number], span: OverrideSpan, version: int | None
    ) -> Override | Refused | Waits:
        """Raise some limits for a while; raises ValidationFailed for spans and limits that raise nothing."""
        self._require_reason()
        quota = await self._lock(quota_id, version)
        begins, until = span.starts_at or self.act.at, span.until
        _check_override(quota, limits, begins, until, self.act.at)
        policy = await self.quotas.policy()
        proposal = Proposal(limits, quota.limits, until - begins)
        if refused := await self._judge(policy, quota.job_type, quota.limits.max_active, proposal):
            await self._refuse(refused, Resource("quota", quota_id), {"limits": limits_json(limits)})
            return refused
        if self._waits(policy, proposal):
            expires = parse_duration(policy.approval_expires)
            return Waits("override", quota_id, quota.job_type, quota.limits, limits, expires, span)
        return await self._override(quota_id, limits, begins, until)

    async def _override(
        self, quota_id: str, limits: Mapping[str, Number], begins: datetime, until: datetime
    ) -> Override:
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

    async def _judge(self, policy: Policy, job_type: str | None, most: int, proposal: Proposal) -> Refused | None:
        rules: list[Rule] = [
            WithinCeilings(policy.ceilings),
            WithinRaiseFactor(policy.max_raise_factor),
            WithinOverrideDuration(policy.override_span),
            *await self._allocated(job_type, most),
        ]
        verdict = judge(rules, proposal)
        return verdict if isinstance(verdict, Refused) else None

    async def _allocated(self, job_type: str | None, most: int) -> list[WithinAllocation]:
        return [] if await self.quotas.share(job_type) is None else [WithinAllocation(most)]

    def _waits(self, policy: Policy, proposal: Proposal) -> bool:
        return self.cleared is None and needs_second_person(policy.approval_above, proposal)

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
            properties=self.cleared,
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
            properties=self.cleared,
        )
        return (await self.audit.record(entry)).entry.entry_id

    async def _refuse(self, refused: Refused, resource: Resource, wanted: Mapping[str, object]) -> None:
        properties = {"code": refused.code, **refused.members, **(self.cleared or {})}
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
