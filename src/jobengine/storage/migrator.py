"""Bring a database to the schema that this release needs."""

from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from jobengine.storage.queries import QUERIES

SCHEMA = "jobengine"
ROLES = ("jobengine_app", "jobengine_system")
# Any constant will do; it only has to be the same in every process.
_LOCK = 0x6A6F62656E67


def migrate(owner_conninfo: str, login_conninfo: str) -> None:
    """Create or upgrade the schema; processes that come at the same time wait for the first.

    *owner_conninfo* may create roles and tables; the user of *login_conninfo* is made a member of the two roles.
    """
    with psycopg.connect(owner_conninfo, autocommit=True) as guard, _locked(guard):
        for role in ROLES:
            _create_role(guard, role)
        found = _revision(guard)
        # A newer schema is left as it is: it only adds to ours, so that the last release can be started again.
        if found is None or found < newest_revision():
            # Loaded only where there is something to do: most starts find the schema as it should be.
            from jobengine.storage.upgrade import upgrade  # noqa: PLC0415 - see above

            guard.execute(sql.SQL("create schema if not exists {}").format(sql.Identifier(SCHEMA)))
            upgrade(owner_conninfo, SCHEMA)
        _admit_login(guard, login_conninfo)


@contextmanager
def _locked(connection: psycopg.Connection) -> Generator[None]:
    connection.execute(QUERIES["system_lock_migrations"], {"lock": _LOCK})
    try:
        yield
    finally:
        connection.execute(QUERIES["system_unlock_migrations"], {"lock": _LOCK})


def _create_role(connection: psycopg.Connection, role: str) -> None:
    # Roles belong to the whole cluster: another database's migration may create them at the same moment.
    if connection.execute(QUERIES["system_find_role"], {"role": role}).fetchone() is None:
        try:
            connection.execute(sql.SQL("create role {} nologin noinherit").format(sql.Identifier(role)))
        except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
            return


def _admit_login(connection: psycopg.Connection, login_conninfo: str) -> None:
    login = conninfo_to_dict(login_conninfo).get("user") or connection.info.user
    for role in ROLES:
        if connection.execute(QUERIES["system_is_member"], {"login": login, "role": role}).fetchone() == (True,):
            continue
        connection.execute(sql.SQL("grant {} to {}").format(sql.Identifier(role), sql.Identifier(str(login))))


@cache
def newest_revision() -> str:
    """Return the revision of the schema that this release needs; revisions are numbers of four digits."""
    names = [file.name for file in (files("jobengine.storage") / "migrations" / "versions").iterdir()]
    return max(name[:4] for name in names if name.endswith(".sql"))


def _revision(connection: psycopg.Connection) -> str | None:
    try:
        row = connection.execute(QUERIES["system_ready"]).fetchone()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return None
    return None if row is None else str(row[0])
