"""Allocations, changes that wait, requests."""

from jobengine.storage.migrations.plain_sql import run

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add what this release asks for."""
    run("0008_pre_governance.sql")
