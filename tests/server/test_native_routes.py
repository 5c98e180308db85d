"""`/embed`, `/info`, `/health`, `/metrics`: what clients of text-embeddings-inference and operators ask."""

from collections.abc import Callable

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from promptembedder.server import Limits

COMPILED = "Find texts on the same topic"
QUERY = "Find the text that answers the question"
TEXTS = ["a river and its mouth", "short"]

Serve = Callable[..., TestClient]
Offline = Callable[..., np.ndarray]


@pytest.mark.parametrize(
    ("more", "instruction"),
    [({}, None), ({"prompt_name": "query"}, QUERY), ({"instruction": COMPILED}, COMPILED), ({"normalize": True}, None)],
    ids=str,
)
def test_embed_answers_a_list_of_vectors(
    client: TestClient, offline: Offline, more: dict[str, object], instruction: str | None
) -> None:
    answer = client.post("/embed", json={"inputs": TEXTS, **more})
    np.testing.assert_allclose(np.array(answer.json()), offline(TEXTS, instruction), atol=1e-5)
    single = client.post("/embed", json={"inputs": TEXTS[0], **more})
    np.testing.assert_allclose(np.array(single.json()), offline(TEXTS[:1], instruction), atol=1e-5)


def test_embed_cuts_where_it_is_told_to_and_counts(client: TestClient, offline: Offline) -> None:
    long = "word " * 60
    assert client.post("/embed", json={"inputs": long}).status_code == 422
    assert client.post("/embed", json={"inputs": long, "truncate": False}).status_code == 422
    answer = client.post("/embed", json={"inputs": [long, "short"], "truncate": True, "truncation_direction": "Right"})
    assert answer.headers["x-truncated-inputs"] == "1"
    np.testing.assert_allclose(np.array(answer.json()), offline([long, "short"]), atol=1e-5)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"inputs": []}, 400),
        ({"inputs": "a", "normalize": False}, 400),
        ({"inputs": "a", "prompt_name": "other"}, 404),
        ({"inputs": "a", "prompt_name": "query", "instruction": "x"}, 400),
        ({"input": "a"}, 400),
    ],
    ids=str,
)
def test_errors_have_one_shape_here_too(client: TestClient, body: dict[str, object], status: int) -> None:
    answer = client.post("/embed", json=body)
    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}


def test_info_says_what_is_served(serve: Serve) -> None:
    info = serve(instructions="compiled", truncate="left").get("/info").json()
    assert info["model_id"] == "tiny"
    assert info["model_dtype"] == "float32"
    assert info["max_input_length"] == 32
    assert info["auto_truncate"] is True
    assert (info["instructions"], info["dimensions"]) == ("compiled", 40)
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}


def test_metrics_count_what_was_done(serve: Serve) -> None:
    client = serve(limits=Limits(max_inputs=100))  # a server of its own
    for body in ({"input": ["a b c", "d"]}, {"input": "x " * 90, "truncate": "right"}, {"input": "x " * 90}):
        client.post("/v1/embeddings", json=body)
    client.get("/no/such/page")
    found = {
        (sample.name.removeprefix("promptembedder_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
    }
    assert found["inputs_total",] == 3
    assert found["truncated_inputs_total",] == 1
    assert found["requests_total", "/v1/embeddings", "200"] == 2
    assert found["requests_total", "/v1/embeddings", "422"] == 1
    assert found["requests_total", "other", "404"] == 1
    assert found["errors_total", "input_too_long"] == 1
    assert found["waiting_vectors",] == 0
    assert found["tokens_total",] > 32
    for name in ("tokenise_seconds", "queue_seconds", "compute_seconds", "batch_fill", "batch_texts"):
        assert found[f"{name}_count",] >= 2
        assert found[f"{name}_sum",] >= 0
