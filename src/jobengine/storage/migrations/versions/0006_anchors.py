"""Heartbeats, anchors, witnesses and key validity of the audit log."""

from jobengine.storage.migrations.plain_sql import run

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add what this release asks for."""
    run("0006_pre_anchors.sql")
