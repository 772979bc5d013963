"""The metrics: what is counted, under which labels, and who may see which tenant."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx2
import pytest
from litestar import Litestar
from prometheus_client.parser import text_string_to_metric_families
from tests.factories import BASE_URL, Api
from tests.web.authority_desk import GRANT_TYPE, Desk

from jobengine.bootstrap import Plane
from jobengine.quota.admission import LimitKind
from jobengine.storage.admission_group import Release
from jobengine.web.metrics import Scrapes, make_metrics_app

Numbers = dict[tuple[str, frozenset[tuple[str, str]]], float]


def numbers(text: str) -> Numbers:
    """Return every sample by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Watcher:
    """Somebody who scrapes, and tells what has become more since the last time."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client
        self._before: Numbers = {}

    async def text(self) -> str:
        """Scrape."""
        answer = await self._client.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        return answer.text

    async def start(self) -> "Watcher":
        """Remember how things stand."""
        self._before = numbers(await self.text())
        return self

    async def more(self, name: str, **labels: str) -> float:
        """Return by how much a sample has grown."""
        key = (name, frozenset(labels.items()))
        return numbers(await self.text()).get(key, 0) - self._before.get(key, 0)


@pytest.fixture
async def public(client: httpx2.AsyncClient) -> Watcher:
    """What everybody may see."""
    return await Watcher(client).start()


@pytest.fixture
async def labelled(plane: Plane) -> AsyncIterator[None]:
    """The shared plane with a private port, for as long as the test runs."""
    before = plane.settings
    plane.settings = replace(before, metrics_port=9464)
    yield
    plane.settings = before


@pytest.fixture
async def private(plane: Plane, labelled: None) -> AsyncIterator[Watcher]:
    """What the private port shows."""
    assert labelled is None
    transport = httpx2.ASGITransport(app=make_metrics_app(plane))
    async with httpx2.AsyncClient(transport=transport, base_url=BASE_URL) as opened:
        yield await Watcher(opened).start()


async def test_admissions_are_counted_by_outcome_and_denials_by_limit(api: Api, public: Watcher) -> None:
    """Every limit that stood in the way of a denied one counts."""
    await api.quota("scan", max_active=2, max_per_hour=2, burst=2, refill_per_second=0)
    lease = (await api.admit(job_id="night")).json()
    assert (await api.admit(job_id="night")).status_code == 200
    await api.admit()
    assert (await api.admit()).status_code == 429
    assert (await api.admit(slots=3)).status_code == 422
    await api.post(f"/admissions/{lease['lease_id']}/renew", {"fencing_token": lease["fencing_token"]})
    await api.post(f"/admissions/{lease['lease_id']}/release", {"fencing_token": lease["fencing_token"]})

    outcomes = ["granted", "repeated", "denied", "slots_exceed_limit", "renewed", "released"]
    assert [await public.more("jobengine_admissions_total", outcome=name) for name in outcomes] == [2, 1, 1, 1, 1, 1]
    limits = [kind.value for kind in LimitKind]
    assert [await public.more("jobengine_admission_denials_total", limit=name) for name in limits] == [1, 1, 1, 0]
    assert await public.more("jobengine_problems_total", code="admission_denied") == 1


async def test_admissions_of_a_batch_and_under_an_idempotency_key_are_counted_once(api: Api, public: Watcher) -> None:
    """A replayed answer grants nothing anew."""
    await api.quota("scan", max_active=3)
    await api.post("/admissions/batch", {"requests": [{"job_type": "scan"}] * 4})
    for _ in range(2):
        await api.post("/admissions", {"job_type": "other"}, headers={"Idempotency-Key": "k1"})

    assert await public.more("jobengine_admissions_total", outcome="granted") == 4
    assert await public.more("jobengine_admissions_total", outcome="denied") == 1


async def test_the_size_of_a_group_is_observed(plane: Plane, tenant: str, public: Watcher) -> None:
    """Operations that arrive together are committed together."""
    releases = [Release("01890000-0000-7000-8000-000000000000", 1)] * 5
    await asyncio.gather(*(plane.committer.carry_out(tenant, item) for item in releases), return_exceptions=True)

    assert await public.more("jobengine_admission_group_size_count") == 1
    assert await public.more("jobengine_admission_group_size_sum") == 5


async def test_requests_are_counted_by_route_template_method_and_status(api: Api, public: Watcher) -> None:
    """No label holds what a caller chose."""
    quota = await api.quota("scan")
    await api.get(f"/quotas/{quota['quota_id']}")
    await api.get("/quotas/nothing")
    await api.get("/what-somebody-typed")
    await api.send("BREW", "/quotas")

    async def counted(route: str, method: str, status: str) -> float:
        return await public.more("jobengine_http_requests_total", route=route, method=method, status=status)

    one = "/api/v1/quotas/{quota_id}"
    assert await counted(one, "GET", "200") == 1
    assert await counted(one, "GET", "404") == 1
    assert await counted("unknown", "GET", "404") == 1
    assert await counted("unknown", "unknown", "405") == 1
    assert await public.more("jobengine_http_request_seconds_count", route=one, method="GET") == 2
    text = await public.text()
    assert quota["quota_id"] not in text
    assert "what-somebody-typed" not in text


async def test_tokens_are_counted_without_telling_which_clients_exist(desk: Desk, public: Watcher) -> None:
    """An unknown client and a wrong secret look alike here too."""
    await desk.granted()
    await desk.token("orch:everything")
    for name in (desk.client.client_id, "jec_unknown"):
        await desk.http.post("/oauth2/token", data=GRANT_TYPE, auth=(name, "wrong"))

    assert await public.more("jobengine_token_requests_total", outcome="granted") == 1
    assert await public.more("jobengine_token_requests_total", outcome="invalid_scope") == 1
    assert await public.more("jobengine_token_requests_total", outcome="invalid_client") == 2
    assert "client_unknown" not in await public.text()


async def test_a_token_request_without_a_database_is_counted(scratch: Desk, public: Watcher) -> None:
    """Whoever watches sees that nobody gets tokens any more."""
    await scratch.plane.database.close()
    assert (await scratch.token()).status_code == 503

    assert await public.more("jobengine_token_requests_total", outcome="temporarily_unavailable") == 1


async def test_entries_are_counted_by_action_and_outcome_when_they_are_durable(api: Api, public: Watcher) -> None:
    """A refusal is an entry; a change that was rolled back is none."""
    quota = await api.quota("scan")
    await api.patch(f"/quotas/{quota['quota_id']}", {"limits": {"max_active": 10**6}})
    await api.patch(f"/quotas/{quota['quota_id']}", {"limits": {"max_active": 6}}, headers={"If-Match": '"9"'})

    counted = "jobengine_audit_entries_total"
    assert await public.more(counted, action="quota.created", outcome="success") == 1
    assert await public.more(counted, action="quota.refused", outcome="refused") == 1
    assert await public.more(counted, action="quota.adjusted", outcome="success") == 0


async def test_a_transaction_that_is_rolled_back_counts_nothing(plane: Plane, tenant: str) -> None:
    """What is counted has happened."""
    told: list[str] = []

    async def tell(mark: str, error: type[Exception] | None) -> None:
        async with plane.database.transaction(tenant) as tx:
            tx.when_committed(lambda: told.append(mark))
            assert told == []
            if error is not None:
                raise error

    with pytest.raises(ValueError):
        await tell("rolled back", ValueError)
    await tell("committed", None)

    assert told == ["committed"]


async def test_batches_are_counted_by_how_they_end(api: Api, public: Watcher) -> None:
    """A completion that is said twice is one; a failure that is tried again is no failed batch."""
    window = {"start": "2026-01-01T00:00:00Z", "end": "2026-01-04T00:00:00Z"}
    body = {"job_type": "external", "source": "orders", "window": window}
    assert (await api.post("/backfills", body)).status_code == 202
    found = (await api.post("/batches/claim", {"job_types": ["external"], "max": 2})).json()["batches"]
    done, failed = ({"fencing_token": batch["fencing_token"]} for batch in found)
    for _ in range(2):
        events = {"processed": 7, "duplicates": 2, "failed": 1}
        await api.post(f"/batches/{found[0]['batch_id']}/complete", done | {"events": events})
    await api.post(f"/batches/{found[1]['batch_id']}/fail", failed | {"error": "no", "retryable": True})

    ended = "jobengine_batch_attempts_ended_total"
    assert await public.more(ended, outcome="succeeded", cause="completed") == 1
    assert await public.more(ended, outcome="pending", cause="failed") == 1
    assert await public.more("jobengine_events_total", outcome="processed") == 7
    assert await public.more("jobengine_events_total", outcome="duplicates") == 2
    assert await public.more("jobengine_events_total", outcome="failed") == 1


async def test_what_goes_on_is_read_from_the_database_when_asked(
    api: Api, client: httpx2.AsyncClient, app: Litestar
) -> None:
    """Backfills by status, running batches, and how far the sequencer is behind."""
    window = {"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z"}
    app.state.pop("scrapes", None)
    before = numbers(await Watcher(client).text())
    await api.post("/backfills", {"job_type": "external", "source": "now", "window": window})
    await api.post("/batches/claim", {"job_types": ["external"], "max": 1})
    app.state.pop("scrapes")

    after = numbers(await Watcher(client).text())

    running = ("jobengine_backfills", frozenset({("status", "running")}))
    assert after[running] == before[running] + 1
    assert after["jobengine_batches_running", frozenset()] == before["jobengine_batches_running", frozenset()] + 1
    assert after["jobengine_sequencer_lag_seconds", frozenset()] >= 0
    assert after["jobengine_sequencer_orphan_shards", frozenset()] == 0
    assert after["jobengine_database_up", frozenset()] == 1
    assert after["jobengine_database_connections", frozenset({("pool", "app"), ("state", "idle")})] >= 1


async def test_the_database_is_asked_once_a_second_at_most(plane: Plane) -> None:
    """Nobody can load the database by asking for metrics."""
    seconds = [100.0]
    scrapes = Scrapes(plane, lambda: seconds[0])

    async def asked() -> object:
        await scrapes.answer(tenants=False)
        return scrapes._work

    first = await asked()
    seconds[0] += 0.9
    assert await asked() is first
    seconds[0] += 0.1
    assert await asked() is not first


async def test_metrics_without_a_database_tell_that_it_is_down(scratch: Desk) -> None:
    """They are asked for most when something is wrong."""
    await scratch.plane.database.close()

    found = numbers(await Watcher(scratch.http).text())

    assert found["jobengine_database_up", frozenset()] == 0
    assert ("jobengine_sequencer_lag_seconds", frozenset()) not in found


async def test_no_public_metric_has_a_tenant_label(api: Api, public: Watcher, labelled: None) -> None:
    """Not even where the private port is open: the public one stays as it is."""
    assert labelled is None
    await api.admit()

    text = await public.text()

    assert 'tenant="' not in text
    assert "jobengine_tenant" not in text
    assert api.tenant_id not in text


async def test_the_private_port_tells_tenants_apart(api: Api, stranger: Api, private: Watcher) -> None:
    """Who is denied, and by which limit."""
    await api.quota("scan", max_per_hour=0)
    await api.admit()
    await stranger.admit()

    assert await private.more("jobengine_tenant_admissions_total", tenant=api.tenant_id, outcome="denied") == 1
    assert await private.more("jobengine_tenant_admissions_total", tenant=stranger.tenant_id, outcome="granted") == 1
    assert (
        await private.more("jobengine_tenant_admission_denials_total", tenant=api.tenant_id, limit="max_per_hour") == 1
    )
    assert await private.more("jobengine_admissions_total", outcome="denied") == 1


async def test_tenants_are_not_even_counted_without_the_private_port(plane: Plane, api: Api) -> None:
    """What nobody may see costs nothing."""
    await api.admit()
    transport = httpx2.ASGITransport(app=make_metrics_app(plane))
    async with httpx2.AsyncClient(transport=transport, base_url=BASE_URL) as opened:
        assert api.tenant_id not in await Watcher(opened).text()


async def test_the_private_port_serves_metrics_and_nothing_else(plane: Plane) -> None:
    """Another path is a problem document, as everywhere."""
    transport = httpx2.ASGITransport(app=make_metrics_app(plane), raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url=BASE_URL) as opened:
        for path in ("/", "/api/v1/quotas", "/openapi.json", "/docs", "/schema"):
            answer = await opened.get(path)
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path
        assert (await opened.post("/metrics")).status_code == 405
