"""Settings: read once, checked at the start."""

from datetime import timedelta
from pathlib import Path

import pytest

from jobengine.settings import JobType, Settings, SettingsError, read_job_types, read_settings


def test_nothing_set_means_the_defaults() -> None:
    """A folder beside the caller, this machine alone, an embedded database."""
    settings = read_settings({"HOME": "/somewhere", "JOBENGINE_PORT": ""})

    assert settings == Settings()
    assert (settings.host, settings.port, settings.is_loopback, settings.database_url) == (
        "127.0.0.1",
        8080,
        True,
        None,
    )
    assert settings.master_key_path == settings.data_dir / "master.key"


def test_every_setting_of_the_contract_is_read() -> None:
    """By its name, into its type."""
    settings = read_settings({
        "JOBENGINE_DATA_DIR": "data",
        "JOBENGINE_DATABASE_URL": "postgresql://db/jobs",
        "JOBENGINE_MIGRATION_URL": "postgresql://owner@db/jobs",
        "JOBENGINE_MASTER_KEY_FILE": "keys/master.key",
        "JOBENGINE_HOST": "0.0.0.0",  # noqa: S104 - the case in question
        "JOBENGINE_PORT": "9000",
        "JOBENGINE_ISSUER": "https://jobs.example",
        "JOBENGINE_AUDIENCE": "jobs",
        "JOBENGINE_BACKFILL_SUPPRESSION_WINDOW": "PT36H",
        "JOBENGINE_METRICS_PORT": "9100",
        "JOBENGINE_URL": "https://a.client.reads.this",
    })  # fmt: skip

    assert (settings.data_dir, settings.master_key_path) == (Path("data"), Path("keys/master.key"))
    assert settings.database_url == "postgresql://db/jobs"
    assert settings.migration_url == "postgresql://owner@db/jobs"
    assert (settings.host, settings.port, settings.is_loopback) == ("0.0.0.0", 9000, False)  # noqa: S104 - as above
    assert (settings.issuer, settings.audience, settings.metrics_port) == ("https://jobs.example", "jobs", 9100)
    assert settings.backfill_suppression_window == timedelta(hours=36)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "eighty"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("METRICS_PORT", "0"),
        ("ISSUER", "jobs.example"),
        ("ISSUER", "https://jobs.example/?a=b"),
        ("ISSUER", "https://jobs.example#x"),
        ("BACKFILL_SUPPRESSION_WINDOW", "a day"),
        ("BACKFILL_SUPPRESSION_WINDOW", "P1M"),
        ("CONFIG", "/nowhere/jobs.toml"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    """The start fails with the name to mend."""
    with pytest.raises(SettingsError, match=f"JOBENGINE_{name}"):
        read_settings({f"JOBENGINE_{name}": value})


def test_settings_do_not_show_the_addresses_of_databases() -> None:
    """They hold passwords, and settings end up in logs."""
    settings = read_settings({
        "JOBENGINE_DATABASE_URL": "postgresql://jobs:made-up@db/jobs",
        "JOBENGINE_MIGRATION_URL": "postgresql://owner:made-up@db/jobs",
    })  # fmt: skip

    assert "made-up" not in repr(settings)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104 - the case in question
        ("::", False),
        ("192.0.2.1", False),
        ("jobs.example", False),
    ],
)
def test_only_an_address_of_this_machine_is_loopback(host: str, loopback: bool) -> None:
    """A name that could be anybody's is not."""
    assert Settings(host=host).is_loopback == loopback


CONFIG = """
[job_types.scan]
handler = "python:jobs.scan:handle"
lease_seconds = 60
max_attempts = 5

[job_types."load.v2"]
handler = "external"
"""


def test_job_types_are_read_from_a_file(tmp_path: Path) -> None:
    """With 15 seconds and 3 attempts where nothing is said."""
    file = tmp_path / "jobs.toml"
    file.write_text(CONFIG)

    assert read_settings({"JOBENGINE_CONFIG": str(file)}).job_types == {
        "scan": JobType("python:jobs.scan:handle", lease_seconds=60, max_attempts=5),
        "load.v2": JobType("external", lease_seconds=15, max_attempts=3),
    }


@pytest.mark.parametrize(
    "handler", ["python:a.b:c", "command:/bin/scan --fast", "http:https://h/x", "https://h/x", "external"]
)
def test_every_kind_of_handler_can_be_named(tmp_path: Path, handler: str) -> None:
    """Python, command, http, external; only the last runs elsewhere."""
    file = tmp_path / "jobs.toml"
    file.write_text(f'[job_types.scan]\nhandler = "{handler}"\n')

    assert read_job_types(file)["scan"].is_external == (handler == "external")


