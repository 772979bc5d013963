"""What can be recorded: a closed list. A name is for ever; a new one also gets its line in docs/ledger.md."""

from enum import StrEnum


class Action(StrEnum):
    """What happened, as ``subject.verb``.

    >>> Action("quota.adjusted") is Action.QUOTA_ADJUSTED
    True
    """

    CREDENTIALS_GRANT = "authority.client_credentials.grant"
    CREDENTIALS_DENY = "authority.client_credentials.deny"
    # Refusals above the limit of one client or address, counted in one entry.
    CREDENTIALS_DENY_SUMMARY = "authority.client_credentials.deny_summary"
    TOKEN_REVOKED = "authority.token_revoked"  # noqa: S105 - an action, not a secret

    QUOTA_CREATED = "quota.created"
    QUOTA_ADJUSTED = "quota.adjusted"
    QUOTA_PAUSED = "quota.paused"
    QUOTA_RESUMED = "quota.resumed"
    QUOTA_DELETED = "quota.deleted"
    QUOTA_REFUSED = "quota.refused"
    QUOTA_EMERGENCY = "quota.emergency"
    QUOTA_OVERRIDE_ADDED = "quota.override_added"
    QUOTA_OVERRIDE_REMOVED = "quota.override_removed"
    QUOTA_CHANGE_REQUESTED = "quota.change_requested"
    QUOTA_CHANGE_APPROVED = "quota.change_approved"
    QUOTA_CHANGE_REJECTED = "quota.change_rejected"
    QUOTA_CHANGE_EXPIRED = "quota.change_expired"

    POLICY_CHANGED = "policy.changed"

    ALLOCATION_CHANGED = "allocation.changed"
    ALLOCATION_APPLIED = "allocation.applied"
    ALLOCATION_DELETED = "allocation.deleted"

    BACKFILL_REQUESTED = "backfill.requested"
    BACKFILL_DUPLICATE_REJECTED = "backfill.duplicate_rejected"
    BACKFILL_PAUSED = "backfill.paused"
    BACKFILL_RESUMED = "backfill.resumed"
    BACKFILL_CANCELED = "backfill.canceled"
    BACKFILL_RETRIED = "backfill.retried"
    BACKFILL_COMPLETED = "backfill.completed"
    BACKFILL_FAILED = "backfill.failed"

    LEASE_FORCED_OUT = "lease.forced_out"

    CLIENT_CREATED = "client.created"
    CLIENT_DISABLED = "client.disabled"
    KEY_ROTATED = "key.rotated"

    AUDIT_EXPORTED = "audit.exported"
    AUDIT_ERASED = "audit.erased"

    LOG_STARTED = "log.started"
    LOG_STOPPED = "log.stopped"
    LOG_HEARTBEAT = "log.heartbeat"
    LOG_ANCHORED = "log.anchored"
    LOG_STUCK = "log.stuck"


class Outcome(StrEnum):
    """How it ended: done, refused by a rule, or broken off by an error."""

    SUCCESS = "success"
    REFUSED = "refused"
    FAILURE = "failure"
