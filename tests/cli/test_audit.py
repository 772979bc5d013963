"""``jobengine audit`` against a running server, and its exports against the offline verifier."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.cli.cutting import cutting
from tests.cli.processes import Service, Shell, Tenant, serving, wait_until

from jobengine.cli.exits import Exit
from jobengine.storage.embedded import EmbeddedPostgres

LIMITS = ("--max-active", "5", "--max-per-hour", "100", "--burst", "10", "--refill-per-second", "1.5")
VERIFIER = str(Path(sys.executable).with_name("jobengine-verify"))


@pytest.fixture(scope="module")
def recorded(admin: Shell) -> dict[str, Any]:
    """The entry of a quota that was created, with its place in the log."""
    assert admin.run("quota", "create", "recorded", *LIMITS, "--reason", "for the record").code == Exit.OK
    found: list[dict[str, Any]] = []

    def sequenced() -> bool:
        found[:] = admin.run("audit", "list", "--action", "quota.created", "--output", "json").document["items"]
        return bool(found)

    wait_until(sequenced)
    return found[0]


def test_a_change_is_listed_with_who_and_why(admin: Shell, tenant: Tenant, recorded: dict[str, Any]) -> None:
    """The JSON is the API's own, and the table shows the words of whoever acted."""
    listed = admin.run("audit", "list", "--resource-id", recorded["resource"]["id"]).out

    assert recorded["reason"] == "for the record"
    assert recorded["actor"]["client_id"] == tenant.clients["Admin"]["client_id"]
    assert "quota.created" in listed
    assert "for the record" in listed


@pytest.mark.usefixtures("recorded")
def test_a_list_that_ends_early_says_so(admin: Shell) -> None:
    """A limit leaves the token of the next page in the JSON, and a note for people."""
    ended = admin.run("audit", "list", "--limit", "1", "--output", "json")

    assert len(ended.document["items"]) == 1
    assert ended.document["next_page_token"] is not None
    assert "--limit" in ended.err


@pytest.mark.usefixtures("recorded")
def test_an_intact_log_verifies_with_zero(admin: Shell) -> None:
    """One line for people, the verdict for programs."""
    assert admin.run("audit", "verify").out.startswith("ok: ")
    assert admin.run("audit", "verify", "--output", "json").document["ok"] is True


@pytest.mark.usefixtures("recorded")
def test_an_export_is_what_the_verifier_takes(admin: Shell, tenant: Tenant, tmp_path: Path) -> None:
    """File and standard output hold the same kind of lines, and the key comes from the database itself."""
    file = tmp_path / "log.ndjson"
    told = admin.run("audit", "export", str(file))
    key = admin.run("audit", "key", "--tenant", tenant.name).out.strip()

    verified = subprocess.run([VERIFIER, str(file), "--key", key], capture_output=True, text=True, check=False)
    streamed = admin.run("audit", "export").out.splitlines()

    assert (told.code, told.out) == (Exit.OK, "")
    assert (verified.returncode, verified.stdout.split(":")[0]) == (0, "INTACT")
    assert json.loads(streamed[0])["format"] == 1
    assert json.loads(streamed[-1]).keys() == {"entry", "open"}
    assert sorted(tmp_path.iterdir()) == [file, file.with_name("log.ndjson.tiles")]


@pytest.mark.usefixtures("recorded")
def test_an_export_that_was_changed_is_named_by_its_tiles(admin: Shell, tenant: Tenant, tmp_path: Path) -> None:
    """The file that lies beside an export tells which entry somebody changed with care."""
    file = tmp_path / "log.ndjson"
    admin.run("audit", "export", str(file))
    key = admin.run("audit", "key", "--tenant", tenant.name).out.strip()
    lines = file.read_bytes().splitlines(keepends=True)
    entry = json.loads(lines[2])["entry"]
    lines[2] = lines[2].replace(entry["trace_id"].encode(), b"0" * 32)
    file.write_bytes(b"".join(lines))

    verified = subprocess.run([VERIFIER, str(file), "--key", key], capture_output=True, text=True, check=False)

    assert verified.returncode == 1
    assert f"first bad entry: index 1, entry_id {entry['entry_id']}" in verified.stdout


@pytest.mark.usefixtures("recorded")
def test_an_export_goes_on_when_the_connection_breaks(
    service: Service, admin: Shell, tenant: Tenant, tmp_path: Path
) -> None:
    """What had arrived stays, the rest is asked for again, and the whole is intact."""
    for _ in range(4):
        assert admin.run("audit", "export").code == Exit.OK
    file = tmp_path / "log.ndjson"
    key = admin.run("audit", "key", "--tenant", tenant.name).out.strip()

    with cutting(service.url, "/audit/export", 4_000) as cutter:
        told = admin.having(URL=cutter.url).run("audit", "export", str(file))

    verified = subprocess.run([VERIFIER, str(file), "--key", key], capture_output=True, text=True, check=False)
    assert (told.code, cutter.cuts) == (Exit.OK, 1), told.err
    assert (verified.returncode, verified.stdout.split(":")[0]) == (0, "INTACT"), verified.stdout


