"""Logs and witnesses as processes of their own, over HTTP: what only grows is cosigned, and nothing else ever."""

import asyncio
import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from tests.cli.processes import Service, Shell, free_port, serving, wait_for_line, wait_until

from jobengine.audit.checkpoint import COSIGNATURE, parse_verifier_key, verify
from jobengine.audit.witness import read_cosignature
from jobengine.cli.exits import Exit
from jobengine.storage.embedded import EmbeddedPostgres

NAME = "witness.example/w1"


@dataclass
class Watcher:
    """A witness that runs."""

    url: str
    key: str
    process: "subprocess.Popen[bytes]"


@contextmanager
def witnessing(shell: Shell, folder: Path, port: int) -> Iterator[Watcher]:
    """Run a witness until the block ends."""
    options = ("--logs", str(folder / "logs"), "--name", NAME, "--port", str(port))
    process = shell.start("witness", str(folder / "state"), *options)
    assert process.stderr is not None
    try:
        key = process.stderr.readline().decode().removeprefix("witness key: ").strip()
        wait_for_line(process.stderr, f"witness listens on http://127.0.0.1:{port}")
        yield Watcher(f"http://127.0.0.1:{port}", key, process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def ask(shell: Shell, watcher: Watcher) -> tuple[int, dict[str, str]]:
    """Show all logs to the witness; return the exit code, and the outcome of each log by its origin."""
    ended = shell.having(WITNESSES=f"{watcher.url} {watcher.key}").run("audit", "witness", "--output", "json")
    return ended.code, {item["log"]: item["outcome"] for item in json.loads(ended.out or '{"items": []}')["items"]}


def read(service: Service, shell: Shell, path: str) -> httpx2.Response:
    token = shell.run("token", "--scope", "orch:audit").out.strip()
    with httpx2.Client(base_url=service.url, trust_env=False) as http:
        return http.get(f"/api/v1/audit/{path}", headers={"Authorization": f"Bearer {token}"})


def grow(service: Service, shell: Shell) -> None:
    """Let the log grow by the grant of a token or more."""
    before = read(service, shell, "checkpoint").text
    wait_until(lambda: read(service, shell, "checkpoint").text.split("\n")[1] != before.split("\n")[1])


def size_of(note: str, key: str) -> int:
    return verify(note, parse_verifier_key(key.strip())).size


def set_back(data: Path, tenant_id: str, rows: dict[str, Any] | None) -> dict[str, Any]:
    """Return the stored head of a log; or put *rows* in its place, as a restored backup does."""

    async def work() -> dict[str, Any]:
        async with EmbeddedPostgres(data) as conninfo, await psycopg.AsyncConnection.connect(conninfo) as connection:
            await connection.execute("set search_path = jobengine")
            columns = "size, frontier, root_hash, checkpoint, anchored_size, anchored_in"
            where = (tenant_id,)
            if rows is not None:
                changes = ", ".join(f"{name} = %({name})s" for name in rows)
                await connection.execute(
                    f"update audit_logs set {changes} where tenant_id = %(log)s".encode(), {**rows, "log": tenant_id}
                )
            cursor = connection.cursor(row_factory=psycopg.rows.dict_row)
            await cursor.execute(f"select {columns} from audit_logs where tenant_id = %s".encode(), where)
            [found] = await cursor.fetchall()
            return found

    return asyncio.run(work())


def test_a_log_is_cosigned_as_it_grows_and_never_set_back(new_shell: Callable[[], Shell], tmp_path: Path) -> None:
    """The witness remembers through kill -9 what the log forgot; its line stands beneath the checkpoint."""
    shell, port = new_shell(), free_port()
    data = Path(shell.settings["JOBENGINE_DATA_DIR"])
    with serving(shell) as service:
        tenant = service.new_tenant("Auditor")
        auditor = tenant.speaking("Auditor")
        keys = [shell.run("audit", "key", *log).out for log in (("--tenant", tenant.name), ("--platform",))]
        (tmp_path / "logs").write_text("# ours\n" + "".join(keys))
        origin = keys[0].split("+")[0]
        wait_until(lambda: "\n0\n" not in read(service, auditor, "checkpoint").text)
        old = set_back(data, tenant.name, None)
        grow(service, auditor)

        with witnessing(shell, tmp_path, port) as watcher:
            assert ask(shell, watcher) == (Exit.OK, {key.split("+")[0]: "cosigned" for key in keys})
            first = read(service, auditor, "checkpoint/witnessed").text
            size = size_of(first, keys[0])
            assert read_cosignature(first.partition("\n\n")[2], first, parse_verifier_key(watcher.key, COSIGNATURE))

            watcher.process.kill()
        grow(service, auditor)

        with witnessing(shell, tmp_path, port) as watcher:
            code, outcomes = ask(shell, watcher)
            assert (code, outcomes[origin]) == (Exit.OK, "cosigned")
            assert size_of(read(service, auditor, "checkpoint/witnessed").text, keys[0]) > size

    set_back(data, tenant.name, old)
    with witnessing(shell, tmp_path, port) as watcher:
        code, outcomes = ask(shell, watcher)
        assert (code, outcomes[origin]) == (Exit.ERROR, "contradicted")


def test_a_witness_that_is_away_or_knows_no_log_is_told_apart(new_shell: Callable[[], Shell], tmp_path: Path) -> None:
    """Away: come again. A log it was not told of: refused. Neither is tampering."""
    shell, port = new_shell(), free_port()
    with serving(shell) as service:
        tenant = service.new_tenant("Auditor")
        wait_until(lambda: "\n0\n" not in read(service, tenant.speaking("Auditor"), "checkpoint").text)
        (tmp_path / "logs").write_text("")
        with witnessing(shell, tmp_path, port) as watcher:
            code, outcomes = ask(shell, watcher)
        assert (code, set(outcomes.values())) == (Exit.REFUSED, {"refused"})
        code, outcomes = ask(shell, watcher)
        assert (code, set(outcomes.values())) == (Exit.RETRY_LATER, {"unreachable"})
        assert read(service, tenant.speaking("Auditor"), "checkpoint/witnessed").status_code == 404


@pytest.mark.parametrize("witnesses", ["", "nonsense", "http://127.0.0.1:1 x+y+z"])
def test_witnesses_that_cannot_be_meant_are_a_matter_of_usage(new_shell: Callable[[], Shell], witnesses: str) -> None:
    """None, half a pair, or no vkey."""
    assert new_shell().having(WITNESSES=witnesses).run("audit", "witness").code == Exit.USAGE


def test_a_folder_serves_one_witness_at_a_time(new_shell: Callable[[], Shell], tmp_path: Path) -> None:
    """Two of them could sign two trees."""
    shell, port = new_shell(), free_port()
    (tmp_path / "logs").write_text("")
    with witnessing(shell, tmp_path, port) as watcher:
        options = ("--logs", str(tmp_path / "logs"), "--name", NAME, "--port", str(free_port()))
        assert shell.run("witness", str(tmp_path / "state"), *options).code == Exit.ERROR
        answers = [
            httpx2.post(f"{watcher.url}/{path}", content=body, trust_env=False).status_code
            for path, body in (("add-checkpoint", b"x"), ("other", b"x"), ("add-checkpoint", bytes(70_000)))
        ]
        assert answers == [400, 404, 413]
