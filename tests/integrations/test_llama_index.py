"""LlamaIndex: vectors, settings as JSON, and caches that several instructions share."""

import pickle

import numpy as np
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.schema import TextNode
from llama_index.core.storage.kvstore import SimpleKVStore

from promptembedder import PromptEmbedder
from promptembedder.errors import ConfigError, DataError
from promptembedder.integrations import PromptEmbedderEmbedding

from .conftest import DOCUMENTS, QUERIES, TEXTS


async def test_its_vectors_are_the_models(model_folder: str, plain: PromptEmbedder) -> None:
    embedding = PromptEmbedderEmbedding(model_folder, instruction=QUERIES, document_instruction=DOCUMENTS)
    query = plain.encode([TEXTS[0]], prompt=QUERIES)[0]
    documents = plain.encode(TEXTS, prompt=DOCUMENTS)
    np.testing.assert_allclose(embedding.get_query_embedding(TEXTS[0]), query, atol=1e-6)
    np.testing.assert_allclose(await embedding.aget_query_embedding(TEXTS[0]), query, atol=1e-6)
    np.testing.assert_allclose(embedding.get_text_embedding(TEXTS[0]), documents[0], atol=1e-6)
    np.testing.assert_allclose(await embedding.aget_text_embedding(TEXTS[0]), documents[0], atol=1e-6)
    np.testing.assert_allclose(embedding.get_text_embedding_batch(TEXTS), documents, atol=1e-6)
    np.testing.assert_allclose(await embedding.aget_text_embedding_batch(TEXTS), documents, atol=1e-6)


def test_settings_come_back_from_json_and_pickle(model_folder: str) -> None:
    embedding = PromptEmbedderEmbedding(
        model_folder, instruction=QUERIES, max_tokens=16, embed_batch_size=2, embeddings_cache=SimpleKVStore()
    )
    vector = embedding.get_query_embedding(TEXTS[0])
    for again in (PromptEmbedderEmbedding.from_json(embedding.to_json()), pickle.loads(pickle.dumps(embedding))):
        assert (again.view.config, again.embed_batch_size) == (embedding.view.config, 2)
        assert again.get_query_embedding(TEXTS[0]) == vector


async def test_instructions_that_share_a_cache_do_not_get_each_others_vectors(model_folder: str) -> None:
    """LlamaIndex looks up by the text alone: the second would get the first one's vector, a query a document's."""
    store = SimpleKVStore()
    instructions = (QUERIES, "Find what contradicts")
    plain = [
        PromptEmbedderEmbedding(model_folder, instruction=one, document_instruction=DOCUMENTS) for one in instructions
    ]
    cached = [
        PromptEmbedderEmbedding(model_folder, instruction=one, document_instruction=DOCUMENTS, embeddings_cache=store)
        for one in instructions
    ]
    for _ in range(2):  # made, then looked up
        for own, reference in zip(cached, plain, strict=True):
            assert own.get_text_embedding(TEXTS[0]) == reference.get_text_embedding(TEXTS[0])
            assert own.get_query_embedding(TEXTS[0]) == reference.get_query_embedding(TEXTS[0])
            assert await own.aget_query_embedding(TEXTS[0]) == reference.get_query_embedding(TEXTS[0])
            np.testing.assert_allclose(
                own.get_text_embedding_batch(TEXTS), reference.get_text_embedding_batch(TEXTS), atol=1e-6
            )
    kept = [store.get_all(collection=name) for name in store._collections_mappings]
    assert sorted(len(vectors) for vectors in kept) == [1, 1, 3]  # a query each; the documents are read alike by both


def test_what_is_cached_is_not_computed_again(model_folder: str) -> None:
    embedding = PromptEmbedderEmbedding(model_folder)
    embedding.embeddings_cache = SimpleKVStore()  # set later, it is this embedder's part of the store as well
    embedding.get_query_embedding(TEXTS[0])
    (name,) = embedding.embeddings_cache.store._collections_mappings
    assert name == embedding.view.cache_name(as_queries=True)
    embedding.embeddings_cache.store.put(TEXTS[0], {"known": [1.0]}, collection=name)
    assert embedding.get_query_embedding(TEXTS[0]) == [1.0]


def test_an_index_answers_by_cosine(model_folder: str, plain: PromptEmbedder) -> None:
    embedding = PromptEmbedderEmbedding(model_folder, instruction=QUERIES)
    nodes = IngestionPipeline(transformations=[embedding]).run(nodes=[TextNode(text=text) for text in TEXTS])
    index = VectorStoreIndex(nodes, embed_model=embedding)
    scores = plain.encode(TEXTS) @ plain.encode(["which house"], prompt=QUERIES)[0]
    found = index.as_retriever(similarity_top_k=3).retrieve("which house")
    assert [one.text for one in found] == [TEXTS[i] for i in np.argsort(-scores)]
    np.testing.assert_allclose([one.score for one in found], np.sort(scores)[::-1], atol=1e-5)
    answer = index.as_query_engine(llm=MockLLM(), similarity_top_k=1).query("which house")
    assert answer.source_nodes[0].text == found[0].text


def test_a_document_without_text_is_refused(model_folder: str) -> None:
    with pytest.raises(DataError, match="document 0 has no text"):
        VectorStoreIndex([TextNode(text=" ")], embed_model=PromptEmbedderEmbedding(model_folder))


def test_wrong_settings_are_one_line() -> None:
    with pytest.raises(ConfigError, match="unknown setting 'prompt' of a view"):
        PromptEmbedderEmbedding("a", prompt="b")
    with pytest.raises(TypeError, match="embeddings_cache must be a BaseKVStore, got dict. Try SimpleKVStore()"):
        PromptEmbedderEmbedding("a", embeddings_cache={})
