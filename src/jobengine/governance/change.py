"""A change of limits that waits for a second person, as a value."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from jobengine.clock import format_time
from jobengine.quota.model import LIMIT_NAMES, Limits, Number, limits_json

Kind = Literal["create", "adjust", "override"]
Origin = Literal["operator", "request"]


class ChangeStatus(StrEnum):
    """What became of a change; an emergency waited for nobody."""

    PENDING = "pending"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"
    EMERGENCY = "emergency"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaChange:
    """Somebody wants *wanted* in the place of *before*; why stands in the audit entry *entry_id* alone.

    An override has *until*, and *starts_at* unless it is to begin when it is approved.
    """

    change_id: str
    kind: Kind
    origin: Origin
    status: ChangeStatus
    quota_id: str | None
    job_type: str | None
    before: Limits | None
    wanted: Mapping[str, Number]
    requested_by: str
    client_id: str
    requested_at: datetime
    expires_at: datetime
    starts_at: datetime | None = None
    until: datetime | None = None
    entry_id: str = ""
    decided_by: str | None = None
    decided_at: datetime | None = None
    decision_entry_id: str | None = None

    def status_at(self, now: datetime) -> ChangeStatus:
        """Return what it is at *now*: nobody need come by for a change to be too old."""
        if self.status is ChangeStatus.PENDING and now >= self.expires_at:
            return ChangeStatus.EXPIRED
        return self.status

    @property
    def after(self) -> Limits:
        """The limits that it asks for, those it leaves alone included."""
        if self.before is None:
            return Limits(**{name: self.wanted[name] for name in LIMIT_NAMES})  # pyright: ignore[reportArgumentType] - a whole set
        return self.before.changed(self.wanted)

    def as_json(self) -> dict[str, Any]:
        """Return what an audit entry says of the change; words of people stay out."""
        return {
            "change_id": self.change_id,
            "kind": self.kind,
            "quota_id": self.quota_id,
            "job_type": self.job_type,
            "from": None if self.before is None else self.before.as_json(),
            "to": limits_json(self.wanted),
            "starts_at": None if self.starts_at is None else format_time(self.starts_at),
            "until": None if self.until is None else format_time(self.until),
            "requested_by": self.requested_by,
        }
