"""One real server for most tests, with clients made on its database; a caller has a tenant of its own."""

import asyncio
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from secrets import token_hex

import httpx2
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from tests.acceptance.callers import Caller
from tests.acceptance.serving import EVERY_ROLE, Credentials, Installation, Server, new_tenants, serving
from tests.factories import forge_token
from tests.registering import Wanted

from jobengine.bootstrap import Plane, open_plane
from jobengine.settings import read_settings

# A program of its own, which a server started under another clock loads.
collect_ignore = ["stepped_clock"]
POOL = 80
FAULT = re.compile(r'"level": ?"(error|critical)"|Traceback|eyJ[\w-]{8}|jes_')

Forge = Callable[..., str]


@dataclass(frozen=True, slots=True)
class Clients:
    """Two clients of different owners with many tenants each, a governor, and the tenants nobody has used yet."""

    ours: Credentials
    theirs: Credentials
    governor: Credentials
    fresh: Iterator[str]
    fresh_theirs: Iterator[str]


@pytest.fixture(scope="session")
def http() -> Iterator[httpx2.Client]:
    """A client that keeps its connections; no proxy of the environment stands between it and this machine."""
    with httpx2.Client(trust_env=False, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def module_database() -> Iterator[dict[str, str]]:
    """The same for an installation of a module's own."""
    with outside_database() as found:
        yield found


@pytest.fixture(scope="package")
def database() -> Iterator[dict[str, str]]:
    """The setting that names a database of somebody else's server, where JOBENGINE_TEST_DATABASE_URL names one."""
    with outside_database() as found:
        yield found


@contextmanager
def outside_database() -> Iterator[dict[str, str]]:
    """Make a database on that server for as long as it is needed; without one, settings say nothing."""
    outside, name = os.environ.get("JOBENGINE_TEST_DATABASE_URL"), f"jobengine_served_{token_hex(6)}"
    if outside is None:
        yield {}
        return
    with psycopg.connect(outside, autocommit=True) as owner:
        owner.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        # What tests lose in a power cut, they make again; and jit is off as the embedded server has it: compiling the
        # queries of young tables costs half a core for each idle server.
        for setting in ("synchronous_commit", "jit"):
            change = sql.SQL("alter database {} set {} = off")
            owner.execute(change.format(sql.Identifier(name), sql.Identifier(setting)))
        yield {"DATABASE_URL": make_conninfo(outside, dbname=name)}
        owner.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory, database: dict[str, str]) -> Iterator[Server]:
    """The one server that most tests call; its log tells of no fault in the end, and holds no token and no secret."""
    installation = Installation.make(tmp_path_factory.mktemp("served"), **database)
    try:
        with serving(installation) as server:
            yield server
    finally:
        installation.clean_up()
    faults = [line for line in server.log.read_text("utf-8").splitlines() if FAULT.search(line)]
    assert not faults


@pytest.fixture(scope="package")
def clients(served: Server) -> Clients:
    """Make the clients."""
    ours, theirs, governor = served.installation.create_clients(
        Wanted("ours", new_tenants(POOL), EVERY_ROLE),
        Wanted("theirs", new_tenants(POOL // 4), EVERY_ROLE),
        Wanted("governor", new_tenants(1), ["Orch.Governor"]),
    )
    return Clients(ours, theirs, governor, iter(ours.tenants), iter(theirs.tenants))


@pytest.fixture
def caller(http: httpx2.Client, served: Server, clients: Clients) -> Caller:
    """Somebody with every role of a tenant, in a new one."""
    return Caller(http, served.url, clients.ours, next(clients.fresh))


@pytest.fixture(scope="module")
def refused(http: httpx2.Client, served: Server, clients: Clients) -> Caller:
    """Somebody with every role of a tenant that a module's tests share: nothing they ask for comes to be."""
    return Caller(http, served.url, clients.ours, next(clients.fresh))


@pytest.fixture
def stranger(http: httpx2.Client, served: Server, clients: Clients) -> Caller:
    """Another client of another owner, with every role in another new tenant."""
    return Caller(http, served.url, clients.theirs, next(clients.fresh_theirs))


@pytest.fixture
def governor(http: httpx2.Client, served: Server, clients: Clients) -> Caller:
    """Somebody who governs the platform."""
    return Caller(http, served.url, clients.governor, clients.governor.tenants[0], ("orch:govern",))


@pytest.fixture(scope="package")
def plane(served: Server) -> Plane:
    """The keys and the realm of the server's installation, read where it keeps them; the rest of it is closed."""

    async def read() -> Plane:
        async with open_plane(read_settings(served.installation.environ())) as opened:
            return opened

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, read()).result()


@pytest.fixture
def forge(plane: Plane) -> Forge:
    """Sign what the authority never would: a token with a power and without its reason."""

    def sign(tenant: str, *scopes: str, **claims: object) -> str:
        return forge_token(plane, tenant, *scopes, **claims)

    return sign
