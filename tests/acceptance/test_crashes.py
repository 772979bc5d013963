"""Servers shot at random moments: what was acknowledged is there, and every event stands exactly once.

JOBENGINE_TEST_KILLS says how often; `make soak` shoots longer.
"""

import json
import os
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from time import sleep
from typing import Any, Self

import httpx2
from tests.acceptance.advisories import Advisories, find_advisories
from tests.acceptance.callers import ROOMY, Caller, done
from tests.acceptance.serving import EVERY_ROLE, Credentials, Installation, new_tenants, serving

KILLS = int(os.environ.get("JOBENGINE_TEST_KILLS", "3"))
MOMENTS = [0.2 + byte / 256 for byte in os.urandom(KILLS)]
START, END = "2005-01-01T00:00:00Z", "2025-01-01T00:00:00Z"
JOB_TYPES = """\
[job_types.ingest]
handler = "python:tests.acceptance.handlers:ingest"
lease_seconds = 5
max_attempts = 100

[job_types.carried]
handler = "external"
lease_seconds = 5
max_attempts = 100
"""


def completed_output(folder: Path) -> Counter[str]:
    """Return how often each key stands in the output of attempts that completed: those with a batch's newest token."""
    newest: dict[str, tuple[int, Path]] = {}
    for path in folder.iterdir():
        batch_id, token, _ = path.name.split(".")
        newest[batch_id] = max(newest.get(batch_id, (0, path)), (int(token), path))
    return Counter(key for _, path in newest.values() for key in json.loads(path.read_text("utf-8")))


def test_a_backfill_whose_server_is_shot_at_random_moments_completes_with_every_event_once(
    http: httpx2.Client, tmp_path: Path
) -> None:
    """Real events, real kills: what a lost attempt claimed is free again, what a completed one claimed stays."""
    advisories = find_advisories(tmp_path)
    installation = Installation.make(tmp_path / "shot", JOB_TYPES)
    credentials = installation.create_client("ours", new_tenants(1), EVERY_ROLE)
    params = {"events": str(advisories.path), "out": str(tmp_path / "out")}
    window = {"start": START, "end": END}
    backfill_id, unfinished = "", 0
    try:
        for moment in MOMENTS:
            with serving(installation) as server:
                caller = Caller(http, server.url, credentials, credentials.tenants[0])
                if not backfill_id:
                    done(caller.post("/quotas", {"job_type": "ingest", "limits": ROOMY | {"max_active": 6}}), 201)
                    asked = caller.backfill(job_type="ingest", window=window, partition="P1M", params=params)
                    backfill_id = done(asked, 202)["backfill_id"]
                sleep(moment)
                unfinished += caller.get(f"/backfills/{backfill_id}")["status"] in {"pending", "running"}
                server.kill()
        with serving(installation) as server:
            caller = Caller(http, server.url, credentials, credentials.tenants[0])
            ended = caller.ended(backfill_id, 90)
            drift, log = caller.get("/quotas/drift")["drift"], caller.get("/audit/verify")["ok"]
    finally:
        installation.clean_up()

    expected = advisories.between(START, END)
    assert (ended["status"], ended["progress"]["batches"]["succeeded"]) == ("completed", 240)
    assert ended["progress"]["events"] == {"processed": len(expected), "duplicates": 0, "failed": 0}
    assert completed_output(tmp_path / "out" / backfill_id) == Counter(expected)
    assert (drift, log) == (0, True)
    assert unfinished >= min(KILLS, 3)


class Porter:
    """An external worker that outlives the servers: it goes on with whichever answers now."""

    def __init__(self, credentials: Credentials, advisories: Advisories, out: Path) -> None:
        self._credentials = credentials
        self._advisories = advisories
        self._out = out
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self.url = ""

    def __enter__(self) -> Self:
        self._out.mkdir()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        with httpx2.Client(trust_env=False, timeout=10) as http:
            while not self._stop.wait(0.05):
                if self.url:
                    with suppress(httpx2.HTTPError, AssertionError):
                        self._carry(Caller(http, self.url, self._credentials, self._credentials.tenants[0]))

    def _carry(self, caller: Caller) -> None:
        for batch in done(caller.post("/batches/claim", {"job_types": ["carried"], "max": 8}), 200)["batches"]:
            path, token = f"/batches/{batch['batch_id']}", {"fencing_token": batch["fencing_token"]}
            keys = self._advisories.between(batch["window"]["start"], batch["window"]["end"])
            found = done(caller.post(f"{path}/events/claim", token | {"keys": keys}), 200)
            name = f"{batch['batch_id']}.{batch['fencing_token']}.json"
            (self._out / name).write_text(json.dumps(found["fresh"]), "utf-8")
            done(caller.post(f"{path}/complete", token | {"events": {"processed": len(found["fresh"])}}), 204)


