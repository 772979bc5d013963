"""Clients made by this process with the code of `jobengine client create`, many for less than one command costs."""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from jobengine.bootstrap import open_plane
from jobengine.cli.clients import _create
from jobengine.settings import read_settings


@dataclass(frozen=True, slots=True)
class Wanted:
    """What stands on the command line of `client create`."""

    name: str
    tenants: Sequence[str]
    roles: Sequence[str]
    owner: str | None = None


def make_clients(environ: Mapping[str, str], wanted: Sequence[Wanted]) -> list[dict[str, Any]]:
    """Make clients on the installation of an environment, and return what the command tells of each."""

    async def work() -> list[dict[str, Any]]:
        async with open_plane(read_settings(environ)) as plane:
            return [await _create(plane, one.name, [*one.tenants], [*one.roles], one.owner) for one in wanted]

    # Somebody may ask from within a loop, which must not be entered again.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work()).result()
