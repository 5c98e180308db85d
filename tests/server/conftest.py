"""A saved tiny model, served in this process."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from promptembedder import BackboneConfig, ModelConfig, PromptEmbedder, PrompterConfig
from promptembedder.server import ApiKeys, Limits, ReadingConfig, ServerConfig, ServerState, create_app, load_service

COMPILED = "Find texts on the same topic"
QUERY = "Find the text that answers the question"
FREE = "Say which mood a text has"


@pytest.fixture(scope="package")
def saved_model(tmp_path_factory: pytest.TempPathFactory, lively_backbones: None) -> Path:
    """A model with two compiled instructions, one of them its prompt for queries."""
    torch.set_num_threads(1)
    config = ModelConfig(
        prompter=PrompterConfig(backbone=BackboneConfig(source="random:tiny-llama", dtype="float32")),
        reader=BackboneConfig(source="random:tiny-qwen3", dtype="float32"),
        max_seq_length=32,
    )
    model = PromptEmbedder.create(config=config, device="cpu")
    model.prompts["query"] = QUERY
    model.compile_instructions([COMPILED, QUERY])
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model.save(str(folder))
    return folder


@pytest.fixture(scope="package")
def offline(saved_model: Path) -> Callable[..., np.ndarray]:
    """Vectors of the same model without a server: `offline(texts, instruction)`."""
    model = PromptEmbedder.from_pretrained(saved_model, device="cpu")
    return lambda texts, instruction=None: model.encode(list(texts), prompt=instruction)


@pytest.fixture(scope="package")
def serve(saved_model: Path) -> Iterator[Callable[..., TestClient]]:
    """Serves the model: `serve(instructions="compiled", limits=Limits(max_inputs=3), keys=[...])`, each way once."""
    served: dict[str, TestClient] = {}
    with ExitStack() as open_clients:

        def started(*, keys: list[str] | None = None, limits: Limits | None = None, **changes: Any) -> TestClient:
            way = repr((keys, limits, changes))
            if way in served:
                return served[way]
            config = ServerConfig(model_name="tiny", limits=limits or Limits(), **changes)

            def load(state: ServerState) -> Any:
                return load_service(saved_model, config, state.metrics, reading=ReadingConfig(device="cpu"))

            failed: list[Exception] = []
            app = create_app(load, keys=ApiKeys(keys or []), limits=limits, on_failure=failed.append)
            client = open_clients.enter_context(TestClient(app, raise_server_exceptions=False))
            while client.get("/health").status_code != 200:
                assert not failed, failed
            served[way] = client
            return client

        yield started


@pytest.fixture(scope="package")
def client(serve: Callable[..., TestClient]) -> TestClient:
    """The model with all defaults."""
    return serve()
