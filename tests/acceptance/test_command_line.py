"""The installed programs as a person uses them: `jobengine` and `jobengine-verify`, against a real server."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from tests.acceptance.advisories import find_advisories
from tests.acceptance.callers import ROOMY, Caller, done
from tests.acceptance.serving import Server

LIMITS = ("--max-active", "4", "--max-per-hour", "100", "--burst", "10", "--refill-per-second", "1.5")
REASON = ("--reason", "scale out for the launch", "--ticket", "OPS-1")

Run = Callable[..., "CompletedProcess[str]"]


@pytest.fixture
def jobengine(served: Server, caller: Caller) -> Run:
    """Run `jobengine` as the caller."""
    environ = {
        "JOBENGINE_URL": served.url,
        "JOBENGINE_CLIENT_ID": caller.credentials.client_id,
        "JOBENGINE_CLIENT_SECRET": caller.credentials.secret,
        "JOBENGINE_TENANT": caller.tenant,
    }

    def run(*words: str, **more: str) -> "CompletedProcess[str]":
        return served.installation.run(*words, **{**environ, **more})

    return run


def told(ended: "CompletedProcess[str]", code: int = 0) -> Any:
    """Return what a command printed as JSON; its exit code must be *code*."""
    assert ended.returncode == code, ended.stderr
    return json.loads(ended.stdout)


def test_token_is_printed_alone_and_opens_the_api(jobengine: Run, caller: Caller) -> None:
    """The output is the token and nothing else, so that a shell can take it."""
    ended = jobengine("token", "--scope", "orch:read")

    assert ended.returncode == 0, ended.stderr
    assert caller.bearing(ended.stdout.strip()).get("/quotas")["items"] == []


def test_quota_is_created_set_and_shown_with_its_reason(jobengine: Run) -> None:
    """A reason comes from the command line, or from the environment."""
    made = told(jobengine("--output", "json", "quota", "create", "scan", *LIMITS, *REASON))
    from_environment = {"JOBENGINE_QUOTA_REASON": "more room", "JOBENGINE_QUOTA_TICKET": "OPS-2"}

    told(jobengine("--output", "json", "quota", "set", "scan", "--max-active", "8", **from_environment))

    found = told(jobengine("--output", "json", "quota", "show", "scan"))
    assert (found["quota_id"], found["limits"]["max_active"]) == (made["quota_id"], 8)
    assert (found["last_change"]["reason"], found["last_change"]["ticket"]) == ("more room", "OPS-2")
    history = told(jobengine("--output", "json", "quota", "history", "scan"))["items"]
    assert [change["reason"] for change in history] == [REASON[1], "more room"]


def test_quotas_kept_in_a_file_are_planned_applied_and_then_in_agreement(
    jobengine: Run, caller: Caller, tmp_path: Path
) -> None:
    """Exported, changed, planned with exit code 2, applied: the second plan is empty, and the reason is kept."""
    caller.quota(job_type="scan")
    file = tmp_path / "quotas.toml"
    exported = jobengine("quota", "export")
    assert exported.returncode == 0, exported.stderr
    file.write_text(exported.stdout.replace("burst = 10", "burst = 11"), "utf-8")

    planned = jobengine("quota", "plan", "-f", str(file))
    reviewed = planned.stdout.splitlines()[-1].removeprefix("plan ")
    applied = jobengine("quota", "apply", "-f", str(file), "--expect", reviewed, *REASON)

    assert (planned.returncode, "~ scan" in planned.stdout) == (2, True), planned.stderr
    assert (applied.returncode, applied.stdout) == (0, "adjusted: scan\n"), applied.stderr
    assert jobengine("quota", "plan", "-f", str(file)).returncode == 0
    assert jobengine("quota", "apply", "-f", str(file), *REASON).stdout.endswith(": nothing to change\n")
    change = told(jobengine("--output", "json", "quota", "show", "scan"))["last_change"]
    assert (change["reason"], change["ticket"]) == (REASON[1], REASON[3])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("quota", "set", "scan", "--max-active", "8"), 2, "quota_reason"),
        (("quota", "set", "scan", "--max-active", "8", "--reason", "test"), 2, "quota_reason"),
        (("quota", "show", "nothing"), 4, "not_found"),
        (("quota", "set", "scan", "--max-active", "5000", *REASON), 5, "policy_maximum_exceeded"),
        (("quota", "create", "scan", *LIMITS, *REASON), 5, "quota_exists"),
        (("quota", "set", "scan", "--max-active", "many", *REASON), 2, "max-active"),
        (("--url", "http://127.0.0.1:9", "quota", "list"), 10, "127.0.0.1:9"),
    ],
)
def test_command_that_fails_ends_with_the_code_of_its_kind(
    jobengine: Run, refused: Caller, words: tuple[str, ...], code: int, said: str
) -> None:
    """Standard error says what and why, standard output stays empty."""
    refused.post("/quotas", {"job_type": "scan", "limits": ROOMY | {"max_active": 600}})

    ended = jobengine(*words, JOBENGINE_TENANT=refused.tenant)

    assert (ended.returncode, ended.stdout) == (code, "")
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_wrong_secret_ends_with_the_code_for_who_may_not(jobengine: Run) -> None:
    """The secret is not repeated."""
    ended = jobengine("quota", "list", JOBENGINE_CLIENT_SECRET="jes_wrong-and-secret")

    assert ended.returncode == 3
    assert "invalid_client" in ended.stderr
    assert "jes_wrong-and-secret" not in ended.stderr


def test_backfill_is_previewed_started_watched_and_listed(jobengine: Run, caller: Caller, tmp_path: Path) -> None:
    """The watch ends with the backfill, and its exit code is the backfill's."""
    advisories = find_advisories(tmp_path)
    done(caller.post("/quotas", {"job_type": "advisory-ingest", "limits": ROOMY}), 201)
    params = json.dumps({"events": str(advisories.path), "out": str(tmp_path / "out")})
    words = ("advisory-ingest", "advisories", "--start", "2021-01-01", "--end", "2021-04-01", "--partition", "P1M")
    asked = (*words, "--params", params)

    preview = told(jobengine("--output", "json", "backfill", "preview", *asked))
    started = told(jobengine("--output", "json", "backfill", "start", *asked, *REASON))
    watched = jobengine("backfill", "watch", started["backfill_id"], "--interval", "0.2")

    assert preview["batches"] == 3
    assert watched.returncode == 0, watched.stderr
    count = len(advisories.between("2021-01-01T00:00:00Z", "2021-04-01T00:00:00Z"))
    assert f"completed: 3/3 batches, {count} events" in watched.stdout
    [listed] = told(jobengine("--output", "json", "backfill", "list"))["items"]
    assert (listed["backfill_id"], listed["status"]) == (started["backfill_id"], "completed")
    again = jobengine("backfill", "start", *asked, *REASON)
    assert (again.returncode, "duplicate_backfill" in again.stderr) == (5, True)


