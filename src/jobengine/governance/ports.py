"""What governance needs of storage: pools in the platform's transaction, changes in a tenant's."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from jobengine.governance.apply import Step
from jobengine.governance.change import QuotaChange
from jobengine.governance.model import Allocation, Apply
from jobengine.quota.policy import Policy


@dataclass(frozen=True, slots=True)
class Standing:
    """What a tenant has of a job type now: *max_active* None where it has no quota and default limits hold.

    *overridden* while an override of its slots is in force or to come; *known* unless there is no such tenant.
    """

    tenant_id: str
    known: bool
    quota_id: str | None
    max_active: int | None
    version: int | None
    active: int
    overridden: bool


class Standings(Protocol):
    """Looks at one job type in several tenants at once, without locking anything."""

    async def read(self, job_type: str, tenant_ids: Sequence[str]) -> Sequence[Standing]:
        """Return what each of them has, in no particular order."""
        ...


class AllocationRepository(Protocol):
    """The platform's pools; whatever it is told is kept if and only if the transaction commits."""

    async def policy(self) -> Policy:
        """Return the platform's policy."""
        ...

    async def find(self, job_type: str) -> Allocation | None:
        """Return the pool of *job_type*, and keep others from changing it."""
        ...

    async def save(self, allocation: Allocation) -> None:
        """Store a pool in the place of the one before it."""
        ...

    async def delete(self, job_type: str) -> None:
        """Take a pool away."""
        ...

    async def start(self, allocation: Allocation, apply: Apply, steps: Sequence[Step]) -> Apply:
        """Store what is to be done; from its commit on, standing work does it. Return it with its epoch."""
        ...


class ChangeRepository(Protocol):
    """Changes of one tenant that wait for a second person."""

    async def lock(self, change_id: str) -> QuotaChange:
        """Return a change and keep others from deciding it; raises NotFound."""
        ...

    async def add(self, change: QuotaChange) -> None:
        """Store a change."""
        ...

    async def settle(self, change: QuotaChange) -> None:
        """Store what became of a locked change."""
        ...

    async def count_waiting(self, now: datetime) -> int:
        """Return how many changes wait at *now*."""
        ...
