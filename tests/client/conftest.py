"""A real server, a worker's credentials in many tenants, and an administrator of each."""

from collections.abc import Iterator

import httpx2
import pytest
from tests.acceptance.callers import Caller
from tests.acceptance.serving import EVERY_ROLE, Credentials, Installation, Server, new_tenants, serving

from jobengine.client import Client

TENANTS = 40


@pytest.fixture(scope="package")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server that all of them call."""
    installation = Installation.make(tmp_path_factory.mktemp("client"))
    try:
        with serving(installation) as server:
            yield server
    finally:
        installation.clean_up()


@pytest.fixture(scope="package")
def credentials(running: Server) -> Credentials:
    """One client with every role in many tenants."""
    return running.installation.create_client("ours", new_tenants(TENANTS), EVERY_ROLE)


@pytest.fixture(scope="package")
def fresh(credentials: Credentials) -> Iterator[str]:
    """The tenants nobody has used yet."""
    return iter(credentials.tenants)


@pytest.fixture
def admin(running: Server, credentials: Credentials, fresh: Iterator[str]) -> Iterator[Caller]:
    """Somebody with every role in a new tenant."""
    with httpx2.Client(trust_env=False, timeout=30) as http:
        yield Caller(http, running.url, credentials, next(fresh))


@pytest.fixture
def client(admin: Caller) -> Iterator[Client]:
    """The client in that tenant."""
    with client_of(admin) as opened:
        yield opened


def client_of(admin: Caller, url: str | None = None) -> Client:
    """Return a client in the tenant of *admin*, perhaps over another address."""
    known = admin.credentials
    return Client(url or admin.url, known.client_id, known.secret, tenant=admin.tenant)
