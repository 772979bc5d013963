"""The Python client of admissions: ask for slots, keep them while the work runs, give them back.

    from jobengine.client import Client

    with Client(url, client_id, client_secret) as client:
        with client.lease("scan", job_id="scan-2026-03-01", wait=60) as lease:
            for part in work:
                lease.check()          # raises LeaseLost when the slot is no longer ours
                store(part, fence=lease.grant.fencing_token)

It imports nothing of the service; httpx2 only when a client is made, asyncio only when `AsyncClient` is asked for.
"""

from typing import TYPE_CHECKING, Any

from jobengine.client.errors import (
    AuthError,
    Blocking,
    ClientError,
    Denied,
    JobIdConflict,
    LeaseLost,
    Overloaded,
    Refused,
    Unavailable,
)
from jobengine.client.grant import Grant
from jobengine.client.sync import Client, Lease

if TYPE_CHECKING:
    from jobengine.client.aio import AsyncClient, AsyncLease

__all__ = [
    "AsyncClient",
    "AsyncLease",
    "AuthError",
    "Blocking",
    "Client",
    "ClientError",
    "Denied",
    "Grant",
    "JobIdConflict",
    "Lease",
    "LeaseLost",
    "Overloaded",
    "Refused",
    "Unavailable",
]


def __getattr__(name: str) -> Any:
    # asyncio costs more than all the rest: only who asks for it pays.
    if name in {"AsyncClient", "AsyncLease"}:
        from jobengine.client import aio  # noqa: PLC0415 - it imports asyncio

        return getattr(aio, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
