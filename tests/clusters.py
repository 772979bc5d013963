"""A migrated database that is made once for a whole run of tests and then copied, so that no start has to make it.

Tests that are about a first start begin without it.
"""

import asyncio
import fcntl
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jobengine.storage.embedded import EmbeddedPostgres
from jobengine.storage.migrator import migrate

_HOME = "JOBENGINE_TEST_CLUSTERS"


def keep_pattern_in(folder: Path) -> None:
    """Say where the pattern is kept; all processes of a run name the same folder."""
    os.environ[_HOME] = str(folder)


def furnish(data_dir: Path) -> None:
    """Put a copy of the pattern into a data folder; nothing else of an installation is there, no key and no tenant."""
    if (home := os.environ.get(_HOME)) is None:
        return
    pattern = _pattern(Path(home))
    data_dir.mkdir(0o700, parents=True)
    subprocess.run(["cp", "-a", "--reflink=auto", pattern, data_dir / "pg"], check=True)


def _pattern(home: Path) -> Path:
    """Return the pattern; the first process of a run that asks makes it, and the others wait for it."""
    made = home / "pattern" / "pg"
    with (home / "pattern.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            draft = home / "pattern.new"
            # Somebody may ask from within a loop, which must not be entered again.
            with ThreadPoolExecutor(1) as thread:
                thread.submit(asyncio.run, _make(draft)).result()
            draft.rename(home / "pattern")
    return made


async def _make(data_dir: Path) -> None:
    async with EmbeddedPostgres(data_dir) as conninfo:
        migrate(conninfo, conninfo)
