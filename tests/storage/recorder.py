"""A day in the life of one tenant, and every named query that it took, with the values that it took."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg.rows import DictRow
from tests.conftest import PassTime
from tests.factories import INTENTS, LIMITS, ROOMY, Api, make_api

from jobengine.audit.checkpoint import COSIGNATURE, VerifierKey
from jobengine.audit.witness import Submission
from jobengine.authority.entries import Visit, grant_entry
from jobengine.authority.grants import Grant
from jobengine.authority.intent import Intent
from jobengine.authority.scopes import Scope
from jobengine.ids import new_id
from jobengine.storage import asks
from jobengine.storage.admission_tidying import tidy_admissions
from jobengine.storage.asks import read_extent, read_moments
from jobengine.storage.audit import PostgresAudit
from jobengine.storage.authority import revoke
from jobengine.storage.database import Asked, Transaction
from jobengine.storage.witnesses import Shown, keep_cosignature

MOST_LOOKS = 600


class Recorder:
    """What tenant transactions asked; *found* names the queries that ever returned or changed a row."""

    def __init__(self) -> None:
        self.asked: defaultdict[str, list[Mapping[str, object]]] = defaultdict(list)
        self.found: set[str] = set()

    def note(self, tx: Transaction, query: str, values: Mapping[str, object], touched: int) -> None:
        """Keep the first few askings of a query."""
        if not tx.tenant_id:
            return
        if touched > 0:
            self.found.add(query)
            self.asked[query].insert(0, values)
        elif len(self.asked[query]) < 3:
            self.asked[query].append(values)
        del self.asked[query][4:]


@contextmanager
def recording() -> Iterator[Recorder]:
    """Listen to every transaction of this process; nothing of what it does is changed."""
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        for name, touched in TOUCHED.items():
            patch.setattr(Transaction, name, noted(recorder, getattr(Transaction, name), touched))
        for name in ("begin", "together", "commit"):
            patch.setattr(Transaction, name, noted_together(recorder, getattr(Transaction, name)))
        patch.setattr(Transaction, "send_ahead", noted_ahead(recorder, Transaction.send_ahead))
        yield recorder


# How many rows an answer of each method of a transaction speaks of.
TOUCHED: Mapping[str, Callable[[Any], int]] = {"all": len, "find": lambda row: int(row is not None), "run": int}


def noted(recorder: Recorder, real: Callable[..., Awaitable[Any]], touched: Callable[[Any], int]) -> object:
    async def ask(tx: Transaction, query: str, /, **values: object) -> object:
        answer = await real(tx, query, **values)
        recorder.note(tx, query, values, touched(answer))
        return answer

    return ask


def noted_together(recorder: Recorder, real: Callable[..., Awaitable[list[list[DictRow]]]]) -> object:
    async def ask(tx: Transaction, *asked: Asked) -> list[list[DictRow]]:
        answers = await real(tx, *asked)
        for (query, values), rows in zip(asked, answers, strict=True):
            recorder.note(tx, query, values, len(rows))
        return answers

    return ask


def noted_ahead(recorder: Recorder, real: Callable[[Transaction, Asked], None]) -> object:
    def send_ahead(tx: Transaction, asked: Asked) -> None:
        recorder.note(tx, *asked, touched=0)
        real(tx, asked)

    return send_ahead


async def live_a_day(api: Api, later: PassTime) -> None:
    """Do everything that a tenant can do, so that there is something of everything."""
    await _rule(api)
    await _govern(api)
    await _admit(api, later)
    await _run_the_past(api, later)
    await _retry_many(api)
    await _look_around(api)
    await _simulate(api)
    await _erase(api)


async def _rule(api: Api) -> None:
    gone = f"/quotas/{(await api.quota('gone'))['quota_id']}"
    await api.delete(gone)
    await api.post("/quotas", {"job_type": "gone", "limits": LIMITS | {"burst": 10**5}})
    path = f"/quotas/{(await api.quota('external', max_active=20))['quota_id']}"
    await api.post("/quotas", {"job_type": "external", "limits": LIMITS})
    await api.patch(path, {"limits": {"burst": 9}}, headers={"Idempotency-Key": "k"})
    await api.patch(path, {"limits": {"burst": 9}}, headers={"Idempotency-Key": "k"})
    await api.patch(path, {"limits": {"burst": 10**7}}, headers={"Idempotency-Key": "other"})
    raised = {"limits": {"max_active": 30}, "until": await api.in_future(days=2)}
    await api.post(f"{path}/overrides", raised)
    override = (await api.post(f"{path}/overrides", raised)).json()
    await api.delete(f"{path}/overrides/{override['override_id']}")
    await api.post(f"{path}/overrides", raised)
    governor = make_api(api.client, api.plane, api.tenant_id, Scope.GOVERN.value)
    await governor.put("/policy", {})
    async with api.plane.database.transaction(api.tenant_id) as tx:
        await revoke(tx, new_id(), "jec_test", datetime(2999, 1, 1, tzinfo=UTC))


async def _govern(api: Api) -> None:
    governor = make_api(api.client, api.plane, api.tenant_id, Scope.GOVERN.value, owner="governor")
    pool = f"/allocations/{api.tenant_id}"
    await api.quota(api.tenant_id)
    shared = {"capacity": 9, "strategy": "proportional", "tenants": [{"tenant_id": api.tenant_id}]}
    for _ in range(2):
        await governor.put(pool, shared)
        token = (await governor.post(f"{pool}/plan")).json()["plan_token"]
        await governor.post(f"{pool}/apply", {"plan_token": token})
        for _ in range(MOST_LOOKS):
            if (await governor.get(pool)).json()["status"] == "applied":
                break
            await asyncio.sleep(0.1)
    await governor.get("/allocations")
    await api.get("/quotas")
    await governor.delete(pool)
    asked = {"job_type": api.tenant_id, "limits": {"max_active": 20}, "request_reason": "more room"}
    change = (await api.post("/quota-requests", asked)).json()
    await governor.post(f"/quota-changes/{change['change_id']}/approve", {"comment": "so be it"})
    await api.get("/quota-changes")


async def _simulate(api: Api) -> None:
    # The server reads the record in a process of its own; here it is read in this one.
    async with api.plane.database.transaction(api.tenant_id) as tx:
        extent = await read_extent(tx, tx.now - timedelta(days=1), timedelta(days=30))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asks, "MOST_ROWS", 2)
        assert [moment async for moment in read_moments(api.plane.database, api.tenant_id, extent)]


async def _admit(api: Api, later: PassTime) -> None:
    first = (await api.admit("external", job_id="job-1", lease_seconds=5)).json()
    await api.admit("external", job_id="job-1")
    token = {"fencing_token": first["fencing_token"]}
    await api.post(f"/admissions/{first['lease_id']}/renew", token)
    await api.admit("external", slots=29, lease_seconds=10)
    await api.admit("external", slots=2)
    await api.post(f"/admissions/{first['lease_id']}/release", token)
    await later(api.tenant_id, 4_000)
    await tidy_admissions(api.plane.database)
    held = (await api.admit("external")).json()
    await api.delete(f"/admissions/{held['lease_id']}")
    await api.post("/admissions/batch", {"requests": [{"job_type": "external", "job_id": "job-2"}] * 2})
    hourly = await api.quota("hourly", max_per_hour=1)
    await api.admit("hourly")
    await api.patch(f"/quotas/{hourly['quota_id']}", {"limits": {"max_per_hour": 2}})
    await api.post("/admissions/batch", {"requests": [{"job_type": "hourly"}] * 2})
    await api.admit("hourly")


async def _run_the_past(api: Api, later: PassTime) -> None:
    window = {"start": "2026-01-01T00:00:00Z", "end": "2026-01-05T00:00:00Z"}
    asked = {"job_type": "external", "source": "orders", "window": window}
    await api.post("/backfills/preview", asked)
    backfill = (await api.post("/backfills", asked)).json()
    await api.post("/backfills", asked)
    path = f"/backfills/{backfill['backfill_id']}"
    await api.post(f"{path}/pause")
    await api.post(f"{path}/resume")
    done, failed, lost, _ = await _claim(api, 4)
    await _work(api, done, "complete", {})
    await _work(api, failed, "fail", {"error": "no", "retryable": False})
    await _work(api, lost, "events/claim", {"keys": ["e2"]})
    await later(api.tenant_id, 20)
    for batch in await _claim(api, 4):
        await _work(api, batch, "events/claim", {"keys": ["e0", "e2"]})
        await _work(api, batch, "fail", {"error": "no", "retryable": False})
    await api.post(f"{path}/retry-failed")
    [retried] = await _claim(api, 1)
    await api.post(f"{path}/cancel")
    await _work(api, retried, "fail", {"error": "no", "retryable": False})
    other = {"source": "other", "order": "backward", "partition": "PT1H", "max_failures": 1}
    for more in ({}, {"reprocess": "failed"}, other):
        path = f"/backfills/{(await api.post('/backfills', asked | more)).json()['backfill_id']}"
        for batch in await _claim(api, 2):
            await _work(api, batch, "fail", {"error": "no", "retryable": False})
        await api.post(f"{path}/retry-failed")
        await api.post(f"{path}/cancel")


async def _retry_many(api: Api) -> None:
    await api.quota("once", **ROOMY)
    window = {"start": "2026-01-01T00:00:00Z", "end": "2026-01-04T00:00:00Z"}
    asked = {"job_type": "once", "source": "orders", "window": window, "partition": "PT1H"}
    path = f"/backfills/{(await api.post('/backfills', asked)).json()['backfill_id']}"
    await _fail_all(api, 64, 64)
    await api.post(f"{path}/retry-failed")
    await _fail_all(api, 40)
    await api.post(f"{path}/cancel")


async def _fail_all(api: Api, *claims: int) -> None:
    for most in claims:
        for batch in await _claim(api, most, "once"):
            said = {"fencing_token": batch["fencing_token"], "error": "no", "retryable": False}
            await api.post(f"/batches/{batch['batch_id']}/fail", said)


async def _claim(api: Api, most: int, job_type: str = "external") -> list[dict[str, Any]]:
    answer = await api.post("/batches/claim", {"job_types": [job_type], "max": most})
    return answer.json()["batches"]


async def _work(api: Api, batch: Mapping[str, Any], last: str, said: Mapping[str, object]) -> None:
    token = {"fencing_token": batch["fencing_token"]}
    path = f"/batches/{batch['batch_id']}"
    await api.post(f"{path}/events/claim", token | {"keys": ["e0", "e1"]})
    await api.post(f"{path}/events/claim", token | {"keys": ["e0", "e1"]})
    await api.post(f"{path}/heartbeat", token | {"checkpoint": {"at": 1}})
    await api.post(f"{path}/{last}", token | dict(said))
    await api.post(f"{path}/{last}", token | dict(said))


async def _look_around(api: Api) -> None:
    quotas = (await api.get("/quotas")).json()["items"]
    path = f"/quotas/{quotas[0]['quota_id']}"
    now = await api.in_future(minutes=1)
    entry = quotas[0]["last_change"]["audit_entry_id"]
    granted = await _granted(api)
    await _witnessed(api)
    paths: Sequence[str] = (
        path, f"{path}/history?at={now}", f"{path}/overrides", "/quotas/summary", "/quotas/drift", "/policy",
        "/admissions", "/backfills", "/audit/entries", "/audit/entries?action=quota.created",
        f"/audit/entries/{entry}", f"/audit/entries/{entry}/proof", "/audit/orphans", f"/audit/trace/{granted}",
        "/audit/verify", "/audit/export", "/audit/checkpoint", "/audit/consistency?from=1&to=2", "/audit/tile/0/000",
    )  # fmt: skip
    for one in paths:
        await api.get(one)
    for backfill in (await api.get("/backfills")).json()["items"]:
        await api.get(f"/backfills/{backfill['backfill_id']}/batches")


async def _witnessed(api: Api) -> None:
    """Keep a line of a witness."""
    shown = Shown(api.tenant_id, 1, Submission(0, (), "a head\n\n"))
    await keep_cosignature(api.plane.database, shown, VerifierKey("w.example", bytes(32), COSIGNATURE), "line", 1)


async def _granted(api: Api) -> str:
    """Record a grant of an hour ago, and return the token's id."""
    visit, token_id = Visit("token", "192.0.2.1", "0" * 32), new_id()
    scopes, claims = (Scope.QUOTA,), Intent(INTENTS)
    grant = Grant("jec_test", "ops", api.tenant_id, scopes, (), claims, timedelta(seconds=300))
    async with api.plane.database.transaction(api.tenant_id) as tx:
        entry = grant_entry(grant, visit, token_id, tx.now - timedelta(hours=1))
        await PostgresAudit(tx).record(entry)
    return token_id


async def _erase(api: Api) -> None:
    governor = make_api(api.client, api.plane, api.tenant_id, Scope.GOVERN.value)
    for quota in (await api.get("/quotas")).json()["items"]:
        await governor.post(f"/audit/entries/{quota['last_change']['audit_entry_id']}/erase")
    await api.get("/audit/verify")