def test_exported_log_is_checked_by_a_program_that_shares_nothing_with_the_server(
    served: Server, jobengine: Run, caller: Caller, tmp_path: Path
) -> None:
    """Intact it is accepted; with one word changed, or a line less, it is not; with another key it cannot be."""
    quota = caller.quota()
    caller.entry(quota["last_change"]["audit_entry_id"])
    export, key = tmp_path / "log.ndjson", tmp_path / "key"
    assert told(jobengine("--output", "json", "audit", "verify"))["ok"] is True
    assert jobengine("audit", "export", str(export)).returncode == 0
    key.write_text(caller.send("GET", "/audit/verifier-key").text, "utf-8")

    def verify(text: str, by: str = f"@{key}") -> int:
        changed = tmp_path / "changed.ndjson"
        changed.write_text(text, "utf-8")
        return served.installation.run(str(changed), "--key", by, program="jobengine-verify").returncode

    text = export.read_text("utf-8")
    assert "quota.created" in text
    assert verify(text) == 0
    assert verify(text.replace("scale out", "scale in!")) == 1
    assert verify("".join(text.splitlines(keepends=True)[:-1])) == 1
    assert verify(text + text.splitlines()[-1] + "\n") == 1
    assert verify("nothing of the kind\n") == 2
    name, _, rest = key.read_text("utf-8").strip().partition("+")
    assert verify(text, f"{name}x+{rest}") == 2


def test_verifier_key_on_the_database_is_the_one_that_the_server_shows(
    served: Server, jobengine: Run, caller: Caller
) -> None:
    """An auditor can get it without trusting the network."""
    caller.quota()

    ended = jobengine("audit", "key")

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == caller.send("GET", "/audit/verifier-key").text.strip()
    assert served.is_ready()


def test_key_rotation_keeps_old_tokens_good_and_signs_with_the_new_key_soon(jobengine: Run, caller: Caller) -> None:
    """Nobody is thrown out, and the new key is published before it signs."""
    before = caller.http.get(f"{caller.url}/.well-known/jwks.json").json()["keys"]
    assert caller.get("/quotas")["items"] == []

    ended = jobengine("key", "rotate")

    assert ended.returncode == 0, ended.stderr
    assert caller.get("/quotas")["items"] == []
    after = caller.http.get(f"{caller.url}/.well-known/jwks.json").json()["keys"]
    assert {key["kid"] for key in before} <= {key["kid"] for key in after}
