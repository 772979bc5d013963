"""Alembic at work; apart from the rest, because loading it takes longer than finding nothing to do."""

from importlib.resources import as_file, files

import psycopg
import sqlalchemy
from alembic import command
from alembic.config import Config


def upgrade(conninfo: str, schema: str) -> None:
    """Run every revision that *schema* has not seen, each in a transaction of its own."""
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(conninfo, options=f"-c search_path={schema}"),
        poolclass=sqlalchemy.pool.NullPool,
    )
    with as_file(files("jobengine.storage") / "migrations") as folder, engine.connect() as connection:
        config = Config()
        config.set_main_option("script_location", str(folder))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    engine.dispose()
