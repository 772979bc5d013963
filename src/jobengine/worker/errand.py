"""Whom a worker serves, read from its environment: the one place where a worker reads settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jobengine.logs import Level
from jobengine.settings import PREFIX, SettingsError, read_settings

DEFAULT_URL = "http://127.0.0.1:8080"


@dataclass(frozen=True, slots=True)
class Errand:
    """A server, a client of it, and what to run for it: *handlers* by job type, of which the *woken* are on Celery.

    An empty *tenant_id* is the client's only tenant, or whichever a wake-up names.
    """

    url: str
    client_id: str
    secret: str = field(repr=False)
    tenant_id: str
    handlers: Mapping[str, str]
    lease_seconds: Mapping[str, int]
    woken: Sequence[str] = ()
    broker_url: str | None = field(default=None, repr=False)
    broker_queue: str = "jobengine"
    log_level: Level = "info"


def read_errand(environ: Mapping[str, str]) -> Errand:
    """Return whom a worker with this environment serves; raises SettingsError naming what is wrong or missing."""
    settings = read_settings(environ)
    given = {name: environ.get(PREFIX + name, "") for name in ("URL", "CLIENT_ID", "CLIENT_SECRET", "TENANT")}
    if missing := [PREFIX + name for name in ("CLIENT_ID", "CLIENT_SECRET") if not given[name]]:
        raise SettingsError(f"{' and '.join(missing)} must be set")
    # What runs inside the server, and what has no handler here, is not ours to claim.
    ours = {name: job for name, job in settings.job_types.items() if job.is_external and job.handler != "external"}
    if not ours:
        raise SettingsError(f"{PREFIX}CONFIG names no job type with a handler and the executor worker or celery")
    return Errand(
        url=(given["URL"] or DEFAULT_URL).rstrip("/"),
        client_id=given["CLIENT_ID"],
        secret=given["CLIENT_SECRET"],
        tenant_id=given["TENANT"],
        handlers={name: job.handler for name, job in ours.items()},
        lease_seconds={name: job.lease_seconds for name, job in ours.items()},
        woken=[name for name in settings.celery_job_types if name in ours],
        broker_url=settings.broker_url,
        broker_queue=settings.broker_queue,
        log_level=settings.log_level,
    )
