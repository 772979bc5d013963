"""What the quota core needs of storage, within one tenant's open transaction."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from jobengine.quota.model import AllocationShare, Limits, Override, Quota
from jobengine.quota.policy import Policy


class QuotaRepository(Protocol):
    """Quotas of one tenant; whatever it is told is kept if and only if the transaction commits."""

    async def policy(self) -> Policy:
        """Return the platform's policy."""
        ...

    async def lock(self, quota_id: str) -> Quota:
        """Return the quota and keep others from changing it; raises NotFound."""
        ...

    async def find(self, job_type: str | None) -> Quota | None:
        """Return the quota for *job_type*, locked, None where there is none."""
        ...

    async def has(self, job_type: str | None) -> bool:
        """Tell whether there is a quota for *job_type*; waits for one that is being added."""
        ...

    async def deleted_limits(self, job_type: str | None, since: datetime) -> Limits | None:
        """Return the last limits of a quota for *job_type* that was deleted after *since*."""
        ...

    async def share(self, job_type: str | None) -> AllocationShare | None:
        """Return the tenant's part in the pool of *job_type*, None where no pool names it."""
        ...

    async def add(self, quota: Quota) -> None:
        """Store a new quota; raises Conflict `quota_exists` when another came first."""
        ...

    async def save(self, quota: Quota) -> None:
        """Store the new state of a locked quota."""
        ...

    async def delete(self, quota: Quota) -> None:
        """Take a locked quota out of force; its history stays."""
        ...

    async def remember(self, before: Quota | None, after: Quota, *, deleted: bool = False) -> None:
        """Add one change to the quota's history."""
        ...

    async def overrides(self, quota_id: str) -> Sequence[Override]:
        """Return the overrides that were neither removed nor are over."""
        ...

    async def add_override(self, override: Override) -> None:
        """Store an override."""
        ...

    async def remove_override(self, quota_id: str, override_id: str) -> Override:
        """End an override now; raises NotFound."""
        ...
