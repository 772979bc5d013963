"""Traces by OpenTelemetry: spans of requests, batches and sequencing, sent where OTEL_EXPORTER_OTLP_ENDPOINT says.

Without that variable nothing of OpenTelemetry is imported here, and a span costs next to nothing.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from threading import Thread
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as OtelSpan

__all__ = ["NO_TRACES", "SWITCHES", "Attributes", "Span", "Traces", "start_traces"]

SWITCHES: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_OFF: Final = (("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none"))
_NAME: Final = "OTEL_SERVICE_NAME"
_CLOSE_SECONDS: Final = 2.0
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

Attributes = Mapping[str, str | int]

_log = structlog.get_logger()


class Span:
    """One piece of work while it goes on; without a tracer it takes notes for nobody."""

    def __init__(self, span: "OtelSpan | None" = None) -> None:
        self._span = span

    @property
    def trace_id(self) -> str:
        """The trace that it belongs to, as 32 hexadecimal digits; zeros without a tracer."""
        return f"{self._span.get_span_context().trace_id if self._span else 0:032x}"

    def rename(self, name: str) -> None:
        """Give it the name that is known only now."""
        if self._span is not None:
            self._span.update_name(name)

    def note(self, attributes: Attributes) -> None:
        """Note what is known now."""
        if self._span is not None:
            self._span.set_attributes(attributes)

    def fail(self) -> None:
        """Mark it as failed."""
        if self._span is not None:
            from opentelemetry.trace import StatusCode  # noqa: PLC0415 - an extra that need not be there

            self._span.set_status(StatusCode.ERROR)


class Traces:
    """Where spans go: to a provider of OpenTelemetry, or, without one, nowhere."""

    def __init__(self, provider: "TracerProvider | None" = None) -> None:
        self._provider = provider

    @property
    def are_kept(self) -> bool:
        """Tell whether spans go anywhere."""
        return self._provider is not None

    @contextmanager
    def answering(self, carrier: Mapping[str, str]) -> Generator[Span]:
        """Open the span of a request, below the caller's where *carrier* holds its ``traceparent``."""
        if self._provider is None:
            yield Span()
            return
        from opentelemetry.trace import SpanKind  # noqa: PLC0415 - an extra that need not be there
        from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415 - the same
            TraceContextTextMapPropagator,
        )

        above = TraceContextTextMapPropagator().extract(carrier)
        tracer = self._provider.get_tracer("jobengine")
        with tracer.start_as_current_span(
            "request", above, SpanKind.SERVER, record_exception=False, set_status_on_exception=False
        ) as span:
            yield Span(span)

    @contextmanager
    def working(self, name: str, attributes: Attributes) -> Generator[Span]:
        """Open the span of a piece of work that nobody waits for; an exception marks it, but is not told."""
        if self._provider is None:
            yield Span()
            return
        tracer = self._provider.get_tracer("jobengine")
        # An exception's text may hold what a handler or a row said.
        with tracer.start_as_current_span(
            name, attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield Span(span)
            except BaseException:
                Span(span).fail()
                raise

    def note(self, attributes: Attributes) -> None:
        """Note what is known now in the span that is open here."""
        if self._provider is not None:
            from opentelemetry.trace import get_current_span  # noqa: PLC0415 - an extra that need not be there

            get_current_span().set_attributes(attributes)

    def tell(self, name: str, started: datetime, ended: datetime, attributes: Attributes) -> None:
        """Tell of a piece of work that is over."""
        if self._provider is not None:
            tracer = self._provider.get_tracer("jobengine")
            tracer.start_span(name, attributes=attributes, start_time=_nanoseconds(started)).end(_nanoseconds(ended))

    def close(self) -> None:
        """Send what waits; blocks until it is sent, or for 2 s: nobody's end waits longer for a collector."""
        if self._provider is not None:
            last = Thread(target=self._provider.shutdown, name="last spans", daemon=True)
            last.start()
            last.join(_CLOSE_SECONDS)


NO_TRACES: Final = Traces()


def start_traces(environ: Mapping[str, str], version: str) -> Traces:
    """Return where spans go according to the standard variables of OpenTelemetry.

    Where they ask for traces and the extra ``jobengine[otel]`` is not installed, the log says so and there are none.
    """
    off = any(environ.get(name, "").lower() == value for name, value in _OFF)
    if off or not any(environ.get(name) for name in SWITCHES):
        return NO_TRACES
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - an extra
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - the same
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - the same
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - the same
    except ImportError as error:
        _log.warning("traces.unavailable", error=str(error), hint="install jobengine[otel]")
        return NO_TRACES
    named = {} if environ.get(_NAME) else {"service.name": "jobengine"}
    provider = TracerProvider(resource=Resource.create({**named, "service.version": version}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Traces(provider)


def _nanoseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND * 1_000