@pytest.mark.parametrize(
    ("handler", "executor", "external"),
    [
        ("python:a.b:c", "embedded", False),
        ("python:a.b:c", "worker", True),
        ("command:/bin/scan", "celery", True),
        ("external", "celery", True),
    ],
)
def test_an_executor_tells_who_runs_a_job_type(tmp_path: Path, handler: str, executor: str, *, external: bool) -> None:
    """The service itself, or workers outside it; on Celery they are woken."""
    file = tmp_path / "jobs.toml"
    file.write_text(f'[job_types.scan]\nhandler = "{handler}"\nexecutor = "{executor}"\n')
    settings = read_settings({"JOBENGINE_CONFIG": str(file)})

    assert settings.job_types["scan"].is_external == external
    assert settings.celery_job_types == (["scan"] if executor == "celery" else [])


@pytest.mark.parametrize(
    "handler",
    ["http:h", "http:h:9000/x", "http:http://h/x", "http:https://[::1]:1/x?y=z", "http://user@h/x", "https://h:65535"],
)
def test_an_address_that_can_be_called_is_a_handler(tmp_path: Path, handler: str) -> None:
    """With its scheme or without, behind http: or alone."""
    file = tmp_path / "jobs.toml"
    file.write_text(f'[job_types.scan]\nhandler = "{handler}"\n')

    assert read_job_types(file)["scan"].handler == handler


def test_a_broker_is_named_and_never_shown(tmp_path: Path) -> None:
    """Its address holds a password: neither the settings nor an error repeats it."""
    settings = read_settings({"JOBENGINE_BROKER_URL": "amqps://jobs:hush@broker/", "JOBENGINE_BROKER_SLOTS": "8"})

    assert (settings.broker_url, settings.broker_queue, settings.broker_slots) == (
        "amqps://jobs:hush@broker/",
        "jobengine",
        8,
    )
    assert "hush" not in repr(settings)
    with pytest.raises(SettingsError, match="JOBENGINE_BROKER_URL") as refused:
        read_settings({"JOBENGINE_BROKER_URL": "kafka://jobs:hush@broker/", "JOBENGINE_DATA_DIR": str(tmp_path)})
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "[job_types]\n"])
def test_a_file_without_job_types_is_fine(tmp_path: Path, text: str) -> None:
    """None or empty is valid."""
    file = tmp_path / "jobs.toml"
    file.write_text(text)

    assert read_job_types(file) == {}


@pytest.mark.parametrize(
    "text",
    [
        "[job_types.scan]\n",
        '[job_types.scan]\nhandler = "shell:rm"\n',
        '[job_types.scan]\nhandler = "python:a.b"\n',
        '[job_types.scan]\nhandler = "external"\nretries = 3\n',
        '[job_types.scan]\nhandler = "external"\nlease_seconds = 4\n',
        '[job_types.scan]\nhandler = "external"\nlease_seconds = "15"\n',
        '[job_types.scan]\nhandler = "external"\nmax_attempts = 0\n',
        '[job_types.scan]\nhandler = "external"\nexecutor = "embedded"\n',
        '[job_types.scan]\nhandler = "external"\nexecutor = "kubernetes"\n',
        '[job_types.scan]\nhandler = "http:"\n',
        '[job_types.scan]\nhandler = "http:// /x"\n',
        '[job_types.scan]\nhandler = "http:///x"\n',
        '[job_types.scan]\nhandler = "https://h/a b"\n',
        '[job_types.scan]\nhandler = "http:h:eighty"\n',
        '[job_types.scan]\nhandler = "http://h:70000/"\n',
        '[job_types.scan]\nhandler = "https://[::1/"\n',
        '[job_types."a b"]\nhandler = "external"\n',
        '[jobtypes.scan]\nhandler = "external"\n',
        "not toml",
        "\x00",
    ],
)
def test_a_file_with_a_fault_stops_the_start(tmp_path: Path, text: str) -> None:
    """The message names the setting and the file."""
    file = tmp_path / "jobs.toml"
    file.write_text(text)

    with pytest.raises(SettingsError, match=r"JOBENGINE_CONFIG .*jobs\.toml"):
        read_job_types(file)


def test_a_file_that_is_not_utf8_stops_the_start(tmp_path: Path) -> None:
    """TOML is."""
    file = tmp_path / "jobs.toml"
    file.write_bytes(b"# caf\xe9\n")

    with pytest.raises(SettingsError, match="JOBENGINE_CONFIG"):
        read_job_types(file)
