"""Pools that tenants share: write them down, plan what would become of each tenant, put the plan into effect."""

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from json import dumps

from jobengine.audit.act import Act, Family
from jobengine.audit.actions import Action, Outcome
from jobengine.audit.model import Resource
from jobengine.audit.ports import AuditIntake
from jobengine.errors import Conflict, Malformed, NotFound, ValidationFailed, VersionConflict
from jobengine.governance.apply import Step
from jobengine.governance.model import Allocation, AllocationStatus, Apply, Pool, StrategyName
from jobengine.governance.ports import AllocationRepository, Standing, Standings
from jobengine.governance.strategies import Impossible, share_out
from jobengine.quota.policy import Policy
from jobengine.quota.rules import Refused


@dataclass(frozen=True, slots=True)
class PlannedTenant:
    """What one tenant has, would get, and uses now."""

    tenant_id: str
    quota_id: str | None
    version: int | None
    from_active: int
    to_active: int
    active: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What an apply would do now; *plan_token* makes it do exactly this or nothing."""

    plan_token: str
    tenants: tuple[PlannedTenant, ...]
    allocated: int
    unallocated: int

    @property
    def from_active(self) -> int:
        """What the tenants have together now."""
        return sum(tenant.from_active for tenant in self.tenants)


@dataclass(frozen=True, slots=True)
class AllocationManager:
    """Every way to change a pool, in one transaction of the platform; the tenants' own come after it, one by one."""

    allocations: AllocationRepository
    standings: Standings
    audit: AuditIntake
    act: Act
    plan_key: bytes = field(repr=False)

    async def put(self, pool: Pool, version: int | None) -> Allocation | Refused:
        """Write a pool down; nothing changes for a tenant but that its slots are raised by applying only.

        Raises `allocation_impossible`, VersionConflict, Conflict while it is being applied, and ValidationFailed for
        tenants that do not exist.
        """
        self._require_reason()
        before = await self.allocations.find(pool.job_type)
        self._check_version(before, version)
        _check_idle(before)
        policy = await self.allocations.policy()
        _shares(pool, policy)
        await self._check_tenants(pool)
        if before and (refused := self._judge_raise(before.pool, pool, policy)):
            await self._refuse(refused, pool)
            return refused
        entry_id = await self._record(Action.ALLOCATION_CHANGED, pool.job_type, before, pool)
        after = self._next(before, pool, entry_id)
        await self.allocations.save(after)
        return after

    async def delete(self, job_type: str, version: int | None) -> None:
        """Take a pool away; the limits of its tenants stay as they are. Raises NotFound."""
        self._require_reason()
        found = await self._get(job_type)
        self._check_version(found, version)
        _check_idle(found)
        await self._record(Action.ALLOCATION_DELETED, job_type, found, None)
        await self.allocations.delete(job_type)

    async def plan(self, job_type: str) -> Plan:
        """Return what applying would do now, and change nothing; raises NotFound and `allocation_impossible`."""
        return await self._plan(await self._get(job_type))

    async def apply(self, job_type: str, plan_token: str) -> Allocation | Refused:
        """Have the plan put into effect; raises NotFound, and Conflict `plan_changed` when it is not the plan any more.

        A sum beyond the policy's `approval_above` times what the tenants have now needs somebody else than who wrote
        the pool. The same call while it is under way changes nothing.
        """
        self._require_reason()
        found = await self._get(job_type)
        if found.status is AllocationStatus.APPLYING and found.apply and found.apply.plan_token == plan_token:
            return found
        _check_idle(found)
        plan = await self._plan(found)
        if not hmac.compare_digest(plan.plan_token.encode(), plan_token.encode()):
            raise Conflict("the plan is no longer what was planned; plan again", code="plan_changed")
        if refused := self._judge_person(found, plan, await self.allocations.policy()):
            await self._refuse(refused, found.pool)
            return refused
        steps = [Step(t.tenant_id, t.quota_id, t.from_active, t.to_active) for t in plan.tenants]
        apply = Apply(
            0, plan_token, self.act.at, self.act.principal.owner, await self._record_apply(found, plan), len(steps), 0
        )
        started = await self.allocations.start(found, apply, steps)
        return replace(found, status=AllocationStatus.APPLYING, apply=started)

    async def _plan(self, allocation: Allocation) -> Plan:
        pool, policy = allocation.pool, await self.allocations.policy()
        shares = _shares(pool, policy)
        found = await self.standings.read(pool.job_type, [member.tenant_id for member in pool.members])
        overridden = sorted(standing.tenant_id for standing in found if standing.overridden)
        if overridden:
            raise _impossible(f"an override raises the slots of {overridden[0]}; end it first")
        planned = sorted(
            (_planned(standing, shares[standing.tenant_id], policy) for standing in found), key=lambda t: t.tenant_id
        )
        allocated = sum(shares.values())
        left = 0 if pool.strategy is StrategyName.UNLIMITED else (pool.capacity or 0) - allocated
        return Plan(self._token(allocation, planned), tuple(planned), allocated, left)

    def _token(self, allocation: Allocation, planned: Sequence[PlannedTenant]) -> str:
        seen = [(t.tenant_id, t.quota_id, t.version, t.from_active, t.to_active) for t in planned]
        bound = dumps([allocation.pool.job_type, allocation.version, allocation.entry_id, seen]).encode()
        return urlsafe_b64encode(hmac.digest(self.plan_key, b"allocation\n" + bound, "sha256")).decode().rstrip("=")

    async def _get(self, job_type: str) -> Allocation:
        found = await self.allocations.find(job_type)
        if found is None:
            raise NotFound("there is no allocation for this job type")
        return found

    async def _check_tenants(self, pool: Pool) -> None:
        found = await self.standings.read(pool.job_type, [member.tenant_id for member in pool.members])
        unknown = {standing.tenant_id for standing in found if not standing.known}
        for place, member in enumerate(pool.members):
            if member.tenant_id in unknown:
                path, message = f"tenants[{place}].tenant_id", "there is no such tenant"
                raise ValidationFailed(path, message)

    def _require_reason(self) -> None:
        if self.act.principal.quota_purpose is None:
            raise Malformed("the token carries no quota_reason", code="quota_reason_required")

    def _check_version(self, found: Allocation | None, version: int | None) -> None:
        now = found.version if found else 0
        if version not in {None, now}:
            raise VersionConflict(f"the allocation is at version {now}", version=now)

    def _judge_raise(self, before: Pool, after: Pool, policy: Policy) -> Refused | None:
        ceiling, factor = policy.ceilings.max_active, policy.max_raise_factor
        most, wanted = factor * before.size(ceiling), after.size(ceiling)
        if wanted <= max(most, before.size(ceiling)):
            return None
        detail = f"capacity: {wanted} is above {factor} times what it was"
        members = {"limit": "capacity", "maximum": int(most), "requested": wanted}
        return Refused("policy_raise_too_large", detail, members)

    def _judge_person(self, allocation: Allocation, plan: Plan, policy: Policy) -> Refused | None:
        above = policy.approval_above
        if above is None or plan.allocated <= above * plan.from_active or plan.allocated <= plan.from_active:
            return None
        if self.act.principal.owner != allocation.updated_by:
            return None
        detail = (
            f"{plan.allocated} slots are over {above} times the present {plan.from_active}: a second person applies"
        )
        return Refused("same_person", detail)

    def _next(self, before: Allocation | None, pool: Pool, entry_id: str) -> Allocation:
        at, by = self.act.at, self.act.principal.owner
        if before is None:
            return Allocation(pool, AllocationStatus.DRAFT, 1, at, at, by, entry_id)
        return replace(
            before, pool=pool, status=AllocationStatus.DRAFT, version=before.version + 1, updated_at=at, updated_by=by,
            entry_id=entry_id,
        )  # fmt: skip

    async def _record(self, action: Action, job_type: str, before: Allocation | None, after: Pool | None) -> str:
        entry = self.act.entry(
            action,
            Resource("allocation", job_type),
            family=Family.QUOTA,
            before=before and before.pool.as_json(),
            after=after and after.as_json(),
        )
        return (await self.audit.record(entry)).entry.entry_id

    async def _record_apply(self, allocation: Allocation, plan: Plan) -> str:
        def slots(name: str) -> dict[str, object]:
            return {tenant.tenant_id: getattr(tenant, name) for tenant in plan.tenants}

        entry = self.act.entry(
            Action.ALLOCATION_APPLIED,
            Resource("allocation", allocation.pool.job_type),
            family=Family.QUOTA,
            before={"max_active": slots("from_active")},
            after={"max_active": slots("to_active")},
            properties={"version": allocation.version, "allocated": plan.allocated, "unallocated": plan.unallocated},
        )
        return (await self.audit.record(entry)).entry.entry_id

    async def _refuse(self, refused: Refused, pool: Pool) -> None:
        entry = self.act.entry(
            Action.QUOTA_REFUSED,
            Resource("allocation", pool.job_type),
            family=Family.QUOTA,
            outcome=Outcome.REFUSED,
            after=pool.as_json(),
            properties={"code": refused.code, **refused.members},
        )
        await self.audit.record(entry)


def _planned(standing: Standing, share: int, policy: Policy) -> PlannedTenant:
    # Where there is no quota, the default limits hold, and are what is raised or lowered.
    now = policy.default_limits.max_active if standing.max_active is None else standing.max_active
    return PlannedTenant(standing.tenant_id, standing.quota_id, standing.version, now, share, standing.active)


def _shares(pool: Pool, policy: Policy) -> dict[str, int]:
    found = share_out(pool, policy.ceilings.max_active)
    if isinstance(found, Impossible):
        raise _impossible(found.detail)
    return dict(found)


def _impossible(detail: str) -> Malformed:
    return Malformed(detail, code="allocation_impossible")


def _check_idle(found: Allocation | None) -> None:
    if found is not None and found.status is AllocationStatus.APPLYING:
        raise Conflict("the allocation is being applied; wait until it has ended")