def test_a_part_of_the_log_is_exported_in_other_forms(admin: Shell, recorded: dict[str, Any]) -> None:
    """CSV and OCSF of one kind of entries, and lines that keep the hashes of the others."""
    only = ("--action", "quota.created")
    people = admin.run("audit", "export", "--format", "csv", *only).out
    tools = admin.run("audit", "export", "--format", "ocsf", *only).out
    lines = admin.run("audit", "export", *only).out

    assert people.startswith("sequence,occurred_at,action")
    assert recorded["entry_id"] in people
    assert recorded["entry_id"] in [json.loads(line)["metadata"]["uid"] for line in tools.splitlines()]
    assert {key for line in lines.splitlines() for key in json.loads(line)} >= {"entry", "withheld"}


def test_a_governor_erases_a_reason(admin: Shell, tenant: Tenant) -> None:
    """With a reason of its own; the entry then shows none, and nobody else can do it."""
    created = admin.run("quota", "create", "erased", *LIMITS, "--reason", "a name", "--output", "json").document
    entry_id = created["last_change"]["audit_entry_id"]
    governor = tenant.speaking("Governor")

    assert admin.run("audit", "erase", entry_id, "--reason", "so").code == Exit.AUTH
    assert governor.run("audit", "erase", entry_id).code != Exit.OK
    done = governor.run("audit", "erase", entry_id, "--reason", "asked for by the person")

    assert (done.code, "reason" in done.out) == (Exit.OK, True), done.err
    assert admin.run("quota", "show", created["quota_id"], "--output", "json").document["last_change"]["reason"] is None


def test_an_export_that_cannot_be_written_leaves_nothing(admin: Shell, tmp_path: Path) -> None:
    """Exit code 1, and neither the file nor a part of it."""
    ended = admin.run("audit", "export", str(tmp_path / "missing" / "log.ndjson"))

    assert ended.code == Exit.ERROR
    assert list(tmp_path.iterdir()) == []


def test_a_reader_of_quotas_reads_no_log(tenant: Tenant) -> None:
    """`orch:audit` is for auditors and administrators."""
    assert tenant.speaking("Viewer").run("audit", "list").code == Exit.AUTH


def test_what_an_operator_does_is_in_the_platforms_log(service: Service, tenant: Tenant) -> None:
    """A governor reads there who made, disabled and rotated what, and why nobody else could have."""
    made = service.new_client(tenant.name, "Viewer")
    service.shell.run("client", "disable", made["client_id"])
    rotated = service.shell.run("key", "rotate", "--output", "json").document
    governor = tenant.speaking("Governor").having(QUOTA_REASON="yearly look")

    def done_to(resource_id: str) -> list[tuple[str, str]]:
        listed = governor.run("audit", "list", "--platform", "--resource-id", resource_id, "--output", "json")
        return [(entry["action"], entry["actor"]["type"]) for entry in listed.document["items"]]

    wait_until(lambda: bool(done_to(rotated["kid"])))
    assert done_to(rotated["kid"]) == [("key.rotated", "operator")]
    assert done_to(made["client_id"]) == [("client.created", "operator"), ("client.disabled", "operator")]


def test_a_log_that_was_changed_verifies_with_one(furnished_shell: Callable[[], Shell]) -> None:
    """Whoever owns the database can change a row, and is found out."""
    shell = furnished_shell()
    with serving(shell) as service:
        tenant = service.new_tenant("Admin")
        admin = tenant.speaking("Admin")
        admin.run("quota", "create", "totals", *LIMITS, "--reason", "sale")
        wait_until(lambda: bool(admin.run("audit", "list", "--output", "json").document["items"]))

        asyncio.run(change_a_row(Path(shell.settings["JOBENGINE_DATA_DIR"]), tenant.name))
        ended = admin.run("audit", "verify")

    assert ended.code == Exit.ERROR
    assert ended.out.startswith("TAMPERED: ")
    assert "first bad 0" in ended.out


async def change_a_row(data_dir: Path, tenant_id: str) -> None:
    """Say of the first entry that somebody else did it."""
    change = b"""
        update jobengine.audit_entries set actor_id = 'mallory' where (tenant_id, entry_id) in
            (select tenant_id, entry_id from jobengine.audit_tree where tenant_id = %(tenant_id)s and sequence = 0)
    """
    async with (
        EmbeddedPostgres(data_dir) as conninfo,
        await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection,
    ):
        assert (await connection.execute(change, {"tenant_id": tenant_id})).rowcount == 1
