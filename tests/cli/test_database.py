"""Commands on the database itself: they work while a server runs, and without one."""

from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from tests.cli.processes import Service, Shell, serving, wait_until

from jobengine.audit.checkpoint import NoteError, parse_verifier_key, verify
from jobengine.cli.exits import Exit
from jobengine.cli.installation import operator
from jobengine_verify.notes import parse_key


@pytest.fixture(scope="module")
def offline(new_shell: Callable[[], Shell]) -> Shell:
    """A data folder that no server uses."""
    return new_shell()


def test_migrate_makes_the_schema_and_repeats_without_effect(offline: Shell) -> None:
    """The revision is the same after the first and the second time."""
    first = offline.run("migrate", "--output", "json")
    second = offline.run("migrate", "--output", "json")

    assert (first.code, first.err) == (Exit.OK, "")
    assert first.document == second.document
    assert Path(offline.settings["JOBENGINE_DATA_DIR"], "master.key").stat().st_mode & 0o777 == 0o600


def test_a_client_made_without_a_server_can_sign_in_later(new_shell: Callable[[], Shell]) -> None:
    """With ``--json`` standard output is one object on one line."""
    shell = new_shell()
    made = shell.run("client", "create", "early", "--tenant", "acme", "--role", "Orch.Viewer", "--json")
    assert len(made.out.splitlines()) == 1

    with serving(shell) as service:
        reader = shell.having(
            URL=service.url, CLIENT_ID=made.document["client_id"], CLIENT_SECRET=made.document["client_secret"]
        )
        assert reader.run("quota", "list").code == Exit.OK


def test_a_client_is_shown_with_what_to_export(service: Service) -> None:
    """People read that the secret is shown this once."""
    made = service.shell.run("client", "create", "night", "--tenant", "shown", "--role", "Orch.Admin", "--owner", "ada")

    assert "client night of ada, tenants: shown, roles: Orch.Admin" in made.out
    assert "export JOBENGINE_CLIENT_SECRET=jes_" in made.out
    assert "shown this once" in made.out


def test_a_listed_client_shows_no_secret(service: Service) -> None:
    """The list names every client and keeps its secret."""
    made = service.new_client("listed", "Viewer")

    ended = service.shell.run("client", "list", "--output", "json")

    (found,) = [client for client in ended.document["items"] if client["client_id"] == made["client_id"]]
    assert found["roles"] == ["Orch.Viewer"]
    assert made["client_secret"] not in ended.out
    assert made["client_id"] in service.shell.run("client", "list").out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--tenant", "Not A Tenant", "--role", "Orch.Admin"],
        ["--tenant", "acme", "--role", "Orch.King"],
        ["--tenant", "acme"],
        ["--role", "Orch.Admin"],
        ["--tenant", "acme", "--role", "Orch.Admin", "--owner", " "],
    ],
    ids=" ".join,
)
def test_a_client_that_cannot_be_ends_with_usage(service: Service, arguments: list[str]) -> None:
    """Exit code 2, and nothing is made."""
    ended = service.shell.run("client", "create", "nobody", *arguments)

    assert (ended.code, ended.out) == (Exit.USAGE, "")


def test_a_disabled_client_gets_no_token(service: Service) -> None:
    """Its secret is refused at once; disabling it again changes nothing; an unknown one is not found."""
    made = service.new_client("leaving", "Viewer")
    leaver = service.shell.having(URL=service.url, CLIENT_ID=made["client_id"], CLIENT_SECRET=made["client_secret"])
    assert leaver.run("quota", "list").code == Exit.OK

    first = service.shell.run("client", "disable", made["client_id"])
    again = service.shell.run("client", "disable", made["client_id"])

    assert first.out == f"{made['client_id']} is disabled\n"
    assert again.out == f"{made['client_id']} was disabled already\n"
    assert leaver.run("quota", "list").code == Exit.AUTH
    assert service.shell.run("client", "disable", "jec_nobody").code == Exit.NOT_FOUND


def test_a_rotated_key_is_published_beside_the_old_one(service: Service) -> None:
    """The running server shows both within a moment, and tokens keep working."""
    tenant = service.new_tenant("Viewer")
    rotated = service.shell.run("key", "rotate", "--output", "json").document

    def published() -> set[str]:
        with httpx2.Client(base_url=service.url, trust_env=False) as http:
            return {key["kid"] for key in http.get("/.well-known/jwks.json").json()["keys"]}

    wait_until(lambda: rotated["kid"] in published())
    assert len(published()) >= 2
    assert tenant.speaking("Viewer").run("quota", "list").code == Exit.OK


def test_the_key_of_a_log_is_one_vkey_line(service: Service) -> None:
    """Each log has a name of its own; a tenant that does not exist has none."""
    tenant = service.new_tenant("Viewer")

    of_tenant = service.shell.run("audit", "key", "--tenant", tenant.name).out
    of_platform = service.shell.run("audit", "key", "--platform").out

    assert len(of_tenant.splitlines()) == len(of_platform.splitlines()) == 1
    assert parse_key(of_tenant.strip())
    assert of_tenant.split("+")[0] != of_platform.split("+")[0]
    assert service.shell.run("audit", "key", "--tenant", "nobody").code == Exit.NOT_FOUND


def test_a_rotated_key_of_checkpoints_signs_every_log(furnished_shell: Callable[[], Shell]) -> None:
    """Quiet logs too; all keys are shown with their times, and old checkpoints verify with theirs."""
    shell = furnished_shell()
    with serving(shell) as service:
        tenant = service.new_tenant("Auditor")
        auditor, of_log = tenant.speaking("Auditor"), ("--tenant", tenant.name)
        key = auditor.run("audit", "key", *of_log).out.strip()
        # One token for all that is read: each grant would be an entry, and the log would not be quiet.
        token = auditor.run("token", "--scope", "orch:audit").out.strip()
        old = read(token, service, "checkpoint")
        rotated = shell.run("key", "rotate", "--checkpoints", "--output", "json").document

        wait_until(lambda: read(token, service, "verifier-key").strip() != key)
        new = read(token, service, "verifier-key").strip()
        wait_until(lambda: is_signed(read(token, service, "checkpoint"), new))
        shown = shell.run("audit", "key", *of_log, "--output", "json").document

    assert is_signed(old, key)
    assert shown["verifier_key"] == new
    assert [one["verifier_key"] for one in shown["keys"]] == [key, new]
    assert shown["keys"][0]["until"] == shown["keys"][1]["active_from"] == rotated["active_from"]
    assert new in shell.run("audit", "key", *of_log, "--all").out


def read(token: str, service: Service, path: str) -> str:
    """Return a text of the tenant's log."""
    with httpx2.Client(base_url=service.url, trust_env=False) as http:
        answer = http.get(f"/api/v1/audit/{path}", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200, answer.text
    return answer.text


def is_signed(note: str, key: str) -> bool:
    try:
        return bool(verify(note, parse_verifier_key(key)))
    except NoteError:
        return False


def test_a_database_that_is_not_there_is_told_in_one_line(offline: Shell) -> None:
    """Exit code 10, no stack trace, and no password."""
    away = offline.having(DATABASE_URL="postgresql://ops:hunter2@127.0.0.1:1/none")

    ended = away.run("client", "list")

    assert ended.code == Exit.RETRY_LATER
    assert "Traceback" not in ended.err
    assert "hunter2" not in ended.err


def test_the_operator_is_whom_the_system_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment says about the user does not count."""
    before = operator()

    monkeypatch.setenv("LOGNAME", "somebody-else")
    monkeypatch.setenv("USER", "somebody-else")

    assert operator() == before != "somebody-else"
