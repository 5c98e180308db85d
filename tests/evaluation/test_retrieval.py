"""Scores against rankings that can be checked by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule

from promptembedder.data import SearchTask
from promptembedder.evaluation import bm25_score, retrieval_score, vector_score

TASK = SearchTask(
    queries={"q1": "red apple", "q2": "fast car"},
    documents={"d1": "the apple was red and sweet", "d2": "a car may go fast", "d3": "rain fell on the house"},
    relevant={"q1": {"d1"}, "q2": {"d3"}},
)


class _Letters(InputModule):
    """Counts letters, and remembers under which prompts it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts: list[str | None] = []

    def preprocess(self, inputs: Any, prompt: str | None = None, **_: Any) -> dict[str, Any]:
        self.prompts.append(prompt)
        return {"input_ids": torch.tensor([[text.count(chr(97 + i)) for i in range(26)] for text in inputs])}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {**features, "sentence_embedding": features["input_ids"].float()}

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        raise AssertionError("not asked for")


def _vector(text: str) -> np.ndarray:
    counts = np.array([text.count(chr(97 + i)) for i in range(26)], dtype=float)
    return counts / np.linalg.norm(counts)


def test_ndcg_and_recall_follow_the_rank_of_the_answer() -> None:
    expected = []
    for query, text in TASK.queries.items():
        scores = {name: float(_vector(text) @ _vector(document)) for name, document in TASK.documents.items()}
        (answer,) = TASK.relevant[query]
        rank = sorted(scores, key=scores.__getitem__, reverse=True).index(answer)
        expected.append(1 / np.log2(rank + 2))
    score = retrieval_score(SentenceTransformer(modules=[_Letters()], device="cpu"), TASK, query_prompt=None)
    assert score.ndcg_at_10 == pytest.approx(np.mean(expected))
    assert score.recall_at_10 == 1.0


def test_queries_and_documents_are_read_under_their_own_instructions() -> None:
    letters = _Letters()
    model = SentenceTransformer(modules=[letters], device="cpu", prompts={"query": "the model's own"})
    retrieval_score(model, TASK, query_prompt="find it", document_prompt="store it")
    assert set(letters.prompts) == {"find it", "store it"}


def test_bm25_finds_what_shares_words_and_misses_what_does_not() -> None:
    score = bm25_score(TASK)
    # q1 finds d1 first; q2's answer shares no word with it and ties with nothing else below d2
    assert 0.5 <= score.ndcg_at_10 < 1.0
    easy = SearchTask(TASK.queries, TASK.documents, {"q1": {"d1"}, "q2": {"d2"}})
    assert bm25_score(easy).ndcg_at_10 == pytest.approx(1.0)


def test_vectors_that_are_there_already_score_as_if_a_model_had_made_them() -> None:
    model = SentenceTransformer(modules=[_Letters()], device="cpu")
    queries = np.stack([_vector(text) for text in TASK.queries.values()])
    documents = np.stack([_vector(text) for text in TASK.documents.values()])
    assert vector_score(TASK, queries, documents) == retrieval_score(model, TASK, query_prompt=None)
    worse = vector_score(TASK, queries, documents[::-1].copy())  # the documents' names no longer fit
    assert worse.ndcg_at_10 != vector_score(TASK, queries, documents).ndcg_at_10
