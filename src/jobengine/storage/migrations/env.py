"""Alembic's hook: run the revisions on the connection that the migrator hands over."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, version_table_schema="jobengine", transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
