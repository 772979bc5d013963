"""What every command shares: help, versions, global options, usage errors, and quick imports."""

import subprocess
import sys
from importlib import import_module

import pytest
from tests.cli.processes import Shell

from jobengine import __version__
from jobengine.cli.exits import EXIT_OF_CODE, HINTS, Exit, exit_of
from jobengine.cli.main import COMMANDS
from jobengine.web.problems import PROBLEMS

HEAVY = {"httpx2", "litestar", "psycopg", "rich", "uvicorn", "sqlalchemy", "cryptography", "msgspec", "asyncio"}


@pytest.fixture
def shell() -> Shell:
    """A shell without a server."""
    return Shell({})


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    """Only the command that needs a heavy module waits for it."""
    code = "import sys, jobengine.cli.main; print(*sys.modules)"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert HEAVY & set(loaded) == set()


def test_the_version_is_the_packages_own(shell: Shell) -> None:
    """``--version`` names the program and its version."""
    assert shell.run("--version").out == f"jobengine {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_registered_command_can_be_imported(name: str) -> None:
    """The table of commands names modules that exist, and apps that bear the command's name."""
    module, _, attribute = COMMANDS[name][0].partition(":")

    assert getattr(import_module(module), attribute).name == (name,)


def test_help_of_every_command_is_printed_without_a_server(shell: Shell) -> None:
    """``--help`` names the commands and the global options."""
    ended = shell.run("--help")

    assert ended.code == Exit.OK
    assert all(name in ended.out for name in (*COMMANDS, "--url", "--output", "--reason", "--ticket"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["quotas", "list"],
        ["quota", "list", "--bogus"],
        ["quota", "create", "totals"],
        ["quota", "set", "totals"],
        ["quota", "set", "totals", "--max-active", "many"],
        ["quota", "create", "--max-active", "1", "--max-per-hour", "1", "--burst", "1", "--refill-per-second", "1"],
        ["quota", "list", "--output", "xml"],
        ["--url", "nowhere", "token", "--scope", "orch:read"],
        ["policy", "set"],
        ["policy", "set", "--ceiling", "max_active"],
        ["policy", "set", "--approval-above", "2", "--no-approval"],
        ["backfill", "start", "totals", "orders", "2026-03-01", "2026-03-02", "--params", "[]"],
        ["audit", "key"],
        ["serve", "--workers", "0"],
        ["token"],
    ],
    ids=" ".join,
)
def test_a_command_that_cannot_be_meant_ends_with_usage(shell: Shell, arguments: list[str]) -> None:
    """Exit code 2, one sentence on standard error, nothing on standard output, and no stack trace."""
    ended = shell.having(CLIENT_ID="jec_x", CLIENT_SECRET="jes_x").run(*arguments)

    assert (ended.code, ended.out) == (Exit.USAGE, "")
    assert ended.err.startswith("error: ")
    assert "Traceback" not in ended.err


def test_a_call_without_credentials_ends_with_auth(shell: Shell) -> None:
    """Exit code 3, and the hint tells how to get a client."""
    ended = shell.run("quota", "list")

    assert ended.code == Exit.AUTH
    assert "jobengine client create" in ended.err


def test_a_server_that_is_not_there_ends_with_retry_later(shell: Shell) -> None:
    """Exit code 10, and the hint names the ways to another address."""
    ended = shell.having(CLIENT_ID="jec_x", CLIENT_SECRET="jes_x", URL="http://127.0.0.1:1").run("quota", "list")

    assert ended.code == Exit.RETRY_LATER
    assert ended.err.startswith("error: no server answers at http://127.0.0.1:1")
    assert "JOBENGINE_URL" in ended.err


def test_every_problem_of_the_api_has_its_exit_code() -> None:
    """The status alone or the code decides; what is left as a plain error is our fault, or the command's."""
    plain = {code for code, (status, _) in PROBLEMS.items() if exit_of(code, status) is Exit.ERROR}

    assert plain == {"internal_error", "method_not_allowed"}


def test_every_code_in_the_tables_is_one_that_is_answered() -> None:
    """Neither table names a code that neither the API nor the authority gives."""
    of_the_authority = {"invalid_client", "invalid_scope", "unauthorized_client", "temporarily_unavailable"}

    assert (EXIT_OF_CODE.keys() | HINTS.keys()) - of_the_authority <= PROBLEMS.keys()