def test_external_workers_complete_a_backfill_whose_server_is_shot_at_random_moments(
    http: httpx2.Client, tmp_path: Path
) -> None:
    """A worker that hears nothing leaves its batch; whoever gets it next processes what was not completed."""
    advisories = find_advisories(tmp_path)
    installation = Installation.make(tmp_path / "shot", JOB_TYPES)
    credentials = installation.create_client("ours", new_tenants(1), EVERY_ROLE)
    backfill_id = ""
    try:
        with Porter(credentials, advisories, tmp_path / "out") as porter:
            for moment in [*MOMENTS, None]:
                with serving(installation) as server:
                    caller = Caller(http, server.url, credentials, credentials.tenants[0])
                    backfill_id = backfill_id or _start_carrying(caller)
                    porter.url = server.url
                    if moment is None:
                        ended = caller.ended(backfill_id, 90)
                    else:
                        sleep(moment)
                        server.kill()
    finally:
        installation.clean_up()

    expected = advisories.between(START, END)
    assert (ended["status"], ended["progress"]["events"]["processed"]) == ("completed", len(expected))
    assert completed_output(tmp_path / "out") == Counter(expected)


def _start_carrying(caller: Caller) -> str:
    done(caller.post("/quotas", {"job_type": "carried", "limits": ROOMY}), 201)
    asked = caller.backfill(job_type="carried", window={"start": START, "end": END}, partition="P1M")
    return done(asked, 202)["backfill_id"]


def test_quota_changes_under_a_shot_server_are_whole_or_absent(http: httpx2.Client, tmp_path: Path) -> None:
    """After the kills the quota, its history and its audit entries agree, and nothing acknowledged is lost."""
    installation = Installation.make(tmp_path / "changed", JOB_TYPES)
    credentials = installation.create_client("ours", new_tenants(1), EVERY_ROLE)
    quota_id, acknowledged = "", 0
    try:
        for _ in range(KILLS):
            with serving(installation) as server:
                caller = Caller(http, server.url, credentials, credentials.tenants[0])
                if not quota_id:
                    quota_id = done(caller.post("/quotas", {"job_type": "scan", "limits": ROOMY}), 201)["quota_id"]
                acknowledged = max(acknowledged, _change_until_shot(caller, server, quota_id))
        with serving(installation) as server:
            caller = Caller(http, server.url, credentials, credentials.tenants[0])
            quota = caller.get(f"/quotas/{quota_id}")
            history: list[dict[str, Any]] = caller.items(f"/quotas/{quota_id}/history")
            entries = caller.logged(quota["version"], resource_type="quota")
    finally:
        installation.clean_up()

    assert quota["version"] >= acknowledged > 1
    assert [change["version"] for change in history] == list(range(1, quota["version"] + 1))
    assert [change["audit_entry_id"] for change in history] == [entry["entry_id"] for entry in entries]
    assert history[-1]["to"] == quota["limits"]


def _change_until_shot(caller: Caller, server: Any, quota_id: str) -> int:
    """Change the quota again and again, shoot the server meanwhile, and return the last version it acknowledged."""
    versions = [0]
    stop = threading.Event()

    def change() -> None:
        with httpx2.Client(trust_env=False, timeout=10) as http:
            mine = Caller(http, caller.url, caller.credentials, caller.tenant)
            while not stop.is_set():
                try:
                    answer = mine.patch(f"/quotas/{quota_id}", {"limits": {"max_active": 5 + versions[-1] % 5}})
                except httpx2.HTTPError:
                    return
                if answer.is_success:
                    versions.append(answer.json()["version"])

    thread = threading.Thread(target=change)
    thread.start()
    sleep(0.5)
    server.kill()
    stop.set()
    thread.join()
    return max(versions)
