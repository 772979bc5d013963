"""Traces of a real server, received as a collector would."""

import gzip
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.cli.processes import Shell, serving

TRACE = "0af7651916cd43dd8448eb211c80319c"


class Collector(ThreadingHTTPServer):
    """What listens where OTEL_EXPORTER_OTLP_ENDPOINT says."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.bodies: list[tuple[str, bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def spans(self) -> dict[str, dict[str, str]]:
        """The spans received so far: name → trace id, service and attributes."""
        found: dict[str, dict[str, str]] = {}
        for path, body in self.bodies:
            assert path == "/v1/traces"
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                told = {item.key: item.value.string_value for item in resource.resource.attributes}
                for span in (span for scope in resource.scope_spans for span in scope.spans):
                    attributes = {item.key: item.value.string_value for item in span.attributes}
                    found[span.name] = {**told, **attributes, "trace_id": span.trace_id.hex()}
        return found


class _Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        unpacked = gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body
        self.server.bodies.append((self.path, unpacked))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector for one test."""
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_server_sends_its_spans_where_the_standard_variable_says(
    furnished_shell: Callable[[], Shell], collector: Collector
) -> None:
    """Requests with tenant, client and ticket, and the drains of the sequencer; what waits is sent at the end."""
    shell = Shell({**furnished_shell().settings, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url})
    with serving(shell, "--workers", "2") as service:
        admin = service.new_clients(["acme"], "Admin")["Admin"]
        form = {"grant_type": "client_credentials", "scope": "orch:quota", "quota_reason": "launch day"}
        with httpx2.Client(base_url=service.url, trust_env=False, timeout=30) as http:
            answer = http.post(
                "/oauth2/token",
                data=form | {"quota_ticket": "CHG-1042"},
                auth=(admin["client_id"], admin["client_secret"]),
                headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"},
            )
            assert answer.status_code == 200, answer.text

    spans = collector.spans()
    told = spans["POST /oauth2/token"]
    assert told["service.name"] == "jobengine"
    assert told["trace_id"] == TRACE
    assert told["jobengine.tenant"] == "acme"
    assert told["jobengine.client_id"] == admin["client_id"]
    assert told["jobengine.ticket"] == "CHG-1042"
    assert "sequencer.drain" in spans
    everything = b"".join(body for _, body in collector.bodies)
    assert admin["client_secret"].encode() not in everything
    assert b"launch day" not in everything
