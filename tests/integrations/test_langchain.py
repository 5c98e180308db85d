"""LangChain's own conformance suites, and what they do not look at."""

from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from promptembedder import PromptEmbedder
from promptembedder.integrations import PromptEmbedderEmbeddings

from .conftest import DOCUMENTS, QUERIES, TEXTS


class OnTheTinyModel:
    """What both suites are told."""

    @pytest.fixture(autouse=True)
    def _folder(self, model_folder: str) -> None:
        self.folder = model_folder

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return PromptEmbedderEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": self.folder, "instruction": QUERIES}


class TestUnits(OnTheTinyModel, EmbeddingsUnitTests):
    """langchain-tests' unit tests."""


class TestIntegration(OnTheTinyModel, EmbeddingsIntegrationTests):
    """langchain-tests' integration tests."""


async def test_its_vectors_are_the_models(model_folder: str, plain: PromptEmbedder) -> None:
    embeddings = PromptEmbedderEmbeddings(model_folder, instruction=QUERIES, document_instruction=DOCUMENTS)
    query = plain.encode([TEXTS[0]], prompt=QUERIES)[0]
    documents = plain.encode(TEXTS, prompt=DOCUMENTS)
    np.testing.assert_allclose(embeddings.embed_query(TEXTS[0]), query, atol=1e-6)
    np.testing.assert_allclose(await embeddings.aembed_query(TEXTS[0]), query, atol=1e-6)
    np.testing.assert_allclose(embeddings.embed_documents(TEXTS), documents, atol=1e-6)
    np.testing.assert_allclose(await embeddings.aembed_documents(TEXTS), documents, atol=1e-6)


def test_a_store_of_langchains_searches_by_cosine(model_folder: str, plain: PromptEmbedder) -> None:
    store = InMemoryVectorStore(PromptEmbedderEmbeddings(model_folder, instruction=QUERIES))
    store.add_documents([Document(text) for text in TEXTS])
    scores = plain.encode(TEXTS) @ plain.encode(["which house"], prompt=QUERIES)[0]
    found = store.similarity_search_with_score("which house", k=3)
    assert [document.page_content for document, _ in found] == [TEXTS[i] for i in np.argsort(-scores)]
    np.testing.assert_allclose([score for _, score in found], np.sort(scores)[::-1], atol=1e-5)
