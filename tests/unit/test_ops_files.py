"""The files by which the service is run and watched: what they name is there, and what is there they name."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from jobengine.audit.actions import Action
from jobengine.metrics import REGISTRY
from jobengine.settings import PREFIX, _Environment
from jobengine.storage.work import Work
from jobengine.web.metrics import _found

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "ops" / "grafana" / "jobengine.json"
ALERTS = ROOT / "ops" / "alerts.yml"
OPERATIONS = ROOT / "docs" / "operations.md"
DOCKERFILE = ROOT / "Dockerfile"
SERIES = re.compile(r"\bjobengine_\w+")
PARTS = re.compile(r"_(total|bucket|sum|count)\Z")


def exported() -> set[str]:
    """Return every metric by its name as Prometheus sees it."""
    metrics = (*REGISTRY.collect(), *_found(Work({}, 0, 0.0, 0, 0, 0)))
    ours = (metric for metric in metrics if metric.name.startswith("jobengine_"))
    return {f"{metric.name}_total" if metric.type == "counter" else metric.name for metric in ours}


def base(series: str) -> str:
    """Return the metric that a series belongs to."""
    return series if series in exported() else PARTS.sub("", series)


def expressions() -> list[str]:
    """Every PromQL expression of the dashboard and of the alerts."""
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    rules = [rule for group in yaml.safe_load(ALERTS.read_text("utf-8"))["groups"] for rule in group["rules"]]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())] + [
        rule["expr"] for rule in rules
    ]


def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, continued lines joined, comments left out."""
    text = "\n".join(line for line in DOCKERFILE.read_text("utf-8").splitlines() if not line.startswith("#"))
    lines = filter(None, (line.strip() for line in text.replace("\\\n", " ").splitlines()))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def last_stage() -> list[tuple[str, str]]:
    found = instructions()
    start = max(number for number, (word, _) in enumerate(found) if word == "FROM")
    return found[start:]


def pins(name: str) -> dict[str, tuple[str, frozenset[str]]]:
    """The packages of a lock: version and hashes."""
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for block in re.split(r"\n(?=\w)", (ROOT / name).read_text("utf-8")):
        if pinned := re.match(r"([\w.-]+)(?:\[[^]]*\])?==(\S+)", block):
            found[pinned[1]] = (pinned[2], frozenset(re.findall(r"--hash=(\S+)", block)))
    return found


def test_every_metric_that_is_watched_is_exported() -> None:
    """A panel or an alert on a name that nobody exports is silent for ever."""
    watched = {series for expression in expressions() for series in SERIES.findall(expression)}

    assert len(watched) >= 15
    assert {series for series in watched if base(series) not in exported()} == set()


def test_every_metric_is_watched_on_the_dashboard() -> None:
    """What is exported is worth a look."""
    panels = DASHBOARD.read_text("utf-8")

    assert [name for name in exported() if name.removesuffix("_total") not in panels] == []


def test_every_metric_is_documented_and_no_other() -> None:
    """The table of docs/operations.md is the list of metrics."""
    documented = set(re.findall(r"^\| `(jobengine_\w+)` \|", OPERATIONS.read_text("utf-8"), re.MULTILINE))

    assert documented == exported()


def test_every_alert_is_documented_and_no_other() -> None:
    """Whoever is woken finds what to do."""
    named = {rule["alert"] for group in yaml.safe_load(ALERTS.read_text("utf-8"))["groups"] for rule in group["rules"]}
    documented = set(re.findall(r"^\| `(Jobengine\w+)` \|", OPERATIONS.read_text("utf-8"), re.MULTILINE))

    assert named == documented


def test_actions_that_are_watched_can_be_recorded() -> None:
    """A typing error in a label would never match."""
    watched = {found for expression in expressions() for found in re.findall(r'action="([^"]+)"', expression)}

    assert watched
    assert watched <= {action.value for action in Action}


def test_panels_do_not_overlap_and_have_a_title_and_a_unit() -> None:
    """The dashboard can be read as it is."""
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert panel["title"]
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        assert panel["type"] == "row" or panel["fieldConfig"]["defaults"]["unit"]
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_every_setting_is_documented_and_no_other() -> None:
    """The table of docs/operations.md is the list of settings."""
    text = OPERATIONS.read_text("utf-8").partition("\n## Settings\n")[2].partition("\n## ")[0]
    documented = set(re.findall(r"^\| `([A-Z_]+)` \|", text, re.MULTILINE))

    assert documented == {field.encode_name.removeprefix(PREFIX) for field in msgspec.structs.fields(_Environment)}


def test_the_image_runs_as_a_number_that_is_not_root() -> None:
    """Whoever starts it can see so without looking inside, and the data folder is its own."""
    words = dict(last_stage())

    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", words["USER"])
    assert json.loads(words["VOLUME"]) == ["/var/lib/jobengine"]
    assert f"--owner={words['USER'].split(':')[0]}" in words["RUN"]
    assert (
        json.loads(words["ENTRYPOINT"])[0] in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    )
    assert "/healthz" in words["HEALTHCHECK"]
    assert words["STOPSIGNAL"] == "SIGTERM"


