"""A real server beside the in-process application: what only processes and sockets can show is shown on it."""

from collections.abc import Iterator

import pytest
from tests.acceptance.serving import EVERY_ROLE, Installation, Server, new_tenants, serving
from tests.contract.deployment import ClientOf, Deployment
from tests.registering import Wanted


@pytest.fixture(scope="package")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with an embedded PostgreSQL of its own."""
    installation = Installation.make(tmp_path_factory.mktemp("contract"))
    try:
        with serving(installation) as server:
            yield server
    finally:
        installation.clean_up()


@pytest.fixture(scope="package")
def deployment(running: Server) -> Deployment:
    """The server with a client of every role in a new tenant, and a governor."""
    tenant, platform = new_tenants(2)
    owner, governor = running.installation.create_clients(
        Wanted("corpus", [tenant], EVERY_ROLE), Wanted("governor", [platform], ["Orch.Governor"])
    )
    return Deployment(
        running.url,
        ClientOf(owner.client_id, owner.secret, tenant),
        ClientOf(governor.client_id, governor.secret, platform),
    )
