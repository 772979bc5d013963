"""Quotas as the API shows them."""

import msgspec

from jobengine.clock import format_time
from jobengine.quota.model import AllocationShare, Usage
from jobengine.quota.rules import Refused
from jobengine.storage.quota_reading import QuotaReading
from jobengine.web.edge import Refusal
from jobengine.web.limits import LimitsView, show_limits


class UsageView(msgspec.Struct):
    """What is in use now."""

    active: int
    active_backfill: int
    granted_last_hour: int
    tokens: float


class LastChange(msgspec.Struct):
    """The newest change, with the words of whoever made it."""

    action: str
    reason: str | None
    ticket: str | None
    audit_entry_id: str
    at: str


class ShareView(msgspec.Struct):
    """The tenant's part in a pool that several tenants share."""

    capacity: int | None
    strategy: str
    weight: int
    priority: int
    reserved: int
    max_limit: int | None


class QuotaView(msgspec.Struct):
    """A quota."""

    quota_id: str
    tenant_id: str
    job_type: str | None
    limits: LimitsView
    effective_limits: LimitsView
    usage: UsageView
    allocation: ShareView | None
    paused: bool
    pause_reason: str | None
    version: int
    created_at: str
    updated_at: str
    updated_by: str
    last_change: LastChange


def refusal(refused: Refused) -> Refusal:
    """Return the answer to a refused change."""
    return Refusal(refused.code, refused.detail, refused.members)


def usage_view(usage: Usage) -> UsageView:
    """Return what is in use for the wire."""
    return UsageView(usage.active, usage.active_backfill, usage.granted_last_hour, float(round(usage.tokens, 6)))


def quota_view(reading: QuotaReading) -> QuotaView:
    """Return a quota for the wire."""
    quota = reading.quota
    updated_at = format_time(quota.updated_at)
    return QuotaView(
        quota_id=quota.quota_id,
        tenant_id=quota.tenant_id,
        job_type=quota.job_type,
        limits=show_limits(quota.limits),
        effective_limits=show_limits(reading.effective),
        usage=usage_view(reading.usage),
        allocation=None if reading.share is None else _share_view(reading.share),
        paused=quota.paused,
        pause_reason=quota.pause_reason,
        version=quota.version,
        created_at=format_time(quota.created_at),
        updated_at=updated_at,
        updated_by=quota.updated_by,
        last_change=LastChange(quota.last_action, reading.reason, reading.ticket, quota.last_entry_id, updated_at),
    )


def _share_view(share: AllocationShare) -> ShareView:
    return ShareView(share.capacity, share.strategy, share.weight, share.priority, share.reserved, share.max_limit)
