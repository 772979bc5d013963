"""The record of asks."""

from jobengine.storage.migrations.plain_sql import run

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add what this release asks for."""
    run("0009_pre_asks.sql")
