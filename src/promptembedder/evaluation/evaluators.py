"""Evaluators of sentence-transformers: retrieval, with BM25 as lexical baseline, and similarity during training."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
)

from promptembedder.data import SearchTask, read_rows
from promptembedder.errors import DataError
from promptembedder.types import Float

__all__ = [
    "InstructedSimilarityEvaluator",
    "RetrievalScore",
    "bm25_score",
    "bm25_similarities",
    "preserve_rng",
    "retrieval_score",
    "similarity_evaluator",
    "vector_score",
]


@dataclass(frozen=True)
class RetrievalScore:
    """Means over the queries, between 0 and 1."""

    ndcg_at_10: float
    recall_at_10: float


def retrieval_score(
    model: SentenceTransformer,
    task: SearchTask,
    *,
    query_prompt: str | None,
    document_prompt: str | None = None,
    batch_size: int = 32,
) -> RetrievalScore:
    """Score `model` on `task` by cosine similarity with sentence-transformers' evaluator."""
    evaluator = _evaluator(task, query_prompt=query_prompt, document_prompt=document_prompt, batch_size=batch_size)
    metrics = evaluator(model)
    prefix = f"{evaluator.name}_cosine"
    return RetrievalScore(float(metrics[f"{prefix}_ndcg@10"]), float(metrics[f"{prefix}_recall@10"]))


def vector_score(
    task: SearchTask,
    query_vectors: Float[np.ndarray, "queries dim"],
    document_vectors: Float[np.ndarray, "docs dim"],
) -> RetrievalScore:
    """Score precomputed unit vectors, in the order of the task's queries and documents."""
    return _similarity_score(task, query_vectors @ document_vectors.T)


def bm25_score(task: SearchTask) -> RetrievalScore:
    """Score BM25 on `task` with the same metric code."""
    return _similarity_score(task, bm25_similarities(list(task.queries.values()), list(task.documents.values())))


def bm25_similarities(queries: Sequence[str], documents: Sequence[str]) -> Float[np.ndarray, "queries docs"]:
    """Compute the BM25 scores of the documents for each query: Lucene's variant, English stop words."""
    index = bm25s.BM25()
    index.index(bm25s.tokenize(documents, stopwords="en", show_progress=False), show_progress=False)
    tokens = bm25s.tokenize(queries, stopwords="en", return_ids=False, show_progress=False)
    scores = [index.get_scores(words) if words else np.zeros(len(documents)) for words in tokens]
    return np.stack(scores).astype(np.float32)


def _similarity_score(task: SearchTask, similarities: Float[np.ndarray, "queries docs"]) -> RetrievalScore:
    evaluator = _evaluator(task, query_prompt=None, document_prompt=None, batch_size=1)
    names = list(task.documents)
    ranked = [
        [{"corpus_id": names[row], "score": float(scores[row])} for row in np.argsort(-scores, kind="stable")[:100]]
        for scores in similarities[[list(task.queries).index(name) for name in evaluator.queries_ids]]
    ]
    metrics = evaluator.compute_metrics(ranked)
    return RetrievalScore(float(metrics["ndcg@k"][10]), float(metrics["recall@k"][10]))


def _evaluator(
    task: SearchTask, *, query_prompt: str | None, document_prompt: str | None, batch_size: int
) -> InformationRetrievalEvaluator:
    return InformationRetrievalEvaluator(
        task.queries,
        task.documents,
        task.relevant,
        precision_recall_at_k=[10],
        batch_size=batch_size,
        name="search",
        write_csv=False,
        # not None, which would select the model's default prompts
        query_prompt=query_prompt or "",
        corpus_prompt=document_prompt or "",
    )


@contextmanager
def preserve_rng() -> Iterator[None]:
    """Restore the state of all random number generators on exit.

    mteb seeds the generators on import and whenever it builds a task or an evaluator, which would change the
    training that an evaluation interrupts.
    """
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


class InstructedSimilarityEvaluator(EmbeddingSimilarityEvaluator):
    """sentence-transformers' similarity evaluator with both sentences encoded under one instruction."""

    def __init__(
        self, sentences1: list[str], sentences2: list[str], scores: list[float], *, instruction: str, name: str
    ) -> None:
        """Create an evaluator of the Spearman correlation of the cosines with `scores`."""
        super().__init__(sentences1, sentences2, scores, batch_size=64, name=name, write_csv=False)
        self.instruction = instruction

    def embed_inputs(self, model: SentenceTransformer, sentences: Any, **kwargs: Any) -> np.ndarray:
        """Encode the sentences under the instruction."""
        return super().embed_inputs(model, sentences, prompt=self.instruction, **kwargs)


def similarity_evaluator(
    path: Path, *, instruction: str, split: str | None = None, limit: int | None = None, name: str = "sts"
) -> InstructedSimilarityEvaluator:
    """Build an evaluator from a file of rows with `sentence1`, `sentence2` and `score`.

    Args:
        split: Value of the column `split` of the rows used. If None, all rows.
        limit: Number of rows, from the first. It is added to the name. If None, all rows.

    Raises:
        DataError: The file lacks a column or has no row of the split.
    """
    rows = [row for row in read_rows(path) if split is None or row.get("split") == split]
    if not rows:
        raise DataError(f"{path} has no row with split {split!r}. Check evaluation.split.")
    missing = [key for key in ("sentence1", "sentence2", "score") if key not in rows[0]]
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r}. It has: {', '.join(rows[0])}.")
    if limit is not None and limit < len(rows):
        rows, name = rows[:limit], f"{name}_first_{limit}"
    return InstructedSimilarityEvaluator(
        [row["sentence1"] for row in rows],
        [row["sentence2"] for row in rows],
        [float(row["score"]) for row in rows],
        instruction=instruction,
        name=name,
    )