def test_the_image_installs_only_what_is_locked_with_hashes() -> None:
    """The same image today and in a year."""
    installs = [step for word, rest in instructions() if word == "RUN" for step in rest.split("&&") if "pip " in step]

    assert len(installs) == 4
    for step in installs:
        assert "--require-hashes" in step or ("--no-deps" in step and re.search(r"--no-(index|build-isolation)", step))


@pytest.mark.parametrize("name", ["requirements-serve.lock", "requirements-build.lock"])
def test_a_smaller_lock_pins_what_the_tests_ran_with(name: str) -> None:
    """What is served was tested: the same versions and hashes as in requirements.lock."""
    tested = pins("requirements.lock")

    assert len(pins(name)) >= 5
    assert {package: pin for package, pin in pins(name).items() if tested.get(package) != pin} == {}


def test_the_lock_of_the_server_has_every_dependency_and_no_tool_of_developers() -> None:
    """An image needs neither pytest nor a type checker."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["otel"] + extras["celery"]
    names = {re.split(r"[\[<>=]", requirement)[0] for requirement in wanted}

    assert names <= pins("requirements-serve.lock").keys()
    assert not {"pytest", "ruff", "basedpyright", "hypothesis"} & pins("requirements-serve.lock").keys()


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    """A build fails late where a file is missing from its context."""
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        name
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for name in rest.split()[:-1]
    }

    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)


def test_no_secret_stands_in_a_file_of_operations() -> None:
    """Passwords come from the environment of whoever starts it, and there is none to leave as it came."""
    for name in (
        "Dockerfile",
        "compose.yaml",
        "ops/postgres/login.sh",
        "ops/prometheus.yml",
        "ops/grafana/datasources.yml",
    ):
        # A variable of psql is no password.
        text = (ROOT / name).read_text("utf-8").replace(":'password'", "")
        assert (
            re.findall(r"(?i)(?:password|secret|token)\w*[\"']?\s*[:=]\s*[\"']?(?!\$|\s|\"\$)[\w-]{4,}", text) == []
        ), name
    stored = re.sub(r"\$\{[^}]*\}", "", json.dumps(compose()))
    assert "postgresql://jobengine_login:@database" in stored
    assert re.findall(r"://[^@/\s\"]*:([^@/\"]+)@", stored) == []
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def test_every_password_is_demanded_before_anything_starts() -> None:
    """An empty password would be one that everybody knows."""
    named = re.findall(r"\$\{(\w*PASSWORD\w*)(:\?)?", (ROOT / "compose.yaml").read_text("utf-8"))

    assert {name for name, _ in named} == {"OWNER_PASSWORD", "LOGIN_PASSWORD"}
    assert all(demanded for _, demanded in named)


def test_compose_names_only_what_exists() -> None:
    """Settings, files, volumes and services."""
    document = compose()
    settings = {field.encode_name for field in msgspec.structs.fields(_Environment)}
    for name, service in document["services"].items():
        told = {key for key in service.get("environment", {}) if key.startswith(PREFIX)}
        assert told <= settings, name
        assert set(service.get("depends_on", ())) <= document["services"].keys(), name
        for volume in service.get("volumes", ()):
            source, target = volume.split(":")[:2]
            assert target.startswith("/"), name
            assert (ROOT / source).is_file() if source.startswith("./") else source in document["volumes"], volume


def test_compose_publishes_on_this_machine_only_and_never_the_private_port() -> None:
    """Whoever wants it on a network says so."""
    services = compose()["services"]
    published = [port for service in services.values() for port in service.get("ports", ())]

    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert services["server"]["environment"]["JOBENGINE_METRICS_PORT"] not in "".join(published)


def test_the_server_does_not_get_the_owners_password() -> None:
    """Whoever breaks into the server owns no table."""
    services = compose()["services"]

    assert "OWNER_PASSWORD" not in json.dumps(services["server"])
    assert "JOBENGINE_MIGRATION_URL" in services["migrate"]["environment"]
    for name in ("server", "migrate"):
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in services[name]["security_opt"]


def test_prometheus_asks_the_private_port_and_reads_the_alerts() -> None:
    """The files fit together as compose puts them."""
    services = compose()["services"]
    asked = yaml.safe_load((ROOT / "ops" / "prometheus.yml").read_text("utf-8"))
    [job] = asked["scrape_configs"]
    port = services["server"]["environment"]["JOBENGINE_METRICS_PORT"]
    mounted = {Path(volume.split(":")[1]).name for volume in services["prometheus"]["volumes"]}

    assert job["static_configs"] == [{"targets": [f"server:{port}"]}]
    assert job["job_name"] == "jobengine"
    assert set(asked["rule_files"]) <= mounted
    assert f'job="{job["job_name"]}"' in ALERTS.read_text("utf-8")


def test_grafana_finds_its_source_and_its_dashboard() -> None:
    """The files fit together as compose puts them."""
    services = compose()["services"]
    [source] = yaml.safe_load((ROOT / "ops" / "grafana" / "datasources.yml").read_text("utf-8"))["datasources"]
    [provider] = yaml.safe_load((ROOT / "ops" / "grafana" / "dashboards.yml").read_text("utf-8"))["providers"]
    shown = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]

    assert source["url"] == "http://prometheus:9090"
    assert provider["options"]["path"] == str(Path(shown).parent)
    assert any(
        volume.startswith("./ops/grafana/jobengine.json:") and shown in volume
        for volume in services["grafana"]["volumes"]
    )
