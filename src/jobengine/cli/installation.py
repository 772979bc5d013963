"""Commands that work on the database itself: the opened plane, and who the operator is."""

import asyncio
import os
import pwd
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

from jobengine.audit.actions import Action, Outcome
from jobengine.audit.model import Actor, AuditEntry, Resource
from jobengine.bootstrap import Plane, open_plane
from jobengine.cli.call import Call
from jobengine.cli.exits import CommandFailed, Exit
from jobengine.errors import JobengineError, Unavailable
from jobengine.ids import new_id
from jobengine.settings import Settings, SettingsError, read_settings
from jobengine.storage.audit import PostgresAudit
from jobengine.storage.database import Transaction
from jobengine.tenancy.model import PLATFORM

__all__ = ["PLATFORM", "Plane", "opened", "record", "settings_of", "with_plane"]

_Found = TypeVar("_Found")


def settings_of(environ: Mapping[str, str]) -> Settings:
    """Read the settings; raises CommandFailed naming the one that is wrong."""
    try:
        return read_settings(environ)
    except SettingsError as error:
        raise _bad_setting(error) from None


@asynccontextmanager
async def opened(settings: Settings, *, serving: bool = False) -> AsyncGenerator[Plane]:
    """Open the plane; whatever keeps it from opening becomes one sentence."""
    async with AsyncExitStack() as stack:
        try:
            plane = await stack.enter_async_context(open_plane(settings, serving=serving))
        except SettingsError as error:
            raise _bad_setting(error) from None
        except JobengineError:
            raise
        except OSError as error:
            raise CommandFailed(f"{error.filename}: {error.strerror}", Exit.ERROR) from None
        except Exception as error:
            # The driver's errors have no name up here; a refused connection or password is told like any other.
            raise Unavailable(f"the database cannot be used: {' '.join(str(error).split())}") from error
        yield plane


def with_plane(call: Call, work: Callable[[Plane], Awaitable[_Found]]) -> _Found:
    """Do *work* with the plane of the call's environment, starting the embedded database if nobody has."""

    async def run() -> _Found:
        async with opened(settings_of(call.environ)) as plane:
            return await work(plane)

    return asyncio.run(run())


async def record(tx: Transaction, action: Action, resource: Resource, after: Mapping[str, object] | None) -> None:
    """Write into the platform's log that this machine's user did *action*."""
    entry = AuditEntry(
        entry_id=new_id(),
        tenant_id=None,
        occurred_at=tx.now,
        action=action,
        actor=Actor("operator", operator()),
        outcome=Outcome.SUCCESS,
        resource=resource,
        after=after,
        trace_id=secrets.token_hex(16),
    )
    await PostgresAudit(tx).record(entry)


def operator() -> str:
    """Return the name of the user who runs this process, as the system knows it and not as the environment says."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid:{os.getuid()}"


def _bad_setting(error: SettingsError) -> CommandFailed:
    return CommandFailed(str(error), Exit.USAGE, hint="see docs/operations.md for the settings")
