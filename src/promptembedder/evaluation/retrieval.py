"""Retrieval scores: nDCG@10 and recall@10 of an encoder and of BM25 as lexical baseline."""

from dataclasses import dataclass

import bm25s
import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from promptembedder.data import SearchTask
from promptembedder.types import Float

__all__ = ["RetrievalScore", "bm25_score", "retrieval_score", "vector_score"]


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
    evaluator = _evaluator(task, query_prompt=None, document_prompt=None, batch_size=1)
    cosines = query_vectors @ document_vectors.T
    names = list(task.documents)
    ranked = [
        [{"corpus_id": names[row], "score": float(scores[row])} for row in np.argsort(-scores)[:100]]
        for scores in cosines[[list(task.queries).index(name) for name in evaluator.queries_ids]]
    ]
    metrics = evaluator.compute_metrics(ranked)
    return RetrievalScore(float(metrics["ndcg@k"][10]), float(metrics["recall@k"][10]))


def bm25_score(task: SearchTask) -> RetrievalScore:
    """Score BM25 (Lucene's variant, English stop words) on `task` with the same metric code."""
    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(task.documents.values()), stopwords="en", show_progress=False), show_progress=False)
    evaluator = _evaluator(task, query_prompt=None, document_prompt=None, batch_size=1)
    depth = min(100, len(task.documents))
    queries = bm25s.tokenize(evaluator.queries, stopwords="en", show_progress=False)
    rows, scores = index.retrieve(queries, k=depth, show_progress=False)
    ranked = [
        [
            {"corpus_id": evaluator.corpus_ids[row], "score": float(score)}
            for row, score in zip(rows[query], scores[query], strict=True)
        ]
        for query in range(len(evaluator.queries))
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
