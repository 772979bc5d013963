"""Whether the database can serve this release: reachable, with its schema, and with somebody who sequences its logs."""

import psycopg

from jobengine.errors import NotFound, Unavailable
from jobengine.storage.database import Database
from jobengine.storage.migrator import newest_revision

LAG_ALARM_SECONDS = 5.0


async def require_ready(database: Database) -> None:
    """Raise Unavailable saying what is missing; a schema newer than ours is fine, for it only adds."""
    try:
        async with database.system() as tx:
            revision = str((await tx.one("system_ready"))["version_num"])
            orphans = (await tx.one("system_orphan_shards"))["orphans"]
            lag = (await tx.one("system_sequencer_lag"))["seconds"]
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName, NotFound) as error:
        raise Unavailable("the database has not been migrated") from error
    if revision < newest_revision():
        raise Unavailable("the database has the schema of an older release")
    if orphans or lag > LAG_ALARM_SECONDS:
        raise Unavailable("the sequencer is behind")
