"""What processes of handlers have in common: what they are told of ours, and how they are ended."""

import os
import signal
from asyncio.subprocess import Process
from collections.abc import Mapping
from contextlib import suppress

# Settings may hold the database's password and name the master key; a handler has no business with either, nor with
# the folder in which the workers of a supervisor count.
_OURS = ("JOBENGINE_", "PGPASS", "PROMETHEUS_MULTIPROC_DIR")


def handler_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what a handler may see of the environment of the service.

    >>> handler_environment({"PATH": "/bin", "JOBENGINE_DATABASE_URL": "postgresql://…", "PGPASSWORD": "…"})
    {'PATH': '/bin'}
    """
    return {name: value for name, value in environ.items() if not name.startswith(_OURS)}


async def kill(process: Process) -> None:
    """End a process that leads a session, and the processes it started there."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
