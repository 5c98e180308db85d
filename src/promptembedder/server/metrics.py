"""What a server counts, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from promptembedder.server.engine import BatchReport

__all__ = ["ServerMetrics"]

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
