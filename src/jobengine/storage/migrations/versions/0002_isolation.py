"""Grants and row-level security."""

from jobengine.storage.migrations.plain_sql import run

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Let the two roles do exactly what they must."""
    run("0002_pre_isolation.sql")
