"""What handlers are told: which URL is called, where our own service answers, and what of the environment they see."""

import pytest

from jobengine.worker.command_handler import local_url
from jobengine.worker.http_handler import http_target
from jobengine.worker.processes import handler_environment


@pytest.mark.parametrize(
    ("handler", "url"),
    [
        ("http:http://jobs.example/run?a=1", "http://jobs.example/run?a=1"),
        ("http:https://jobs.example:8443/run", "https://jobs.example:8443/run"),
        ("http://jobs.example/run", "http://jobs.example/run"),
        ("https://jobs.example/run", "https://jobs.example/run"),
        ("http:jobs.example:9000/run", "http://jobs.example:9000/run"),
        ("http:localhost/http://x", "http://localhost/http://x"),
    ],
)
def test_an_http_handler_names_its_url(handler: str, url: str) -> None:
    """``http:`` stands before a URL, or before one without a scheme, or is the scheme itself."""
    assert http_target(handler) == url


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080"),
        ("jobs.internal", "http://jobs.internal:8080"),
        ("0.0.0.0", "http://127.0.0.1:8080"),  # noqa: S104 - nothing is bound here
        ("::", "http://[::1]:8080"),
        ("fd00::1", "http://[fd00::1]:8080"),
    ],
)
def test_a_command_calls_the_service_from_its_own_machine(host: str, url: str) -> None:
    """An address that stands for all of them is called by the one that is always there."""
    assert local_url(host, 8080) == url


def test_a_handler_sees_nothing_of_our_settings() -> None:
    """Neither the database's password nor where the master key lies, whatever the settings are called."""
    ours = ["DATABASE_URL", "MIGRATION_URL", "MASTER_KEY_FILE", "CLIENT_SECRET", "DATA_DIR", "SOMETHING_NEW"]
    environ = {f"JOBENGINE_{name}": "secret" for name in ours} | {"PGPASSWORD": "secret", "PGPASSFILE": "secret"}

    assert handler_environment(environ | {"PATH": "/bin", "REPORTS_URL": "x"}) == {"PATH": "/bin", "REPORTS_URL": "x"}
