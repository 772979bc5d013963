"""What the core needs of a place that keeps entries."""

from typing import Protocol

from jobengine.audit.model import AuditEntry, SealedEntry


class AuditIntake(Protocol):
    """Takes entries inside the business transaction."""

    async def record(self, entry: AuditEntry) -> SealedEntry:
        """Seal and store *entry*; it is in the log if and only if the open transaction commits."""
        ...
