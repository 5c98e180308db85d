"""A span a request, with numbers and no texts."""

from collections.abc import Callable
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient

from promptembedder import extras
from promptembedder.server import ReadingConfig, ServerConfig, Tracer, create_app, load_service

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_request_is_a_span_below_the_clients_own(saved_model: Path) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = create_app(
        lambda state: load_service(
            saved_model, ServerConfig(model_name="tiny"), state.metrics, reading=ReadingConfig(device="cpu")
        ),
        tracer=Tracer(provider.get_tracer("test")),
    )
    with TestClient(app) as client:
        while client.get("/health").status_code != 200:
            pass
        exporter.clear()
        client.post("/v1/embeddings", json={"input": "my secret text"}, headers={"traceparent": PARENT})
        client.post("/v1/embeddings", json={"input": ""})
    good, bad = exporter.get_finished_spans()
    assert good.name == "POST /v1/embeddings"
    assert f"{good.context.trace_id:032x}" == PARENT.split("-")[1]
    assert good.attributes is not None
    assert good.attributes["promptembedder.status"] == 200
    assert good.attributes["promptembedder.inputs"] == 1
    assert "secret" not in good.to_json()
    assert bad.attributes is not None
    assert bad.attributes["promptembedder.status"] == 400


def test_without_the_extra_the_install_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing part of a namespace package was once reported as a broken import of its own."""

    def missing(name: str) -> Callable[..., None]:
        raise ModuleNotFoundError(name="opentelemetry.sdk")

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(ImportError, match=r'pip install "promptembedder\[otel\]"'):
        extras.require("opentelemetry.sdk.trace", extra="otel")
