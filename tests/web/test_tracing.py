"""Traces: one span for each request, batch and drain, with tenant, actor and ticket, and never a secret or a reason."""

import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from litestar import Litestar
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from tests.factories import API, BASE_URL, new_tenant
from tests.web.authority_desk import Desk, open_desk

from jobengine.bootstrap import Plane, background, open_plane
from jobengine.settings import JobType, Settings
from jobengine.tracing import NO_TRACES, Traces, start_traces
from jobengine.web.app import make_app
from jobengine.worker.supervisor import Supervisor

COLLECTOR = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
REASON = "the spring catalogue doubles"


@pytest.fixture(scope="module")
async def traced(
    migrated_database: Callable[[], Awaitable[str]], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Plane]:
    """A plane of its own, whose spans are kept in memory by each test."""
    wanted = Settings(
        data_dir=tmp_path_factory.mktemp("traced"),
        database_url=await migrated_database(),
        issuer=BASE_URL,
        job_types={"noop": JobType("command:true"), "broken": JobType("command:false", max_attempts=1)},
    )
    async with open_plane(wanted, serving=True) as plane:
        yield plane


@pytest.fixture
def spans(traced: Plane) -> InMemorySpanExporter:
    """What the plane sends from now on."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traced.traces = Traces(provider)
    return exporter


@pytest.fixture
def traced_app(traced: Plane) -> Litestar:
    """The application on that plane."""
    app = make_app(lambda: pytest.fail("the plane is open"))
    app.state.plane = traced
    return app


@pytest.fixture
async def at_desk(traced_app: Litestar, traced: Plane, spans: InMemorySpanExporter) -> Desk:
    """A client of a new tenant; nothing of it was traced yet."""
    found = await open_desk(traced_app, traced, [await new_tenant(traced)])
    spans.clear()
    return found


def the_span(spans: InMemorySpanExporter, name: str) -> ReadableSpan:
    """Return the one span of this name."""
    [found] = [span for span in spans.get_finished_spans() if span.name == name]
    return found


async def quota(desk: Desk, **headers: str) -> int:
    """Create a quota for a stated reason and ticket, and return the status of the answer."""
    token = await desk.granted("orch:quota", quota_reason=REASON, quota_ticket="CHG-1042")
    body = {"job_type": "scan", "limits": {"max_active": 1, "max_per_hour": 1, "burst": 1, "refill_per_second": 1}}
    sent = {"Authorization": f"Bearer {token}", **headers}
    return (await desk.http.post(f"{API}/quotas", json=body, headers=sent)).status_code


async def test_a_request_is_a_span_with_tenant_actor_and_ticket(at_desk: Desk, spans: InMemorySpanExporter) -> None:
    """Whoever follows a trace sees who did it, where, and under which ticket."""
    assert await quota(at_desk) == 201

    span = the_span(spans, "POST /api/v1/quotas")
    assert span.kind is SpanKind.SERVER
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/api/v1/quotas",
        "http.response.status_code": 201,
        "jobengine.tenant": at_desk.client.tenants[0],
        "jobengine.client_id": at_desk.client.client_id,
        "jobengine.actor": "ops-team",
        "jobengine.ticket": "CHG-1042",
    }


async def test_a_grant_is_a_span_with_its_ticket(at_desk: Desk, spans: InMemorySpanExporter) -> None:
    """The ticket is known from the moment it is bound into a token."""
    await at_desk.granted("orch:quota", quota_reason=REASON, quota_ticket="CHG-1042")

    attributes = the_span(spans, "POST /oauth2/token").attributes or {}
    assert attributes["jobengine.ticket"] == "CHG-1042"
    assert attributes["jobengine.tenant"] == at_desk.client.tenants[0]
    assert attributes["jobengine.actor"] == "ops-team"


async def test_no_span_holds_a_secret_a_token_or_a_reason(at_desk: Desk, spans: InMemorySpanExporter) -> None:
    """A collector is nobody's vault."""
    token = await at_desk.granted("orch:quota", quota_reason=REASON, quota_ticket="CHG-1042")
    await at_desk.http.get(f"{API}/quotas?access_token={token}")
    await at_desk.http.post(f"/oauth2/token?client_secret={at_desk.secret}")
    await quota(at_desk)

    told = "".join(span.to_json() for span in spans.get_finished_spans())
    assert "POST /oauth2/token" in told
    assert [text for text in (at_desk.secret, token, token.split(".")[2], REASON) if text in told] == []


async def test_a_callers_trace_goes_on(at_desk: Desk, spans: InMemorySpanExporter) -> None:
    """The span is a child of the caller's, and what is recorded carries the caller's trace id."""
    assert await quota(at_desk, traceparent=TRACEPARENT, tracestate="vendor=1") == 201

    span = the_span(spans, "POST /api/v1/quotas")
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.context.trace_state.get("vendor") == "1"
    assert (await at_desk.entries())[-1]["trace_id"] == TRACE


