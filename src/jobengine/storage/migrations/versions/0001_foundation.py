"""The foundation: authority, audit, quotas, admission, backfills."""

from jobengine.storage.migrations.plain_sql import run

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create every table."""
    run("0001_pre_foundation.sql")
