"""The ledger of event keys at scale."""

from jobengine.storage.migrations.plain_sql import run

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add what this release asks for."""
    run("0004_pre_events.sql")