@pytest.mark.parametrize("sent", ["", "00-0-0-01", f"00-{'0' * 32}-{PARENT}-01", TRACEPARENT + "-extra"])
async def test_a_request_without_a_good_traceparent_begins_a_trace(
    at_desk: Desk, spans: InMemorySpanExporter, sent: str
) -> None:
    """Audit entry, problem document and span name the same trace, so that each finds the others."""
    assert await quota(at_desk, **({"traceparent": sent} if sent else {})) == 201

    span = the_span(spans, "POST /api/v1/quotas")
    assert span.parent is None
    assert (await at_desk.entries())[-1]["trace_id"] == f"{span.context.trace_id:032x}"


async def test_a_path_that_no_route_takes_is_a_span_too(at_desk: Desk, spans: InMemorySpanExporter) -> None:
    """Its name holds nothing that the caller chose."""
    answer = await at_desk.http.get("/api/v1/what-somebody-typed")

    span = the_span(spans, "GET unknown")
    assert answer.json()["trace_id"] == f"{span.context.trace_id:032x}"
    assert "what-somebody-typed" not in span.to_json()
    assert span.status.status_code is StatusCode.UNSET


async def test_a_trace_that_is_not_sampled_keeps_its_id(at_desk: Desk, traced: Plane) -> None:
    """Sampling decides what is sent, not what is recorded."""
    traced.traces = Traces(TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False))

    assert await quota(at_desk, traceparent=TRACEPARENT) == 201

    assert (await at_desk.entries())[-1]["trace_id"] == TRACE


async def test_a_drain_that_places_entries_is_a_span(at_desk: Desk, traced: Plane, spans: InMemorySpanExporter) -> None:
    """Looking and finding nothing is none."""
    await at_desk.granted()
    async with background(traced):
        while await behind(traced):
            pass

    drains = [span for span in spans.get_finished_spans() if span.name == "sequencer.drain"]
    assert sum(int(str((span.attributes or {})["jobengine.entries"])) for span in drains) >= 1
    assert all(span.start_time is not None and span.start_time < (span.end_time or 0) for span in drains)


async def behind(plane: Plane) -> bool:
    """Tell whether an entry waits for its place."""
    async with plane.database.system() as tx:
        return (await tx.one("system_sequencer_lag"))["seconds"] > 0


@pytest.mark.parametrize(("job_type", "outcome"), [("noop", "completed"), ("broken", "failed")])
async def test_a_run_of_a_batch_is_a_span(
    at_desk: Desk, traced: Plane, spans: InMemorySpanExporter, job_type: str, outcome: str
) -> None:
    """It tells whose batch it was, which attempt, and how it came out."""
    token = await at_desk.granted("orch:backfill", backfill_reason=REASON)
    window = {"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z"}
    body = {"job_type": job_type, "source": "orders", "window": window}
    answer = await at_desk.http.post(f"{API}/backfills", json=body, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 202, answer.text

    supervisor = Supervisor(traced, 1)
    while not any(span.name == "batch.run" for span in spans.get_finished_spans()):
        await supervisor.step()
    await supervisor.close()

    attributes = the_span(spans, "batch.run").attributes or {}
    assert attributes["jobengine.tenant"] == at_desk.client.tenants[0]
    assert attributes["jobengine.backfill_id"] == answer.json()["backfill_id"]
    assert attributes["jobengine.attempt"] == 1
    assert attributes["jobengine.outcome"] == outcome


def test_work_that_raises_is_a_failed_span_without_its_words(spans: InMemorySpanExporter, traced: Plane) -> None:
    """An exception's text may hold anything."""
    with pytest.raises(ValueError, match="hunter2"), traced.traces.working("work", {}):
        raise ValueError("hunter2")

    span = the_span(spans, "work")
    assert span.status.status_code is StatusCode.ERROR
    assert "hunter2" not in span.to_json()


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        COLLECTOR | {"OTEL_SDK_DISABLED": "true"},
        COLLECTOR | {"OTEL_TRACES_EXPORTER": "none"},
    ],
    ids=["nothing set", "set to nothing", "disabled", "exported nowhere"],
)
def test_traces_stay_off_unless_a_collector_is_named(environ: dict[str, str]) -> None:
    """The standard variables of OpenTelemetry decide, and nothing else."""
    assert start_traces(environ, "1") is NO_TRACES


def test_a_collector_that_is_away_holds_up_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens there; the spans are lost, and the process goes on."""
    for name, value in COLLECTOR.items():
        monkeypatch.setenv(name, value)
    traces = start_traces(COLLECTOR, "1")
    assert traces is not NO_TRACES

    with traces.working("work", {}) as span:
        assert span.trace_id is not None
    traces.close()


def test_a_missing_extra_is_told_and_costs_only_the_traces(tmp_path: Path) -> None:
    """Without jobengine[otel] the service starts, says what to install, and traces nothing."""
    (tmp_path / "opentelemetry.py").write_text("raise ImportError('not installed')\n")
    program = "from jobengine.tracing import *; print(start_traces({SWITCHES[0]: 'http://x'}, '1') is NO_TRACES)"

    ended = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )

    assert "True" in ended.stdout
    assert "jobengine[otel]" in ended.stdout + ended.stderr


def test_nothing_of_opentelemetry_is_imported_where_nobody_asked() -> None:
    """A server without a collector starts as fast as before."""
    program = "import sys, jobengine.bootstrap; print([name for name in sys.modules if 'opentelemetry' in name])"

    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert ended.stdout == "[]\n"
