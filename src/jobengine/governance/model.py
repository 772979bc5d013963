"""Allocations as values: a pool of slots for one job type, and the tenants that share it."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

MOST_MEMBERS = 1_000


class StrategyName(StrEnum):
    """How a pool is shared."""

    UNLIMITED = "unlimited"
    PROPORTIONAL = "proportional"
    PRIORITY = "priority"
    RESERVED = "reserved"
    MAX_LIMIT = "max_limit"


@dataclass(frozen=True, slots=True)
class Member:
    """A tenant in a pool: its part by *weight*, its turn by *priority*; at least *reserved*, at most *max_limit*."""

    tenant_id: str
    weight: int = 1
    priority: int = 0
    reserved: int = 0
    max_limit: int | None = None
    demand: int | None = None

    def most(self, ceiling: int) -> int:
        """Return the largest share that it may get under a *ceiling*."""
        return ceiling if self.max_limit is None else min(ceiling, self.max_limit)

    def as_json(self) -> dict[str, Any]:
        """Return the member as it is sent, shown and audited."""
        return {
            "tenant_id": self.tenant_id,
            "weight": self.weight,
            "priority": self.priority,
            "reserved": self.reserved,
            "max_limit": self.max_limit,
            "demand": self.demand,
        }


@dataclass(frozen=True, slots=True)
class Pool:
    """What is to be shared and how; *capacity* is None only where nothing is bounded: `unlimited`."""

    job_type: str
    capacity: int | None
    strategy: StrategyName
    members: tuple[Member, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the pool as it is audited."""
        return {
            "job_type": self.job_type,
            "capacity": self.capacity,
            "strategy": self.strategy.value,
            "tenants": [member.as_json() for member in self.members],
        }

    def size(self, ceiling: int) -> int:
        """Return how many slots the pool may give away under a *ceiling* for each member."""
        return ceiling * len(self.members) if self.capacity is None else self.capacity


class AllocationStatus(StrEnum):
    """Where a pool stands: not yet in force as it is written, on its way, in force, or broken off."""

    DRAFT = "draft"
    APPLYING = "applying"
    APPLIED = "applied"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Apply:
    """The last time that a pool was put into effect; *done* of its *total* tenants have their share.

    *stopped_by* names the tenant whose quota was no longer what the plan had seen.
    """

    epoch: int
    plan_token: str
    started_at: datetime
    started_by: str
    entry_id: str
    total: int
    done: int
    ended_at: datetime | None = None
    stopped_by: str | None = None


@dataclass(frozen=True, slots=True)
class Allocation:
    """A pool as it is stored."""

    pool: Pool
    status: AllocationStatus
    version: int
    created_at: datetime
    updated_at: datetime
    updated_by: str
    entry_id: str
    apply: Apply | None = None
