"""The platform's policy: everybody may read it, a governor may change it."""

from dataclasses import replace
from decimal import Decimal
from typing import Annotated, Any

import msgspec
from litestar import Response, Router, get, put

from jobengine.audit.act import Act, Family
from jobengine.audit.actions import Action
from jobengine.audit.model import Resource
from jobengine.clock import parse_duration
from jobengine.errors import Malformed, ValidationFailed, VersionConflict
from jobengine.quota.policy import Policy
from jobengine.storage.audit import PostgresAudit
from jobengine.storage.database import Transaction
from jobengine.storage.quota import find_policy, lock_policy, save_policy
from jobengine.tenancy.model import PLATFORM
from jobengine.web.edge import Answer, Edge, Refusal, needs
from jobengine.web.limits import LimitsView, SomeLimits, read_some_limits, show_limits

Factor = Annotated[float, msgspec.Meta(ge=1, le=10**6)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class PolicyChange(msgspec.Struct, forbid_unknown_fields=True):
    """Members of the policy to change; those left out stay. *version* is a precondition like ``If-Match``."""

    ceilings: SomeLimits | msgspec.UnsetType = msgspec.UNSET
    default_limits: SomeLimits | msgspec.UnsetType = msgspec.UNSET
    max_raise_factor: Factor | msgspec.UnsetType = msgspec.UNSET
    max_override_duration: str | msgspec.UnsetType = msgspec.UNSET
    backfill_share: Share | msgspec.UnsetType = msgspec.UNSET
    approval_above: Factor | msgspec.UnsetType | None = msgspec.UNSET
    approval_expires: str | msgspec.UnsetType = msgspec.UNSET
    version: int | msgspec.UnsetType = msgspec.UNSET


class PolicyView(msgspec.Struct):
    """The policy."""

    ceilings: LimitsView
    default_limits: LimitsView
    max_raise_factor: float
    max_override_duration: str
    backfill_share: float
    approval_above: float | None
    approval_expires: str
    version: int


@get("/policy", opt=needs("orch:read"))
async def get_policy(edge: Edge) -> Response[PolicyView]:
    """Show the platform's policy."""

    async def work(tx: Transaction) -> Answer:
        return _answer(await find_policy(tx))

    return await edge.read(work)


@put("/policy", opt=needs("orch:govern"))
async def put_policy(edge: Edge, data: PolicyChange) -> Response[PolicyView]:
    """Change some members of the platform's policy."""
    wanted = edge.if_match()

    async def work(tx: Transaction, act: Act) -> Answer | Refusal:
        if not act.principal.intents.get("quota_reason"):
            raise Malformed("the token carries no quota_reason", code="quota_reason_required")
        before = await lock_policy(tx)
        expected = before.version if data.version is msgspec.UNSET else data.version
        if expected != before.version or wanted not in (None, before.version):
            raise VersionConflict(f"the policy is at version {before.version}", version=before.version)
        changed = _changed(before, data)
        _check(changed)
        after = await save_policy(tx, changed)
        await PostgresAudit(tx).record(
            act.entry(
                Action.POLICY_CHANGED,
                Resource("policy", "platform"),
                family=Family.QUOTA,
                before=before.as_json(),
                after=after.as_json(),
            )
        )
        return _answer(after)

    return await edge.change(work, tenant_id=PLATFORM)


def _changed(policy: Policy, data: PolicyChange) -> Policy:
    given: dict[str, Any] = {
        name: value for name in data.__struct_fields__ if (value := getattr(data, name)) is not msgspec.UNSET
    }
    given.pop("version", None)
    for name in ("ceilings", "default_limits"):
        if name in given:
            given[name] = getattr(policy, name).changed(read_some_limits(given[name], path=name, empty=True))
    for name in ("max_raise_factor", "backfill_share", "approval_above"):
        if given.get(name) is not None:
            given[name] = Decimal(str(given[name]))
    for name in ("max_override_duration", "approval_expires"):
        if name in given:
            _check_duration(name, given[name])
    return replace(policy, **given)


def _check_duration(name: str, text: str) -> None:
    try:
        span = parse_duration(text)
    except (ValueError, OverflowError) as error:
        raise ValidationFailed(name, str(error)) from None
    if not span:
        raise ValidationFailed(name, "must be longer than nothing")


def _check(policy: Policy) -> None:
    for name, value in policy.default_limits.as_json().items():
        if value > policy.ceilings.as_json()[name]:
            raise ValidationFailed(f"default_limits.{name}", "is above its own ceiling")


def _answer(policy: Policy) -> Answer:
    shown: dict[str, Any] = policy.as_json() | {
        "ceilings": show_limits(policy.ceilings),
        "default_limits": show_limits(policy.default_limits),
        "version": policy.version,
    }
    return Answer(200, PolicyView(**shown), {"ETag": f'"{policy.version}"'})


policy = Router("/", route_handlers=[get_policy, put_policy], tags=["policy"])
