"""Logs, traces and metrics of the server."""

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from promptembedder.extras import require
from promptembedder.server.engine import BatchReport

__all__ = ["ServerMetrics", "Tracer", "log_to_stderr", "otlp_tracer"]


class _JsonLines(logging.Formatter):
    """Formats each record as one JSON object."""

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


class _TextLines(logging.Formatter):
    """Formats each record as one line of text."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        pairs = " ".join(f"{name}={value}" for name, value in fields.items() if value not in ("", None))
        line = (
            f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower()} {record.getMessage()} {pairs}".rstrip()
        )
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def log_to_stderr(form: Literal["text", "json"], *, requests: bool = True) -> None:
    """Send the logs of the server and the library to stderr, replacing any previous logging configuration.

    Args:
        form: `text`, or `json` for one JSON object per line.
        requests: Log a line for each request.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if form == "json" else _TextLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("promptembedder.server").setLevel(logging.INFO)
    logging.getLogger("promptembedder.server.requests").setLevel(logging.INFO if requests else logging.WARNING)


class Tracer:
    """Opens a span for each request. Does nothing without an OpenTelemetry tracer."""

    def __init__(self, tracer: Any = None) -> None:
        """Wrap OpenTelemetry's `tracer`, if given."""
        self._tracer = tracer

    @contextmanager
    def request(self, name: str, headers: Mapping[bytes, bytes], fields: Mapping[str, Any]) -> Iterator[None]:
        """Open the span of one request for the duration of the block.

        Args:
            name: Name of the span.
            headers: Headers of the request. A W3C `traceparent` header gives the parent span.
            fields: Attributes of the span, read at the end of the block.
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
    """Build a tracer that exports spans to the collector at `endpoint` by OTLP over HTTP, in the background.

    Raises:
        ImportError: If OpenTelemetry is not installed. The message contains the install command.
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
    """Prometheus metrics of one server in a separate registry. Names begin with `promptembedder_`."""

    def __init__(self, *, max_batch_tokens: int | None = None) -> None:
        """Create all metrics with value zero."""
        self.registry = CollectorRegistry()
        shared: dict[str, Any] = {"namespace": "promptembedder", "registry": self.registry}
        seconds: dict[str, Any] = {**shared, "buckets": _SECONDS}
        self.requests = Counter("requests", "Completed requests", ["route", "status"], **shared)
        self.errors = Counter("errors", "Failed requests", ["kind"], **shared)
        self.inputs = Counter("inputs", "Texts embedded", **shared)
        self.tokens = Counter("tokens", "Tokens of embedded texts", **shared)
        self.truncated = Counter("truncated_inputs", "Truncated texts", **shared)
        self.padding = Counter("padding_tokens", "Computed padding tokens", **shared)
        self.vectors = Counter("vectors", "Vectors computed", **shared)
        self.in_flight = Gauge("requests_in_flight", "Active requests", **shared)
        self._waiting = Gauge("waiting_vectors", "Vectors that are queued or being computed", **shared)
        self.batch_texts = Histogram("batch_texts", "Texts per batch", buckets=_SIZES, **shared)
        self.batch_fill = Histogram(
            "batch_fill", "Share of the token budget that a batch uses", buckets=_SHARES, **shared
        )
        self.request_seconds = Histogram("request_seconds", "Duration of a request", ["route"], **seconds)
        self.tokenise_seconds = Histogram("tokenise_seconds", "Tokenization time of a request", **seconds)
        self.queue_seconds = Histogram("queue_seconds", "Queue time of a text", **seconds)
        self.compute_seconds = Histogram("compute_seconds", "Computation time of a batch", **seconds)
        self.max_batch_tokens = max_batch_tokens

    def watch_waiting(self, count: Callable[[], int]) -> None:
        """Call `count` for the number of pending vectors whenever the metrics are collected."""
        self._waiting.set_function(lambda: float(count()))

    def record_batch(self, batch: BatchReport) -> None:
        """Record the statistics of a batch."""
        self.vectors.inc(batch.vectors)
        self.padding.inc(batch.padding)
        self.batch_texts.observe(batch.texts)
        if self.max_batch_tokens:
            self.batch_fill.observe((batch.tokens + batch.padding) / self.max_batch_tokens)
        self.compute_seconds.observe(batch.compute_seconds)
        for seconds in batch.queue_seconds:
            self.queue_seconds.observe(seconds)

    def render(self) -> bytes:
        """Render all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)
