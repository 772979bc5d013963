"""Reasons that can be erased."""

from jobengine.storage.migrations.plain_sql import run

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add what this release asks for."""
    run("0007_pre_erasure.sql")
