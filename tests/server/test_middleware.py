"""Laws of the way in: keys, sizes, phases, and clients that go away."""

import asyncio
import base64
import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from promptembedder.errors import ConfigError
from promptembedder.server import (
    ApiKeys,
    Limits,
    Phase,
    ReadingConfig,
    ServerConfig,
    ServerState,
    create_app,
    load_service,
)

FIRST, SECOND = "k-0123456789abcdef", "k-fedcba9876543210"
GUARDED = ("/", "/docs", "/openapi.json", "/v1/models", "/info", "/metrics", "/no/such/page", "//health", "/health/")

Serve = Callable[..., TestClient]


def test_all_routes_but_health_return_401_without_a_valid_key(serve: Serve) -> None:
    client = serve(keys=[FIRST, SECOND])
    assert client.get("/health").status_code == 200
    for path in GUARDED:
        answer = client.get(path, follow_redirects=False)
        assert answer.status_code == 401, path
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert "Bearer" in answer.headers["www-authenticate"]
    wrong = (FIRST[:-1], FIRST + "x", FIRST.upper(), "", f"{FIRST},{SECOND}")
    for header in (*(f"Bearer {key}" for key in wrong), FIRST, f"Digest {FIRST}", "Basic !!!", "Basic "):
        answer = client.post("/v1/embeddings", json={"input": "a"}, headers={"Authorization": header})
        assert answer.status_code == 401, header


def test_websockets_are_refused(serve: Serve) -> None:
    with pytest.raises(WebSocketDisconnect) as refused, serve(keys=[FIRST]).websocket_connect("/health"):
        pass
    assert refused.value.code == 1008


@pytest.mark.parametrize("key", [FIRST, SECOND])
def test_each_key_opens_as_bearer_and_as_the_password_that_browsers_send(serve: Serve, key: str) -> None:
    client = serve(keys=[FIRST, SECOND])
    basic = base64.b64encode(f"anybody:{key}".encode()).decode()
    for header in (f"Bearer {key}", f"bearer {key}", f"Basic {basic}"):
        assert client.get("/v1/models", headers={"Authorization": header}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/health/../v1/models", "/v1/models?x=/health", "/v1/models#/health", "/HEALTH", "/%2e/health"]
)
def test_no_spelling_of_a_path_goes_around_the_key(serve: Serve, path: str) -> None:
    for host in ("localhost", "x/health?", "a@b"):
        answer = serve(keys=[FIRST]).get(path, headers={"Host": host}, follow_redirects=False)
        assert answer.status_code in (400, 401)


def test_each_key_is_a_tenant_and_only_digests_are_stored() -> None:
    keys = ApiKeys([FIRST, SECOND, FIRST])
    assert keys.tenant(f"Bearer {FIRST}".encode()) == "key-0"
    assert keys.tenant(f"Bearer {SECOND}".encode()) == "key-1"
    assert FIRST not in repr(vars(keys))
    assert ApiKeys().tenant(None) == ""


def test_short_api_key_is_rejected() -> None:
    with pytest.raises(ConfigError, match="fewer than 16 characters"):
        ApiKeys(["secret"])


def test_chunked_body_above_the_limit_returns_413(serve: Serve) -> None:
    client = serve(limits=Limits(max_body_bytes=1000))

    def endless() -> Any:
        for _ in range(100):
            yield b" " * 100

    answer = client.post("/v1/embeddings", content=endless(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"


def test_every_response_has_a_unique_request_id(client: TestClient) -> None:
    ids = {client.get("/health", headers={"X-Request-Id": "mine"}).headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5
    assert "mine" not in ids


def test_logs_contain_no_texts_instructions_or_keys(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    client = serve(keys=[FIRST])
    with caplog.at_level(logging.INFO):
        body = {"input": ["my secret text"], "instruction": "my secret instruction", "model": "my secret model"}
        headers = {"Authorization": f"Bearer {FIRST}"}
        client.post("/v1/embeddings?secret=1", json=body, headers=headers)
        client.post("/v1/embeddings", json={**body, "model": "tiny"}, headers=headers)
        client.post("/v1/embeddings", content=b'{"input": "my secret', headers=headers)
        client.get("/my/secret/path", headers=headers)
    requests = [vars(record)["fields"] for record in caplog.records if record.name.endswith("requests")]
    assert [one["status"] for one in requests if one["route"] == "/v1/embeddings"] == [404, 200, 400]
    assert any(one.get("inputs") == 1 and one["tokens"] > 3 and one["tenant"] == "key-0" for one in requests)
    own = [record.getMessage() for record in caplog.records if record.name.startswith("promptembedder")]
    said = json.dumps([requests, own])
    assert "secret" not in said
    assert FIRST not in said


def test_loading_and_draining_return_503(saved_model: Path) -> None:
    may_load = threading.Event()
    state = ServerState()

    def load(given: ServerState) -> Any:
        may_load.wait(20)
        return load_service(
            saved_model, ServerConfig(model_name="tiny"), given.metrics, reading=ReadingConfig(device="cpu")
        )

    with TestClient(create_app(load, state=state)) as client:
        for path in ("/health", "/v1/models", "/info"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "loading")
            assert int(answer.headers["retry-after"]) >= 1
        assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 503
        may_load.set()
        while client.get("/health").status_code != 200:
            pass
        assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 200
        state.phase = Phase.DRAINING
        answer = client.post("/v1/embeddings", json={"input": "a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
        assert client.get("/health").status_code == 503
        assert client.get("/metrics").status_code == 200


def test_client_disconnect_removes_queued_texts(serve: Serve) -> None:
    """Plain ASGI: a body, then the message that the client is gone, while the computing thread is busy."""
    client = serve(truncate="right")  # a server of its own
    app, engine = client.app, client.app.state.server.service.engine
    texts = [*(f"{n}" for n in range(10)), *(f"a longer text is number {n}" for n in range(10))]  # two batches

    async def leaving() -> list[dict[str, Any]]:
        body = json.dumps({"input": texts}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if len(messages) == 1:
                await asyncio.sleep(0.05)
            return messages.pop(0)

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": headers, "query_string": b""}
        await app(scope, receive, send)
        return sent

    compute, held = engine._embed, threading.Event()
    engine._embed = lambda wanted: held.wait(10) and compute(wanted)
    sent = asyncio.run(leaving())
    assert sent[0]["status"] == 499
    assert engine.waiting == 10  # what was not yet under way is gone
    held.set()
    engine._embed = compute
    assert client.post("/v1/embeddings", json={"input": "next"}).status_code == 200
    assert engine.waiting == 0
