"""Wake-ups that leave after commit."""

from jobengine.storage.migrations.plain_sql import run

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add what this release asks for."""
    run("0005_pre_outbox.sql")
