"""The private port, workers that count together, and what a server says on standard error, with real processes."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.cli.processes import Service, Shell, free_port, serving, wait_until

from jobengine.cli.exits import Exit

ADMISSIONS = 24


def sample(url: str, name: str, **labels: str) -> float:
    """Return the sum of the samples of this name with these labels."""
    with httpx2.Client(trust_env=False, timeout=30) as http:
        text = http.get(f"{url}/metrics").raise_for_status().text
    found = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return sum(item.value for item in found if item.name == name and labels.items() <= item.labels.items())


def private_url(service: Service) -> str:
    """Where the tenants are told apart."""
    return f"http://127.0.0.1:{service.shell.settings['JOBENGINE_METRICS_PORT']}"


def admit(service: Service, tenant: str, times: int) -> None:
    """Ask for admissions, each over a connection of its own, so that every worker gets some."""
    client = service.new_clients([tenant], "Worker")["Worker"]
    shell = service.shell.having(URL=service.url, CLIENT_ID=client["client_id"], CLIENT_SECRET=client["client_secret"])
    bearer = {"Authorization": f"Bearer {shell.run('token', '--scope', 'orch:admit').out.strip()}"}
    for _ in range(times):
        with httpx2.Client(trust_env=False, timeout=30) as http:
            http.post(f"{service.url}/api/v1/admissions", json={"job_type": "scan"}, headers=bearer)


@pytest.mark.parametrize("arguments", [[], ["--workers", "2"]], ids=["one process", "two workers"])
def test_the_private_port_tells_tenants_apart_and_the_public_one_does_not(
    furnished_shell: Callable[[], Shell], arguments: list[str]
) -> None:
    """However many workers answer, what they count adds up, and both ports end with the server."""
    with serving(furnished_shell().having(METRICS_PORT=str(free_port())), *arguments) as service:
        admit(service, "acme", ADMISSIONS)

        assert sample(private_url(service), "jobengine_tenant_admissions_total", tenant="acme") == ADMISSIONS
        for url in (service.url, private_url(service)):
            assert sample(url, "jobengine_admissions_total") == ADMISSIONS
            assert sample(url, "jobengine_database_up") == 1
        assert sample(service.url, "jobengine_tenant_admissions_total") == 0
        service.process.send_signal(signal.SIGTERM)
        service.process.communicate(timeout=60)

    assert service.process.returncode == Exit.OK
    with pytest.raises(httpx2.ConnectError):
        sample(private_url(service), "jobengine_database_up")


def test_what_a_lost_worker_counted_stays_counted(furnished_shell: Callable[[], Shell], tmp_path: Path) -> None:
    """Counters never go back, connections of the dead are none, and the shared folder goes with the server."""
    shell = Shell({**furnished_shell().settings, "TMPDIR": str(tmp_path)})
    with serving(shell, "--workers", "2") as service:
        [folder] = tmp_path.glob("jobengine-metrics-*")
        admit(service, "acme", ADMISSIONS)
        pids = live_files(folder)
        assert len(pids) == 2

        os.kill(min(pids), signal.SIGKILL)
        wait_until(lambda: min(pids) not in live_files(folder) and len(live_files(folder)) == 2)

        assert sample(service.url, "jobengine_admissions_total") == ADMISSIONS
        assert 0 < sample(service.url, "jobengine_database_connections") <= 32

    assert list(tmp_path.glob("jobengine-metrics-*")) == []


def live_files(folder: Path) -> set[int]:
    """The processes whose gauges count."""
    return {int(file.stem.rpartition("_")[2]) for file in folder.glob("gauge_live*.db")}


def test_a_private_port_that_is_taken_is_named(service: Service, new_shell: Callable[[], Shell]) -> None:
    """One line, exit code 1, and nothing was started."""
    shell = new_shell().having(METRICS_PORT=service.shell.settings["JOBENGINE_PORT"])

    ended = shell.run("serve")

    assert ended.code == Exit.ERROR
    assert "Address already in use" in ended.err
    assert "JOBENGINE_METRICS_PORT" in ended.err
    assert not Path(shell.settings["JOBENGINE_DATA_DIR"]).exists()


def test_a_server_logs_requests_and_a_command_says_nothing(furnished_shell: Callable[[], Shell]) -> None:
    """Standard error of a server is JSON lines for machines; that of a command is for its user."""
    with serving(furnished_shell().having(LOG_LEVEL="info")) as service:
        with httpx2.Client(base_url=service.url, trust_env=False, timeout=30) as http:
            http.get("/api/v1/quotas")
        made = service.shell.run("client", "create", "quiet", "--tenant", "acme", "--role", "Orch.Viewer", "--json")
        service.process.send_signal(signal.SIGTERM)
        _, err = service.process.communicate(timeout=60)

    assert made.err == ""
    [line] = [json.loads(text) for text in err.splitlines()]
    assert (line["event"], line["route"], line["status"]) == ("request.done", "/api/v1/quotas", 401)


def test_a_level_that_does_not_exist_is_named(new_shell: Callable[[], Shell]) -> None:
    """Exit code 2 and one sentence that names the setting."""
    ended = new_shell().having(LOG_LEVEL="loud").run("serve")

    assert ended.code == Exit.USAGE
    assert "JOBENGINE_LOG_LEVEL" in ended.err
