"""Exact search in memory, and measurement of a table's recall and latency."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from promptembedder.data import TextRow
from promptembedder.errors import ConfigError, DataError
from promptembedder.model import Encoder
from promptembedder.search.vector_table import TableHit, VectorTable
from promptembedder.types import Float

__all__ = ["ExactIndex", "Hit", "SearchReport", "build_index", "measure_search"]

_LENGTH_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A search result: `rank` counts from 1, `score` is the cosine similarity."""

    rank: int
    id: str
    text: str
    score: float


@dataclass(frozen=True, kw_only=True)
class ExactIndex:
    """Exact in-memory index of texts and their vectors.

    Attributes:
        ids: Id of each text.
        texts: Texts in the order of the corpus.
        vectors: Float32 vectors of length 1, or 0: a zero vector has cosine 0 with every query.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    vectors: Float[np.ndarray, "docs dim"]

    def __post_init__(self) -> None:
        """Validate that the columns have one length and the vectors length 1 or 0."""
        if not len(self.ids) == len(self.texts) == len(self.vectors):
            raise DataError(
                f"an index needs an id, a text and a vector for each document, got {len(self.ids)} ids, "
                f"{len(self.texts)} texts and {len(self.vectors)} vectors. Pass lists of one length."
            )
        lengths = np.linalg.norm(self.vectors, axis=1)
        valid = (np.abs(lengths - 1) < _LENGTH_TOLERANCE) | (lengths == 0)  # False for NaN
        if not valid.all():
            row = int(valid.argmin())
            raise DataError(f"the vector of {self.ids[row]!r} has length {lengths[row]:.4g}. Divide it by its length.")

    def search(self, query: Float[np.ndarray, " dim"], *, k: int) -> list[Hit]:
        """Find the `k` nearest texts by cosine similarity. Ties are ordered by row.

        Raises:
            ConfigError: If `k` is not positive.
            DataError: If the query has another dimension than the index, or is not finite.
        """
        if k < 1:
            raise ConfigError(f"the number of hits k must be at least 1, got {k}. Try 5.")
        if len(query) != self.vectors.shape[1]:
            raise DataError(
                f"the query has {len(query)} dimensions, the index has {self.vectors.shape[1]}. "
                "Embed both with the same model."
            )
        length = np.linalg.norm(query)
        if not np.isfinite(length):
            raise DataError("the vector of the query is not finite. Load the backbone with dtype float32.")
        unit = (query / (length or 1)).astype(np.float32)
        # einsum, not @: BLAS sums some rows in another order, so that equal texts would not tie
        scores = np.einsum("nd,d->n", self.vectors, unit)  # [docs]
        best = np.argsort(-scores, kind="stable")[:k]
        return [
            Hit(rank=rank, id=self.ids[row], text=self.texts[row], score=float(scores[row]))
            for rank, row in enumerate(best, start=1)
        ]


_TIE_TOLERANCE = 1e-6  # rounding error of a cosine in float32


@dataclass(frozen=True, kw_only=True)
class SearchReport:
    """Recall and latency of searches for rows of the table itself.

    Attributes:
        queries: Number of rows used as queries. Each is excluded from its own hits.
        k: Number of hits of a search.
        recall: Mean recall@k against exact search, 0..1. Ties count as found.
        p50_ms: Median latency of a default search in milliseconds, after one warm-up search.
        p99_ms: 99th percentile of the latency in milliseconds.
        exact_p50_ms: Median latency of an exact search in milliseconds.
    """

    queries: int
    k: int
    recall: float
    p50_ms: float
    p99_ms: float
    exact_p50_ms: float


def measure_search(table: VectorTable, *, queries: int = 200, k: int = 10, seed: int = 0) -> SearchReport:
    """Measure recall and latency with random rows of the table as queries.

    Raises:
        ConfigError: If `queries` or `k` is not positive.
        DataError: If the table has fewer than two rows.
    """
    if queries < 1 or k < 1:
        raise ConfigError(f"queries and k must be at least 1, got {queries} and {k}. Try 200 and 10.")
    rows = table.rows
    if rows < 2:
        raise DataError(f"the table has {rows} rows, too few to search for neighbours. Add rows first.")
    k = min(k, rows - 1)
    ids, vectors = table.sample(queries, seed=seed)
    for exact_search in (False, True):
        table.search(vectors[0], k=k + 1, exact=exact_search)
    default = [_time_search(table, vector, k, exact=False) for vector in vectors]
    exact = [_time_search(table, vector, k, exact=True) for vector in vectors]
    recalls = [
        _recall(_exclude(hits, query_id, k), _exclude(nearest, query_id, k))
        for query_id, (hits, _), (nearest, _) in zip(ids, default, exact, strict=True)
    ]
    seconds = [second for _, second in default]
    return SearchReport(
        queries=len(ids),
        k=k,
        recall=float(np.mean(recalls)),
        p50_ms=float(np.percentile(seconds, 50)) * 1000,
        p99_ms=float(np.percentile(seconds, 99)) * 1000,
        exact_p50_ms=float(np.percentile([second for _, second in exact], 50)) * 1000,
    )


def _time_search(
    table: VectorTable, query: Float[np.ndarray, " dim"], k: int, *, exact: bool
) -> tuple[list[TableHit], float]:
    start = time.perf_counter()
    hits = table.search(query, k=k + 1, exact=exact)  # k + 1: the query row itself is among the hits
    return hits, time.perf_counter() - start


def _exclude(hits: list[TableHit], row_id: str, k: int) -> list[TableHit]:
    return [hit for hit in hits if hit.id != row_id][:k]


def _recall(hits: list[TableHit], nearest: list[TableHit]) -> float:
    farthest = nearest[-1].score - _TIE_TOLERANCE
    return sum(hit.score >= farthest for hit in hits) / len(nearest)


def build_index(
    encoder: Encoder,
    rows: Sequence[TextRow],
    *,
    prompt: str | None = None,
    batch_size: int = 32,
    on_rows: Callable[[int], None] | None = None,
) -> ExactIndex:
    """Embed the rows and build an exact index of them, in their order, with vectors normalized to length 1.

    Args:
        prompt: Instruction for the texts. If None, the encoder's default.
        batch_size: Number of texts per call of the encoder.
        on_rows: Called after each batch with the number of its rows.

    Raises:
        DataError: If there are no rows, or a vector is not finite.
        ConfigError: If `batch_size` is not positive.
    """
    if not rows:
        raise DataError("the corpus is empty. Give at least one text.")
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}. Leave it out for the default.")
    by_length = sorted(range(len(rows)), key=lambda row: -len(rows[row].text))
    parts = []
    for start in range(0, len(rows), batch_size):
        texts = [rows[row].text for row in by_length[start : start + batch_size]]
        parts.append(np.asarray(encoder.encode(texts, prompt=prompt, batch_size=batch_size), dtype=np.float32))
        if on_rows is not None:
            on_rows(len(texts))
    sorted_vectors = np.concatenate(parts)  # [docs, dim]
    vectors = np.empty_like(sorted_vectors)
    vectors[by_length] = sorted_vectors
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors /= np.where(lengths == 0, 1, lengths)
    return ExactIndex(ids=[row.id for row in rows], texts=[row.text for row in rows], vectors=vectors)
