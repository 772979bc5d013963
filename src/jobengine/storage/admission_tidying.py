"""Keeping admission's tables as small as what may still be asked for: leases for an hour, the rolling hour itself."""

from typing import Final

from jobengine.storage.admission import open_desk
from jobengine.storage.database import Database

MOST_LEASES: Final = 5_000
"""Leases forgotten in one transaction: some tens of milliseconds."""
MOST_ROUNDS: Final = 200
MOST_TENANTS: Final = 500
MOST_ACCOUNTS: Final = 1_000


async def tidy_admissions(database: Database) -> None:
    """Settle tenants that nobody asks for any more, and forget leases that ended more than an hour ago."""
    async with database.system() as tx:
        idle = await tx.all("system_idle_admissions", most=MOST_TENANTS)
    for row in idle:
        async with database.transaction(row["tenant_id"]) as tx:
            stale = await tx.all("admission_stale_accounts", most=MOST_ACCOUNTS)
            # To open a desk is to let go what is over, in one step with the sums.
            await open_desk(tx, [found["account"] for found in stale])
    for _ in range(MOST_ROUNDS):
        async with database.system() as tx:
            if await tx.run("system_prune_leases", most=MOST_LEASES) < MOST_LEASES:
                return
