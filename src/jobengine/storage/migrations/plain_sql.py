"""Revisions are SQL files: ``pre`` files only add, ``post`` files remove what the last release no longer uses."""

from importlib.resources import files

import psycopg
from alembic import op


def run(name: str) -> None:
    """Run the file *name* of the versions folder in the revision's transaction."""
    text = (files("jobengine.storage.migrations") / "versions" / name).read_text()
    driver = op.get_bind().connection.driver_connection
    if not isinstance(driver, psycopg.Connection):
        message = "migrations run on psycopg"
        raise TypeError(message)
    driver.execute(text.encode())
