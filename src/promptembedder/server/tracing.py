"""A span for each request, sent to an OpenTelemetry collector."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from promptembedder.extras import require

__all__ = ["Tracer", "otlp_tracer"]


class Tracer:
    """Makes a span of a request; without OpenTelemetry, nothing."""

    def __init__(self, tracer: Any = None) -> None:
        """Use OpenTelemetry's `tracer`, if there is one."""
        self._tracer = tracer

    @contextmanager
    def request(self, name: str, headers: Mapping[bytes, bytes], fields: Mapping[str, Any]) -> Iterator[None]:
        """Around one request.

        Args:
            headers: Of the request; a W3C `traceparent` among them is the parent.
            fields: What is known of the request at its end, the span's attributes.
        """
        if self._tracer is None:
            yield
            return
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        carrier = {key.decode("latin-1"): value.decode("latin-1") for key, value in headers.items()}
        with self._tracer.start_as_current_span(name, context=extract(carrier), kind=SpanKind.SERVER) as span:
            try:
                yield
            finally:
                span.set_attributes({f"promptembedder.{key}": value for key, value in fields.items()})


def otlp_tracer(endpoint: str) -> Tracer:
    """A tracer that sends spans to the collector at `endpoint` by OTLP over HTTP, in the background.

    Raises:
        ImportError: OpenTelemetry is not installed; the message holds the install line.
    """
    for module in ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter"):
        require(module, extra="otel")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": "promptembedder"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return Tracer(provider.get_tracer("promptembedder.server"))
