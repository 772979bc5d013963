"""``jobengine serve``: how it starts, what it refuses, and how it ends."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from tests.cli.processes import Service, Shell, serving, wait_for_line, wait_until

from jobengine.cli.exits import Exit

HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


def answer_to(service: Service, *pieces: bytes) -> bytes:
    """Send bytes as they are and return the first line of the answer."""
    port = int(service.shell.settings["JOBENGINE_PORT"])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except OSError:
            pass  # the server has closed its end and may have answered before
        return connection.recv(4096).split(b"\r\n")[0]


@pytest.mark.parametrize(
    "pieces",
    [
        [HEAD + b"A: " + b"x" * 270_000 + b"\r\n\r\n"],
        [HEAD + b"".join(b"A%d: %s\r\n" % (number, b"x" * 100) for number in range(2_600)) + b"\r\n"],
        [b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"],
    ],
    ids=["one long header", "many headers", "a long path"],
)
def test_a_head_over_its_bound_is_refused_without_disturbing_others(service: Service, pieces: list[bytes]) -> None:
    """431 for the one who sends it, while a connection that was open before goes on."""
    with httpx2.Client(base_url=service.url, trust_env=False) as other:
        assert other.get("/healthz").status_code == 200

        assert answer_to(service, *pieces) == b"HTTP/1.1 431 Request Header Fields Too Large"

        assert other.get("/healthz").status_code == 200


@pytest.mark.parametrize("start", [HEAD + b"A: ", HEAD], ids=["a value", "a name"])
def test_a_header_without_an_end_is_cut_off(service: Service, start: bytes) -> None:
    """The parser is not fed for ever."""
    with socket.create_connection(("127.0.0.1", int(service.shell.settings["JOBENGINE_PORT"])), timeout=30) as endless:
        endless.sendall(start)
        with pytest.raises(OSError, match=r"reset|pipe"):
            endless.sendall(b"x" * 64_000_000)


def test_a_head_within_its_bound_is_read(service: Service) -> None:
    """60 kB of headers are nobody's fault."""
    assert answer_to(service, HEAD + b"A: " + b"x" * 60_000 + b"\r\n\r\n") == b"HTTP/1.1 200 OK"


def test_an_answer_does_not_name_the_server(service: Service) -> None:
    """Nobody needs to know what it is made of."""
    with httpx2.Client(base_url=service.url, trust_env=False) as http:
        assert "server" not in http.get("/healthz").headers


def test_a_port_that_is_taken_is_told_before_anything_starts(service: Service, new_shell: Callable[[], Shell]) -> None:
    """One line, exit code 1, and no database was made."""
    shell = new_shell().having(PORT=service.shell.settings["JOBENGINE_PORT"])

    ended = shell.run("serve")

    assert ended.code == Exit.ERROR
    assert ended.err.startswith(f"error: cannot listen on {service.url}: Address already in use\n")
    assert not Path(shell.settings["JOBENGINE_DATA_DIR"]).exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "many"),
        ("ISSUER", "not-a-url"),
        ("HOST", "0.0.0.0"),  # noqa: S104 - it is refused
        ("CONFIG", "/nowhere/jobs.toml"),
        ("BACKFILL_SUPPRESSION_WINDOW", "a day"),
    ],
)
def test_a_setting_that_cannot_be_is_named(new_shell: Callable[[], Shell], name: str, value: str) -> None:
    """Exit code 2 and one sentence that names the setting."""
    ended = new_shell().having(**{name: value}).run("serve")

    assert ended.code == Exit.USAGE
    assert f"JOBENGINE_{name}" in ended.err
    assert "Traceback" not in ended.err


def test_a_wrong_master_key_stops_the_start(service: Service, tmp_path: Path) -> None:
    """Neither garbage nor the key of another database is taken."""
    garbage = tmp_path / "garbage"
    garbage.write_text("no key")
    port = {"PORT": "0"}

    told = [
        service.shell.having(**port, MASTER_KEY_FILE=str(file)).run("serve") for file in (garbage, tmp_path / "another")
    ]

    assert [ended.code for ended in told] == [Exit.USAGE, Exit.USAGE]


