"""What admission needs beside its leases."""

from jobengine.storage.migrations.plain_sql import run

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add what this release asks for."""
    run("0003_pre_admission.sql")
