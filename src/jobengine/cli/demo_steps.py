"""The demo's eight steps: each says what it does, does it over HTTP, and checks what came out."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final

import httpx2
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jobengine.cli.demo_events import count_in, partition_for, span
from jobengine.clock import format_time, utc_now

API: Final = "/api/v1"
BACKFILL_SECONDS: Final = 50
LOG_SECONDS: Final = 5
JOB_TYPE: Final = "demo-ingest"
LIMITS: Final = {"max_active": 4, "max_per_hour": 10_000, "burst": 1_000, "refill_per_second": 100}
RAISED: Final = 8
REASON: Final = "scale out for the backfill of the demo"
TICKET: Final = "DEMO-1"


class Unmet(AssertionError):
    """A promise did not come out as told."""


@dataclass(slots=True)
class Stage:
    """Everything a step works with; *facts* hands what one step learned to the next."""

    url: str
    folder: Path
    path: Path
    events: list[dict[str, str]]
    make_client: Callable[..., tuple[str, str]]
    console: Console = field(default_factory=Console)
    clients: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]], repr=False)
    facts: dict[str, Any] = field(default_factory=dict[str, Any])

    def token_answer(self, client: str, scope: str, **form: str) -> httpx2.Response:
        """Ask the authority for a token."""
        form |= {"grant_type": "client_credentials", "scope": scope}
        return httpx2.post(f"{self.url}/oauth2/token", data=form, auth=self.clients[client], trust_env=False)

    def call(self, method: str, path: str, token: str, body: object = None) -> httpx2.Response:
        """Call the API."""
        headers = {"Authorization": f"Bearer {token}"}
        return httpx2.request(method, f"{self.url}{API}{path}", headers=headers, json=body, trust_env=False)

    def token(self, client: str, scope: str, **form: str) -> str:
        """Return a token that must be granted."""
        answer = self.token_answer(client, scope, **form)
        expect(answer.status_code == HTTPStatus.OK, f"the token is granted, not {answer.status_code}")
        return answer.json()["access_token"]

    def get(self, path: str, token: str) -> Any:
        """Return a resource that must be there."""
        return self.done(self.call("GET", path, token))

    def done(self, answer: httpx2.Response) -> Any:
        """Return the JSON of an answer that must be a success."""
        expect(answer.is_success, f"{answer.request.method} {answer.url.path} succeeds: {answer.text[:300]}")
        return answer.json()


def expect(met: bool, promise: str) -> None:  # noqa: FBT001 - reads as a sentence
    """Raise Unmet naming *promise* unless it is met."""
    if not met:
        raise Unmet(promise)


def play(stage: Stage) -> int:
    """Play all steps and return the exit code: 0 only if each came out as told."""
    began, kept = monotonic(), 0
    stage.clients["operator"] = stage.make_client("demo-operator", "--tenant", "tenant-a", "--role", "Orch.Admin")
    stage.clients["viewer-b"] = stage.make_client("demo-viewer", "--tenant", "tenant-b", "--role", "Orch.Admin")
    stage.console.print(f"A server of its own runs at {stage.url}; {len(stage.events)} real events wait.\n")
    for number, (title, step) in enumerate(STEPS, 1):
        stage.console.print(f"[bold]{number}. {title}[/bold]", highlight=False)
        try:
            step(stage)
        except (Unmet, httpx2.HTTPError, KeyError, IndexError) as error:
            say(stage, f"not as told: {type(error).__name__}: {error}")
        else:
            kept += 1
            stage.console.print("   [green]as told[/green]")
    stage.console.print(f"\n{kept} of {len(STEPS)} in {monotonic() - began:.0f} s", highlight=False)
    return 0 if kept == len(STEPS) else 1


def say(stage: Stage, text: str) -> None:
    """Tell what a step saw."""
    stage.console.print(f"   {text}", highlight=False, markup=False, soft_wrap=True)


def adjust_with_reason(stage: Stage) -> None:
    """Adjust a quota under a reason and a ticket, and find both in the log."""
    token = stage.token("operator", "orch:quota orch:read", quota_reason=REASON, quota_ticket=TICKET)
    quota = stage.done(stage.call("POST", "/quotas", token, {"job_type": JOB_TYPE, "limits": LIMITS}))
    adjusted = stage.done(
        stage.call("PATCH", f"/quotas/{quota['quota_id']}", token, {"limits": {"max_active": RAISED}})
    )
    expect(adjusted["limits"]["max_active"] == RAISED, "the limit is 8 now")
    stage.facts |= {"quota": adjusted, "quota_token": token}
    change = adjusted["last_change"]
    say(stage, f"max_active 4 → 8, because “{change['reason']}”, ticket {change['ticket']}")
    entry = _logged(stage, change["audit_entry_id"])
    expect(entry["action"] == "quota.adjusted", "the change is in the audit log")


def adjust_without_reason(stage: Stage) -> None:
    """Ask for the same power without saying why."""
    answer = stage.token_answer("operator", "orch:quota")
    say(stage, f"the authority answers {answer.status_code}: {answer.json().get('error_description')}")
    expect(answer.status_code == HTTPStatus.BAD_REQUEST, "a quota token without quota_reason is refused with 400")
    expect("quota_reason" in answer.json()["error_description"], "the refusal names quota_reason")


def start_backfill(stage: Stage) -> None:
    """Start a backfill over real events, and watch it to its end."""
    token = stage.token("operator", "orch:backfill orch:read", backfill_reason="the week the importer was broken")
    start, end = span(stage.events, utc_now())
    ask = {
        "job_type": JOB_TYPE,
        "source": "files",
        "window": {"start": format_time(start), "end": format_time(end)},
        "partition": partition_for(start, end),
        "params": {"events": str(stage.path)},
    }
    answer = stage.call("POST", "/backfills", token, ask)
    expect(answer.status_code == HTTPStatus.ACCEPTED, f"the backfill is initiated: {answer.text[:300]}")
    stage.facts |= {"ask": ask, "backfill_token": token}
    say(stage, f"{format_time(start)[:7]} to {format_time(end)[:7]}, {ask['partition']} a batch")
    ended = _watch(stage, answer.json()["backfill_id"], token)
    events, wanted = ended["progress"]["events"], count_in(stage.events, start, end)
    say(stage, f"{ended['status']}: {events['processed']} events processed, {events['duplicates']} duplicates")
    expect(ended["status"] == "completed", "the backfill completes")
    expect(events["processed"] == wanted, f"each of the {wanted} events is processed once")


def start_it_again(stage: Stage) -> None:
    """Ask for the same backfill again."""
    answer = stage.call("POST", "/backfills", stage.facts["backfill_token"], stage.facts["ask"])
    say(stage, f"answered {answer.status_code} {answer.json().get('code')}: {answer.json().get('detail')}")
    expect(answer.status_code == HTTPStatus.CONFLICT, "a duplicate within the window is refused with 409")
    expect(answer.json()["code"] == "duplicate_backfill", "the refusal says that it is a duplicate")
    expect(answer.json()["uncovered"] == [], "nothing of the window is left uncovered")


def read_the_trail(stage: Stage) -> None:
    """Read the entry of the adjustment, then check the whole log without trusting the server."""
    entry = _logged(stage, stage.facts["quota"]["last_change"]["audit_entry_id"])
    say(stage, f"entry {entry['sequence']}: {entry['action']} by {entry['actor']['id']}, “{entry['reason']}”")
    expect((entry["reason"], entry["ticket"]) == (REASON, TICKET), "the entry holds reason and ticket")
    token = stage.token("operator", "orch:audit")
    checked = stage.get("/audit/verify", token)
    expect(checked["ok"] is True, "the server finds its own log intact")
    export = stage.folder / "export.ndjson"
    export.write_bytes(stage.call("GET", "/audit/export", token).content)
    key = stage.call("GET", "/audit/verifier-key", token).text.strip()
    # A program of its own, which shares no line with the service.
    command = [sys.executable, "-m", "jobengine_verify", str(export), "--key", key]
    found = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own program
    say(stage, f"jobengine-verify: {(found.stdout + found.stderr).strip()}")
    expect(found.returncode == 0, "the independent verifier finds the export intact")


def query_usage(stage: Stage) -> None:
    """Ask how much of the quota is in use."""
    quota = stage.get(f"/quotas/{stage.facts['quota']['quota_id']}", stage.facts["quota_token"])
    usage = quota["usage"]
    say(stage, f"{usage['active']} of {quota['limits']['max_active']} slots, {usage['granted_last_hour']} this hour")
    expect(quota["limits"]["max_active"] == RAISED, "the limits are told")
    expect(usage["active"] == 0 and usage["granted_last_hour"] > 0, "the use is told, and every slot was given back")


def adjust_beyond_maximum(stage: Stage) -> None:
    """Ask for more than the platform's policy allows anybody."""
    quota = stage.facts["quota"]
    body = {"limits": {"max_active": 1_000_000}}
    answer = stage.call("PATCH", f"/quotas/{quota['quota_id']}", stage.facts["quota_token"], body)
    say(stage, f"answered {answer.status_code} {answer.json().get('code')}: {answer.json().get('detail')}")
    expect(answer.status_code == HTTPStatus.UNPROCESSABLE_ENTITY, "the adjustment is refused with 422")
    expect(answer.json()["code"] == "policy_maximum_exceeded", "the refusal names the policy")
    after = stage.get(f"/quotas/{quota['quota_id']}", stage.facts["quota_token"])
    expect(after["version"] == quota["version"], "nothing has changed")


