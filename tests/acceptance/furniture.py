"""A tenant with something of everything in it, whose state stays as it is while nobody touches it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from tests.acceptance.callers import Caller, backfill_ask, done
from tests.acceptance.routes import Ids, Route
from tests.acceptance.serving import eventually

from jobengine.clock import format_time, utc_now

# No token ever comes back, so that what a quota tells does not change with time.
STILL: Final = {"max_active": 10, "max_per_hour": 1_000, "burst": 50, "refill_per_second": 0}
KEY: Final = "the-same-key"
LOOKS: Final = 3
SETTLE_SECONDS: Final = 15
# Writes an entry of its own into the log.
AUDITED_READS: Final = {"/audit/export"}
_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")

Snapshot = Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Furnished:
    """A caller, what the tenant holds by the names that paths give it, and the words that only it knows."""

    caller: Caller
    word: str
    ids: Ids
    lease_token: int
    batch_token: int

    def fencing_token(self, path: str) -> int:
        """Return the token under which the object of *path* is held."""
        return self.batch_token if path.startswith("/batches") else self.lease_token

    def reads(self, routes: list[Route]) -> Iterator[tuple[Route, str]]:
        """Return every path that shows something of the tenant."""
        for route in routes:
            if route.method == "GET" and route.path not in AUDITED_READS:
                yield from ((route, path) for path in route.filled(self.ids))

    def snapshot(self, routes: list[Route]) -> Snapshot:
        """Return all that the tenant can see of itself, to the byte."""
        seen: dict[str, bytes] = {}
        for route, path in self.reads(routes):
            answer = self.caller.http.send(self.caller.request("GET", path, params=route.needed()), stream=True)
            if answer.is_success:
                # A stream of events does not end; all it could tell stands elsewhere too.
                endless = answer.headers["content-type"].startswith("text/event-stream")
                seen[path] = b"" if endless else answer.read()
            answer.close()
        return seen

    def settled(self, routes: list[Route]) -> Snapshot:
        """Return the snapshot when the log has taken up everything that was done."""
        seen: list[Snapshot] = []

        def look() -> Snapshot | None:
            seen.append(self.snapshot(routes))
            return seen[-1] if len(seen) > LOOKS and seen[-1] == seen[-LOOKS] else None

        return eventually(look, SETTLE_SECONDS, "a tenant at rest")

    def secrets(self, snapshot: Snapshot) -> set[str]:
        """Return what nobody else may ever read: names, and every id that the tenant sees."""
        told = b"".join(snapshot.values()).decode(errors="replace")
        return {self.word, self.caller.tenant, self.caller.credentials.client_id, *_ID.findall(told)}


def furnish(caller: Caller, word: str) -> Furnished:
    """Fill a tenant; *word* stands in every name that can be chosen."""
    quota = done(caller.post("/quotas", quota_body(word), headers={"Idempotency-Key": KEY}), 201)
    path, until = f"/quotas/{quota['quota_id']}", format_time(utc_now() + timedelta(days=1))
    done(caller.patch(path, {"limits": {"max_active": 11}}), 200)
    raised = [{"limits": {"max_active": 12 + number}, "until": until} for number in range(2)]
    overrides = [done(caller.post(f"{path}/overrides", one), 201) for one in raised]
    paused = done(caller.post("/quotas", {"job_type": f"{word}-paused", "limits": STILL}), 201)
    done(caller.post(f"/quotas/{paused['quota_id']}/pause", {"pause_reason": f"{word} rests"}), 200)
    leases = [done(caller.post("/admissions", lease_body(word, number)), 201) for number in range(2)]
    done(caller.post("/quotas", {"job_type": "patient", "limits": STILL}), 201)
    backfills = [
        done(caller.backfill(f"{word}-{number}", job_type="patient", params={"word": word}), 202) for number in range(2)
    ]
    [batch] = done(caller.post("/batches/claim", {"job_types": ["patient"]}), 200)["batches"]
    keys = {"fencing_token": batch["fencing_token"], "keys": [f"{word}-event"]}
    done(caller.post(f"/batches/{batch['batch_id']}/events/claim", keys), 200)
    change = done(caller.post("/quota-requests", quota_request(word)), 202)
    ids: dict[str, tuple[str, ...]] = {
        "quota_id": (quota["quota_id"], paused["quota_id"]),
        "override_id": tuple(found["override_id"] for found in overrides),
        "change_id": (change["change_id"],),
        "lease_id": tuple(lease["lease_id"] for lease in leases),
        "backfill_id": tuple(found["backfill_id"] for found in backfills),
        "batch_id": (batch["batch_id"],),
        "entry_id": (quota["last_change"]["audit_entry_id"],),
        "token_id": (backfills[0]["token_id"],),
        "job_type": (f"{word}-type",),
        "path": ("0/000", "0/000.p/1"),
    }
    return Furnished(caller, word, ids, leases[0]["fencing_token"], batch["fencing_token"])


def quota_body(word: str) -> dict[str, Any]:
    """Return the body of the request that every tenant sends under the same idempotency key."""
    return {"job_type": f"{word}-type", "limits": STILL}


def quota_request(word: str) -> dict[str, Any]:
    """Return the body of a request for more that nobody decides on."""
    return {"job_type": f"{word}-type", "limits": {"max_active": 13}, "request_reason": f"{word} grows"}


def lease_body(word: str, number: int) -> dict[str, Any]:
    """Return the body of a request for a lease that outlives the tests."""
    return {"job_type": f"{word}-type", "job_id": f"{word}-job-{number}", "lease_seconds": 3_600}


def plan_token(furnished: Furnished) -> tuple[dict[str, Any], str]:
    """Return the body of a backfill that nobody asked for yet, and the token of its preview."""
    ask = backfill_ask(f"{furnished.word}-planned")
    return ask, done(furnished.caller.post("/backfills/preview", ask), 200)["plan_token"]
