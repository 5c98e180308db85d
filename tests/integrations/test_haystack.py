"""Haystack: components whose instruction each call may change."""

import numpy as np
import pytest
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore

from promptembedder import PromptEmbedder
from promptembedder.errors import ConfigError, DataError
from promptembedder.integrations import PromptEmbedderDocumentEmbedder, PromptEmbedderTextEmbedder

from .conftest import DOCUMENTS, QUERIES, TEXTS


def test_pipelines_index_and_search(model_folder: str, plain: PromptEmbedder) -> None:
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    indexing = Pipeline()
    indexing.add_component("embedder", PromptEmbedderDocumentEmbedder(model_folder))
    indexing.add_component("writer", DocumentWriter(store))
    indexing.connect("embedder.documents", "writer.documents")
    indexing.run({"embedder": {"documents": [Document(content=text) for text in TEXTS], "instruction": DOCUMENTS}})
    searching = Pipeline()
    searching.add_component("embedder", PromptEmbedderTextEmbedder(model_folder, instruction=QUERIES))
    searching.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=3))
    searching.connect("embedder.embedding", "retriever.query_embedding")
    for instruction in (None, "Find what contradicts"):
        found = searching.run({"embedder": {"text": "which house", "instruction": instruction}})["retriever"][
            "documents"
        ]
        query = plain.encode(["which house"], prompt=instruction or QUERIES)[0]
        scores = plain.encode(TEXTS, prompt=DOCUMENTS) @ query
        assert [document.content for document in found] == [TEXTS[i] for i in np.argsort(-scores)]
        np.testing.assert_allclose([document.score for document in found], np.sort(scores)[::-1], atol=1e-5)


def test_documents_are_copied_not_changed(model_folder: str) -> None:
    document = Document(content="a", meta={"page": 3})
    (embedded,) = PromptEmbedderDocumentEmbedder(model_folder).run([document])["documents"]
    assert document.embedding is None
    assert (embedded.content, embedded.meta, embedded.id) == ("a", {"page": 3}, document.id)


async def test_its_coroutines_give_the_same(model_folder: str) -> None:
    text = PromptEmbedderTextEmbedder(model_folder, instruction=QUERIES)
    assert await text.run_async("a house", "Another") == text.run("a house", "Another")
    documents = PromptEmbedderDocumentEmbedder(model_folder)
    given = [Document(content=one) for one in TEXTS]
    assert await documents.run_async(given) == documents.run(given)


def test_a_pipeline_comes_back_from_what_it_was_written_as(model_folder: str) -> None:
    pipeline = Pipeline()
    pipeline.add_component("text", PromptEmbedderTextEmbedder(model_folder, instruction=QUERIES, max_tokens=16))
    pipeline.add_component("documents", PromptEmbedderDocumentEmbedder(model_folder, instruction=DOCUMENTS))
    written = pipeline.dumps()
    again = Pipeline.loads(written)
    assert again.dumps() == written
    for name in ("text", "documents"):
        assert again.get_component(name).view.config == pipeline.get_component(name).view.config
    data = {"text": {"text": "a"}, "documents": {"documents": [Document(content="b")]}}
    assert again.run(data) == pipeline.run(data)


@pytest.mark.parametrize("document", [Document(content=None), Document(content=" ")])
def test_a_document_without_text_is_refused(model_folder: str, document: Document) -> None:
    with pytest.raises(DataError, match=f"document '{document.id}' has no text. Add content, or remove it."):
        PromptEmbedderDocumentEmbedder(model_folder).run([Document(content="a"), document])


def test_a_blank_instruction_is_refused(model_folder: str) -> None:
    with pytest.raises(ConfigError, match="instruction is blank"):
        PromptEmbedderTextEmbedder(model_folder).run("a", instruction=" ")
