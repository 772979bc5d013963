"""Settings: read once from ``JOBENGINE_*``, checked at the start, then frozen."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from jobengine.clock import parse_duration
from jobengine.ids import JOB_TYPE
from jobengine.logs import Level

PREFIX = "JOBENGINE_"

JobTypeName = Annotated[str, msgspec.Meta(pattern=JOB_TYPE)]
# A URL may stand alone, behind "http:", or behind it without its scheme.
Handler = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(external|python:[\w.]+:[A-Za-z_]\w*|command:.+|(http:)?https?://[^/?#\s]\S*|http:[^/?#\s]\S*)\Z"
    ),
]
Executor = Literal["embedded", "worker", "celery"]


class SettingsError(ValueError):
    """A setting is missing or wrong; the message names it."""


class JobType(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How batches of one job type run; *lease_seconds* is how long a worker may be silent.

    The *executor* is the service itself unless said otherwise: "worker" leaves batches to workers that ask for them
    over the API, "celery" wakes those workers over a broker as well.
    """

    handler: Handler
    lease_seconds: Annotated[int, msgspec.Meta(ge=5, le=3600)] = 15
    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3
    executor: Executor | None = None

    def __post_init__(self) -> None:
        """Refuse what can never run."""
        if self.handler == "external" and self.executor == "embedded":
            raise ValueError("an external handler is not embedded")
        if self.handler.startswith("http"):
            # Raises for a port that is none.
            rest = self.handler.removeprefix("http:")
            address = urlsplit(rest if "//" in rest[:8] else f"//{rest}")
            if not address.hostname or address.port == 0:
                raise ValueError(f"{self.handler} has no host, or a port that is none")

    @property
    def is_external(self) -> bool:
        """Tell whether workers outside this service run it."""
        return self.handler == "external" or self.executor in {"worker", "celery"}


class _ConfigFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    job_types: dict[JobTypeName, JobType] = msgspec.field(default_factory=dict[JobTypeName, JobType])


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the service may be told from outside; addresses with passwords never show in a repr."""

    data_dir: Path = Path("jobengine-data")
    database_url: str | None = field(default=None, repr=False)
    migration_url: str | None = field(default=None, repr=False)
    master_key_file: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    issuer: str | None = None
    audience: str = "jobengine"
    backfill_suppression_window: timedelta = timedelta(hours=24)
    event_retention: timedelta = timedelta(days=400)
    backfill_ticket_required: bool = False
    embedded_slots: int = 4
    ask_retention_days: int = 30
    metrics_port: int | None = None
    log_level: Level = "info"
    witnesses: tuple[tuple[str, str], ...] = ()
    job_types: Mapping[str, JobType] = field(default_factory=dict[str, JobType])
    broker_url: str | None = field(default=None, repr=False)
    broker_queue: str = "jobengine"
    broker_slots: int = 4

    @property
    def master_key_path(self) -> Path:
        """Where the master key lies: outside the database, always."""
        return self.master_key_file or self.data_dir / "master.key"

    @property
    def celery_job_types(self) -> list[str]:
        """The job types whose workers are woken over a broker."""
        return [name for name, job in self.job_types.items() if job.executor == "celery"]

    @property
    def is_loopback(self) -> bool:
        """Tell whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


class _Environment(msgspec.Struct, rename=lambda name: PREFIX + name.upper()):
    data_dir: str | None = None
    database_url: str | None = None
    migration_url: str | None = None
    master_key_file: str | None = None
    host: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] | None = None
    issuer: Annotated[str, msgspec.Meta(pattern=r"^https?://[^?#\s]+\Z")] | None = None
    audience: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    backfill_suppression_window: str | None = None
    event_retention: str | None = None
    backfill_ticket_required: bool | None = None
    embedded_slots: Annotated[int, msgspec.Meta(ge=0, le=256)] | None = None
    ask_retention_days: Annotated[int, msgspec.Meta(ge=1, le=60)] | None = None
    metrics_port: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None
    log_level: Level | None = None
    witnesses: str | None = None
    config: str | None = None
    broker_url: Annotated[str, msgspec.Meta(pattern=r"^(amqp|redis)s?://\S+\Z")] | None = None
    broker_queue: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")] | None = None
    broker_slots: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None = None


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Read the settings from *environ*; raises SettingsError naming the one that is wrong.

    >>> read_settings({"JOBENGINE_PORT": "9000"}).port
    9000
    """
    found = {name: value for name, value in environ.items() if name.startswith(PREFIX) and value != ""}
    try:
        read = msgspec.convert(found, _Environment, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(str(error).replace("$.", "")) from None
    values: dict[str, Any] = {
        name: value for name in _Environment.__struct_fields__ if (value := getattr(read, name)) is not None
    }
    for name in ("data_dir", "master_key_file"):
        if name in values:
            values[name] = Path(values[name])
    for name in {"backfill_suppression_window", "event_retention"} & values.keys():
        values[name] = _duration(name.upper(), read)
    if read.witnesses is not None:
        values["witnesses"] = read_witnesses(read.witnesses)
    if config := values.pop("config", None):
        values["job_types"] = read_job_types(Path(config))
    return Settings(**values)


def read_job_types(path: Path) -> Mapping[str, JobType]:
    """Read the TOML file of job types; none or an empty one is valid. Raises SettingsError."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        return msgspec.convert(document, _ConfigFile).job_types
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise SettingsError(f"{PREFIX}CONFIG {path}: {error}") from None


def read_witnesses(text: str) -> tuple[tuple[str, str], ...]:
    """Read pairs of an address and a vkey, with commas between the pairs; raises SettingsError.

    >>> read_witnesses("https://w.example w.example+0011aabb+BAAA, https://v.example v.example+0011aabb+BAAA")[1][0]
    'https://v.example'
    """
    found: list[tuple[str, str]] = []
    for pair in filter(None, map(str.strip, text.split(","))):
        url, _, key = pair.partition(" ")
        if not url.startswith(("http://", "https://")) or not key.strip():
            raise SettingsError(
                f"{PREFIX}WITNESSES wants an address, a space and a vkey, with commas between such pairs"
            )
        found.append((url, key.strip()))
    return tuple(found)


def _duration(name: str, read: _Environment) -> timedelta:
    try:
        return parse_duration(getattr(read, name.lower()))
    except ValueError as error:
        raise SettingsError(f"{PREFIX}{name} {error}") from None