def test_a_database_that_cannot_be_reached_stops_the_start(new_shell: Callable[[], Shell]) -> None:
    """One line, exit code 1."""
    ended = new_shell().having(DATABASE_URL="postgresql://ops:hunter2@127.0.0.1:1/none").run("serve")

    assert ended.code == Exit.ERROR
    assert ended.err.startswith("error: the database cannot be used: ")
    assert "hunter2" not in ended.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_and_its_database(new_shell: Callable[[], Shell], number: signal.Signals) -> None:
    """Exit code 0, nothing but the one line said, and no PostgreSQL left."""
    shell = new_shell()
    with serving(shell) as service:
        service.process.send_signal(number)
        _, said = service.process.communicate(timeout=60)

    assert (service.process.returncode, said) == (Exit.OK, b"")
    assert not Path(shell.settings["JOBENGINE_DATA_DIR"], "pg", "postmaster.pid").exists()


@pytest.mark.parametrize("arguments", [[], ["--workers", "2"]], ids=["one process", "two workers"])
def test_a_signal_during_the_start_ends_it_in_order(new_shell: Callable[[], Shell], arguments: list[str]) -> None:
    """A server that has only begun to make its database leaves none running behind."""
    shell = new_shell()
    process = shell.start("serve", *arguments)
    data = Path(shell.settings["JOBENGINE_DATA_DIR"])
    wait_until((data / "pg").exists)

    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=90)

    assert (process.returncode, b"Traceback" in said) == (Exit.OK, False)
    assert not (data / "pg" / "postmaster.pid").exists()


def test_several_workers_share_the_port_and_survive_a_loss(furnished_shell: Callable[[], Shell]) -> None:
    """A worker that is killed is replaced; SIGTERM ends them all with exit code 0."""
    with serving(furnished_shell(), "--workers", "2") as service:
        first = workers_of(service.process)
        assert len(first) == 2
        os.kill(first[0], signal.SIGKILL)
        wait_until(lambda: len(workers_of(service.process)) == 2 and first[0] not in workers_of(service.process))
        assert ready(service.url)
        service.process.send_signal(signal.SIGTERM)
        service.process.communicate(timeout=60)

    assert service.process.returncode == Exit.OK


def test_workers_end_when_their_supervisor_is_killed(furnished_shell: Callable[[], Shell]) -> None:
    """Nobody would ever end them otherwise, and the port would stay taken."""
    with serving(furnished_shell(), "--workers", "2") as service:
        workers = workers_of(service.process)
        service.process.kill()
        service.process.wait()

        wait_until(lambda: not any(alive(worker) for worker in workers))


def test_workers_take_each_others_tokens(furnished_shell: Callable[[], Shell]) -> None:
    """Whichever process answers, a token of any of them is good."""
    with serving(furnished_shell(), "--workers", "2") as service:
        reader = service.new_tenant("Viewer").speaking("Viewer")

        assert [reader.run("quota", "list").code for _ in range(4)] == [Exit.OK] * 4


def test_a_second_start_keeps_what_the_first_one_stored(new_shell: Callable[[], Shell]) -> None:
    """Clients made before a restart are clients after it."""
    shell: Shell = new_shell()
    with serving(shell) as service:
        tenant = service.new_tenant("Viewer")
    with serving(shell):
        assert tenant.speaking("Viewer").run("quota", "list").code == Exit.OK


def test_the_ready_line_is_said_when_requests_are_answered(new_shell: Callable[[], Shell]) -> None:
    """Whoever waits for the line may call at once."""
    shell = new_shell()
    process = shell.start("serve")
    assert process.stderr is not None
    url = f"http://127.0.0.1:{shell.settings['JOBENGINE_PORT']}"
    try:
        wait_for_line(process.stderr, f"jobengine serves on {url}")
        assert ready(url)
    finally:
        process.terminate()
        process.communicate(timeout=60)


def ready(url: str) -> bool:
    """Tell whether a server is ready."""
    with httpx2.Client(base_url=url, trust_env=False, timeout=30) as http:
        return http.get("/readyz").status_code == 200


def workers_of(process: "subprocess.Popen[bytes]") -> list[int]:
    """Return the processes that serve under a supervisor."""
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes()
        except (OSError, IndexError):
            continue
        if parent == process.pid and b"spawn_main" in command:
            found.append(int(entry.name))
    return sorted(found)


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
