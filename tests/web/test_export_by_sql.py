"""ops/postgres/export.sql: an export without the service, for the day on which there is none."""

from io import BytesIO
from pathlib import Path

from tests.factories import Api, Connection
from tests.web.audit_reading import grow, settle

from jobengine_verify.notes import parse_key
from jobengine_verify.verify import Intact, Tampered, check_export

SCRIPT = Path(__file__).resolve().parents[2] / "ops" / "postgres" / "export.sql"


async def by_sql(owner: Connection, tenant_id: str) -> bytes:
    """Run the script's statements as psql would."""
    text = "\n".join(line for line in SCRIPT.read_text("utf-8").splitlines() if not line.startswith("--"))
    lines: list[str] = []
    for statement in filter(str.strip, text.split(";\n")):
        asked = statement.replace("%", "%%").replace(":'tenant'", "%(tenant)s")
        rows = await (await owner.execute(asked.encode(), {"tenant": tenant_id})).fetchall()
        lines += [str(value) for row in rows for value in row.values()]
    return "\n".join(lines).encode() + b"\n"


async def test_an_export_by_sql_is_what_the_service_exports(api: Api, owner: Connection) -> None:
    """Line by line, reasons with odd characters included, and the offline verifier finds it intact."""
    await grow(api, owner, 6)
    odd = api.speaking("orch:quota", quota_reason='say "über\\all" — \u2713 \U0001f600', quota_ticket="OPS-9")
    await odd.quota("odd")
    await settle(api, owner)
    key = parse_key((await api.get("/audit/verifier-key")).text.strip())

    made = await by_sql(owner, api.tenant_id)

    # The service records that it was asked, after the entries of its export.
    told = (await api.get("/audit/export")).content
    assert isinstance(check_export(BytesIO(made), key), Intact)
    assert len(made.splitlines()) >= 8
    assert made.splitlines()[1:] == told.splitlines()[1 : len(made.splitlines())]


async def test_an_export_by_sql_of_a_log_that_was_changed_is_not_intact(api: Api, owner: Connection) -> None:
    """What is wrong in the database is wrong in the export."""
    await grow(api, owner, 3)
    key = parse_key((await api.get("/audit/verifier-key")).text.strip())
    made = await by_sql(owner, api.tenant_id)

    changed = made.replace(b"quota.created", b"quota.deleted", 1)

    assert changed != made
    assert isinstance(check_export(BytesIO(changed), key), Tampered)
