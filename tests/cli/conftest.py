"""A server that tests share, the tenants on it, and shells to speak with."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from tests.cli.processes import Service, Shell, Tenant, free_port, serving
from tests.clusters import furnish

JOB_TYPES = '[job_types.totals]\nhandler = "external"\n'

MakeShell = Callable[[], Shell]


@pytest.fixture(scope="session")
def new_shell(tmp_path_factory: pytest.TempPathFactory) -> MakeShell:
    """Make shells, each with a data folder and a port that nobody else has."""

    def make() -> Shell:
        folder = tmp_path_factory.mktemp("cli")
        config = folder / "jobs.toml"
        config.write_text(JOB_TYPES)
        quiet = Shell({}).having(LOG_LEVEL="warning")  # nobody reads the pipe while a server writes to it
        return quiet.having(DATA_DIR=str(folder / "data"), PORT=str(free_port()), CONFIG=str(config))

    return make


@pytest.fixture(scope="session")
def furnished_shell(new_shell: MakeShell) -> MakeShell:
    """Make shells in whose data folder a database waits that was migrated already."""

    def make() -> Shell:
        shell = new_shell()
        furnish(Path(shell.settings["JOBENGINE_DATA_DIR"]))
        return shell

    return make


@pytest.fixture(scope="package")
def service(furnished_shell: MakeShell) -> Iterator[Service]:
    """The server that most tests share, with an embedded PostgreSQL."""
    with serving(furnished_shell()) as running:
        yield running


@pytest.fixture(scope="module")
def tenant(service: Service) -> Tenant:
    """A tenant with one client for each role."""
    return service.new_tenant("Admin", "Viewer", "Worker", "Governor", "Operator")


@pytest.fixture(scope="module")
def admin(tenant: Tenant) -> Shell:
    """The shell of the tenant's administrator, who says why."""
    return tenant.speaking("Admin").having(
        QUOTA_REASON="spring sale", QUOTA_TICKET="CHG-1", BACKFILL_REASON="old rates were wrong"
    )


@pytest.fixture
def worker(service: Service, tenant: Tenant) -> Iterator[httpx2.Client]:
    """A client of the API that may claim batches."""
    token = tenant.speaking("Worker").run("token", "--scope", "orch:execute").out.strip()
    headers = {"Authorization": f"Bearer {token}"}
    with httpx2.Client(base_url=f"{service.url}/api/v1", headers=headers, trust_env=False) as opened:
        yield opened
