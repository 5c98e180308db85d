"""Chroma: collections that find their embedder again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb.utils.embedding_functions import config_to_embedding_function

from promptembedder import PromptEmbedder
from promptembedder.errors import ConfigError, DataError
from promptembedder.integrations import PromptEmbedderEmbeddingFunction

from .conftest import DOCUMENTS, QUERIES, TEXTS


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Any]:
    yield chromadb.PersistentClient(tmp_path, settings=chromadb.Settings(anonymized_telemetry=False))


def test_a_collection_embeds_its_documents_and_queries_by_cosine(
    client: Any, model_folder: str, plain: PromptEmbedder
) -> None:
    function = PromptEmbedderEmbeddingFunction(model_folder, instruction=QUERIES, document_instruction=DOCUMENTS)
    collection = client.create_collection("texts", embedding_function=function)
    collection.add(ids=["0", "1", "2"], documents=TEXTS)
    assert collection.configuration["hnsw"]["space"] == "cosine"
    documents = plain.encode(TEXTS, prompt=DOCUMENTS)
    np.testing.assert_allclose(collection.get(include=["embeddings"])["embeddings"], documents, atol=1e-6)
    scores = documents @ plain.encode(["which house"], prompt=QUERIES)[0]
    found = collection.query(query_texts=["which house"], n_results=3)
    assert found["ids"][0] == [str(i) for i in np.argsort(-scores)]
    np.testing.assert_allclose(1 - np.array(found["distances"][0]), np.sort(scores)[::-1], atol=1e-4)


def test_a_function_is_built_from_its_configuration(model_folder: str) -> None:
    function = PromptEmbedderEmbeddingFunction(model_folder, instruction=QUERIES, max_tokens=16)
    assert not function.is_legacy()
    again = config_to_embedding_function({"name": function.name(), "config": function.get_config()})
    assert isinstance(again, PromptEmbedderEmbeddingFunction)
    assert again.view.config == function.view.config


def test_a_collection_keeps_what_its_vectors_were_made_with(client: Any, model_folder: str) -> None:
    function = PromptEmbedderEmbeddingFunction(model_folder, instruction=QUERIES)
    function.validate_config_update(function.get_config(), {"model": "moved", "instruction": "Another"})
    with pytest.raises(ConfigError, match="vectors were made with document_instruction=None, not 'Another'"):
        function.validate_config_update(function.get_config(), {"model": "a", "document_instruction": "Another"})


def test_a_document_without_text_is_refused(client: Any, model_folder: str) -> None:
    collection = client.create_collection("texts", embedding_function=PromptEmbedderEmbeddingFunction(model_folder))
    with pytest.raises(DataError, match=r"document 1 has no text"):
        collection.add(ids=["0", "1"], documents=["a", " "])
    assert collection.count() == 0


def test_wrong_settings_are_one_line() -> None:
    with pytest.raises(ConfigError, match="unknown setting 'model_name' of a view"):
        PromptEmbedderEmbeddingFunction.build_from_config({"model_name": "a"})
    with pytest.raises(ConfigError, match="instruction is blank"):
        PromptEmbedderEmbeddingFunction.validate_config({"model": "a", "instruction": ""})
