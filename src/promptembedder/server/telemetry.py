"""Logs, traces and metrics of the server."""

import json
import logging
import sys
from typing import Literal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from promptembedder.extras import require
from collections.abc import Callable
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from promptembedder.server.engine import BatchReport

__all__ = ['ServerMetrics', 'Tracer', 'log_to_stderr', 'otlp_tracer']

class _JsonLines(logging.Formatter):
    """Each record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        content = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        return json.dumps(content, ensure_ascii=False)


class _Words(logging.Formatter):
    """Each record as a line to read."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        said = " ".join(f"{name}={value}" for name, value in fields.items() if value not in ("", None))
        line = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower()} {record.getMessage()} {said}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def log_to_stderr(form: Literal["text", "json"], *, requests: bool = True) -> None:
    """Send what the server and the library log to stderr in this form, in place of what was set up before.

    Args:
        requests: With a line for each request.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if form == "json" else _Words())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("promptembedder.server").setLevel(logging.INFO)
    logging.getLogger("promptembedder.server.requests").setLevel(logging.INFO if requests else logging.WARNING)


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


_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class ServerMetrics:
    """Counters of one server, in a registry of their own; names begin with `promptembedder_`."""

    def __init__(self, *, max_batch_tokens: int | None = None) -> None:
        """Begin at zero."""
        self.registry = own = CollectorRegistry()
        name = "promptembedder_"
        self.requests = Counter(f"{name}requests", "Answered requests", ["route", "status"], registry=own)
        self.errors = Counter(f"{name}errors", "Requests without vectors", ["kind"], registry=own)
        self.inputs = Counter(f"{name}inputs", "Texts embedded", registry=own)
        self.tokens = Counter(f"{name}tokens", "Tokens of these texts", registry=own)
        self.truncated = Counter(f"{name}truncated_inputs", "Texts that lost an end", registry=own)
        self.padding = Counter(f"{name}padding_tokens", "Padding computed beside the texts' tokens", registry=own)
        self.vectors = Counter(f"{name}vectors", "Vectors computed", registry=own)
        self.in_flight = Gauge(f"{name}requests_in_flight", "Requests that are being answered", registry=own)
        self._waiting = Gauge(f"{name}waiting_vectors", "Vectors that wait or are computed", registry=own)
        self.batch_texts = Histogram(f"{name}batch_texts", "Texts of a batch", registry=own, buckets=_SIZES)
        self.batch_fill = Histogram(
            f"{name}batch_fill", "Tokens of a batch, of those that it may hold", registry=own, buckets=_SHARES
        )
        self.request_seconds = Histogram(
            f"{name}request_seconds", "From a request's head to its answer", ["route"], registry=own, buckets=_SECONDS
        )
        self.tokenise_seconds = Histogram(f"{name}tokenise_seconds", "Of a request", registry=own, buckets=_SECONDS)
        self.queue_seconds = Histogram(f"{name}queue_seconds", "Of a text", registry=own, buckets=_SECONDS)
        self.compute_seconds = Histogram(f"{name}compute_seconds", "Of a batch", registry=own, buckets=_SECONDS)
        self.max_batch_tokens = max_batch_tokens

    def watch_waiting(self, count: Callable[[], int]) -> None:
        """Ask `count` for what waits whenever the metrics are read."""
        self._waiting.set_function(lambda: float(count()))

    def batch_done(self, batch: BatchReport) -> None:
        """Count a batch."""
        self.vectors.inc(batch.vectors)
        self.padding.inc(batch.padding)
        self.batch_texts.observe(batch.texts)
        if self.max_batch_tokens:
            self.batch_fill.observe((batch.tokens + batch.padding) / self.max_batch_tokens)
        self.compute_seconds.observe(batch.compute_seconds)
        for seconds in batch.queue_seconds:
            self.queue_seconds.observe(seconds)

    def exposed(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
