"""What it costs to have the client: a program that only asks for slots loads nothing of the service."""

import json
import subprocess
import sys
from pathlib import Path

from tests.acceptance.callers import Caller

ROOT = Path(__file__).resolve().parents[2]
SERVICE = {
    "alembic", "cryptography", "cyclopts", "joserfc", "litestar", "msgspec", "prometheus_client", "psycopg",
    "psycopg_pool", "rfc8785", "rich", "sqlalchemy", "structlog", "uvicorn", "uvloop",
}  # fmt: skip
SLOW = {"asyncio", "email", "http.client", "httpx2", "logging", "socket", "ssl"}
NEEDS_NOTHING = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""


def run(program: str, *arguments: str) -> str:
    """Run a program in a Python of its own and return what it printed."""
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_importing_the_client_loads_nothing_that_is_slow() -> None:
    """Neither the service and its libraries nor what only a connection needs."""
    program = "import sys, json; before = set(sys.modules); import jobengine.client; print(json.dumps([*sys.modules]))"

    loaded = set(json.loads(run(program)))

    assert (loaded & SERVICE, loaded & SLOW) == (set(), set())
    assert {name for name in loaded if name.startswith("jobengine")} == {
        "jobengine",
        "jobengine.client",
        *(f"jobengine.client.{part}" for part in ("dialogue", "errors", "grant", "leasing", "sync", "wire")),
    }


def test_importing_the_package_loads_nothing_at_all() -> None:
    """`import jobengine` is a name and a version."""
    loaded = json.loads(run("import sys, json; import jobengine; print(json.dumps([*sys.modules]))"))

    assert [name for name in loaded if name.startswith("jobengine")] == ["jobengine"]


def test_a_lease_needs_no_package_of_the_service(admin: Caller) -> None:
    """Everything but the HTTP library may be absent, in both halves."""
    admin.quota()
    program = NEEDS_NOTHING.replace("{absent}", repr(SERVICE)) + (
        "from asyncio import run\n"
        "from jobengine.client import AsyncClient, Client\n"
        "async def other():\n"
        "    async with AsyncClient(*sys.argv[1:4], tenant=sys.argv[4]) as client, client.lease('scan') as lease:\n"
        "        return lease.grant.fencing_token\n"
        "with Client(*sys.argv[1:4], tenant=sys.argv[4]) as client, client.lease('scan') as lease:\n"
        "    print(lease.grant.fencing_token, run(other()))\n"
    )
    known = admin.credentials

    assert run(program, admin.url, known.client_id, known.secret, admin.tenant) == "1 2\n"


def test_the_readmes_example_runs_as_it_stands(admin: Caller) -> None:
    """What a reader copies works."""
    admin.quota("nightly-totals")
    text = (ROOT / "README.md").read_text("utf-8")
    example = text.partition("```python\n")[2].partition("```")[0]
    known = admin.credentials
    program = (
        f"import os\nos.environ |= {{'JOBENGINE_URL': {admin.url!r}, 'JOBENGINE_CLIENT_ID': {known.client_id!r},"
        f" 'JOBENGINE_CLIENT_SECRET': {known.secret!r}, 'JOBENGINE_TENANT': {admin.tenant!r}}}\n"
        "def days(): return [1, 2]\n"
        "def total(day, fence): print(day, fence)\n" + example
    )

    assert run(program) == "1 1\n2 1\n"