def keep_tenants_apart(stage: Stage) -> None:
    """Adjust tenant A and look at tenant B."""
    token_b = stage.token("viewer-b", "orch:quota orch:read", quota_reason="first limits of tenant B")
    mine = stage.done(stage.call("POST", "/quotas", token_b, {"job_type": JOB_TYPE, "limits": LIMITS}))
    quota, token_a = stage.facts["quota"], stage.facts["quota_token"]
    stage.done(stage.call("PATCH", f"/quotas/{quota['quota_id']}", token_a, {"limits": {"max_active": 6}}))
    after = stage.get(f"/quotas/{mine['quota_id']}", token_b)
    say(stage, f"tenant A went to 6, tenant B stays at {after['limits']['max_active']}")
    expect(after["limits"] == mine["limits"] and after["version"] == mine["version"], "tenant B's quota is unchanged")
    foreign = stage.call("PATCH", f"/quotas/{quota['quota_id']}", token_b, {"limits": {"max_active": 1}})
    expect(foreign.status_code == HTTPStatus.NOT_FOUND, "tenant B cannot even see tenant A's quota")


STEPS: Final[tuple[tuple[str, Callable[[Stage], None]], ...]] = (
    ("Adjust a quota with a reason and a ticket: it is applied and audited", adjust_with_reason),
    ("Try it without a reason: refused with 400", adjust_without_reason),
    ("Request a backfill with a reason: it is initiated, and runs", start_backfill),
    ("Request the same backfill again: refused as a duplicate", start_it_again),
    ("Read the audit trail: reason and ticket are there, and the log can be checked", read_the_trail),
    ("Query the quota: limits and current use", query_usage),
    ("Adjust beyond the maximum: rejected by policy", adjust_beyond_maximum),
    ("Adjust tenant A: tenant B is unchanged", keep_tenants_apart),
)


def _logged(stage: Stage, entry_id: str) -> Mapping[str, Any]:
    """Return an entry once it has its place in the log, which takes a second at the most."""
    token = stage.token("operator", "orch:audit")
    until = monotonic() + LOG_SECONDS
    while (entry := stage.get(f"/audit/entries/{entry_id}", token))["sequence"] is None and monotonic() < until:
        sleep(0.1)
    expect(entry["sequence"] is not None, "the entry has its place in the log")
    return entry


def _watch(stage: Stage, backfill_id: str, token: str) -> Mapping[str, Any]:
    columns = (TextColumn("   {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    until = monotonic() + BACKFILL_SECONDS
    with Progress(*columns, console=stage.console, disable=not sys.stdout.isatty()) as bars:
        bar = bars.add_task("batches")
        while True:
            found: dict[str, Any] = stage.get(f"/backfills/{backfill_id}", token)
            batches = found["progress"]["batches"]
            ended = sum(batches[name] for name in ("succeeded", "failed", "skipped", "canceled"))
            bars.update(bar, total=batches["total"], completed=ended)
            if found["status"] not in {"pending", "running"} or monotonic() > until:
                return found
            sleep(0.2)
