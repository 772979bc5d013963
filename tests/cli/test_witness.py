"""Logs and witnesses as processes of their own, over HTTP: what only grows is cosigned, and nothing else ever."""

import asyncio
import json
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
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


def token_of(service: Service, client: Mapping[str, str]) -> str:
    """Get an access token; its grant is one more entry in the tenant's log."""
    with httpx2.Client(base_url=service.url, trust_env=False, timeout=60) as http:
        form = {"grant_type": "client_credentials", "scope": "orch:audit"}
        answer = http.post("/oauth2/token", data=form, auth=(client["client_id"], client["client_secret"]))
    assert answer.status_code == 200, answer.text
    return answer.json()["access_token"]


def read(service: Service, token: str, path: str) -> httpx2.Response:
    with httpx2.Client(base_url=service.url, trust_env=False, timeout=60) as http:
        return http.get(f"/api/v1/audit/{path}", headers={"Authorization": f"Bearer {token}"})


def grow(service: Service, client: Mapping[str, str]) -> str:
    """Let the log grow by the grant of a token, wait for its place, and return the token."""
    token = token_of(service, client)
    before = read(service, token, "checkpoint").text.split("\n")[1]
    token = token_of(service, client)
    wait_until(lambda: read(service, token, "checkpoint").text.split("\n")[1] != before)
    return token


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


def test_a_log_is_cosigned_as_it_grows_and_never_set_back(furnished_shell: Callable[[], Shell], tmp_path: Path) -> None:
    """The witness remembers through kill -9 what the log forgot; its line stands beneath the checkpoint."""
    shell, port = furnished_shell(), free_port()
    data = Path(shell.settings["JOBENGINE_DATA_DIR"])
    with serving(shell) as service:
        tenant = service.new_tenant("Auditor")
        auditor = tenant.clients["Auditor"]
        keys = [shell.run("audit", "key", *log).out for log in (("--tenant", tenant.name), ("--platform",))]
        (tmp_path / "logs").write_text("# ours\n" + "".join(keys))
        origin = keys[0].split("+")[0]
        grow(service, auditor)
        old = set_back(data, tenant.name, None)
        token = grow(service, auditor)

        with witnessing(shell, tmp_path, port) as watcher:
            assert ask(shell, watcher) == (Exit.OK, {key.split("+")[0]: "cosigned" for key in keys})
            first = read(service, token, "checkpoint/witnessed").text
            assert read_cosignature(first.partition("\n\n")[2], first, parse_verifier_key(watcher.key, COSIGNATURE))
            watcher.process.kill()
        token = grow(service, auditor)
        with witnessing(shell, tmp_path, port) as watcher:
            assert ask(shell, watcher)[1][origin] == "cosigned"
            assert size_of(read(service, token, "checkpoint/witnessed").text, keys[0]) > size_of(first, keys[0])

    set_back(data, tenant.name, old)
    with witnessing(shell, tmp_path, port) as watcher:
        code, outcomes = ask(shell, watcher)
        assert (code, outcomes[origin]) == (Exit.ERROR, "contradicted")


def test_a_witness_that_is_away_or_knows_no_log_is_told_apart(
    furnished_shell: Callable[[], Shell], tmp_path: Path
) -> None:
    """Away: come again. A log it was not told of: refused. Neither is tampering."""
    shell, port = furnished_shell(), free_port()
    with serving(shell) as service:
        tenant = service.new_tenant("Auditor")
        token = grow(service, tenant.clients["Auditor"])
        (tmp_path / "logs").write_text("")
        with witnessing(shell, tmp_path, port) as watcher:
            code, outcomes = ask(shell, watcher)
        assert (code, set(outcomes.values())) == (Exit.REFUSED, {"refused"})
        code, outcomes = ask(shell, watcher)
        assert (code, set(outcomes.values())) == (Exit.RETRY_LATER, {"unreachable"})
        assert read(service, token, "checkpoint/witnessed").status_code == 404


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
