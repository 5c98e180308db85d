"""How much of the exact answer an approximate search finds, and in what time."""

import time
from dataclasses import dataclass

import numpy as np

from promptembedder.errors import ConfigError, DataError
from promptembedder.search.vector_table import TableHit, VectorTable
from promptembedder.shapes import Float

__all__ = ["SearchReport", "measure_search"]

_TIE = 1e-6  # of a cosine in float32


@dataclass(frozen=True, kw_only=True)
class SearchReport:
    """What searching for some of a table's own rows gave.

    Attributes:
        queries: Rows searched for, each without itself among its hits.
        k: Hits of a search.
        recall: Mean share of the `k` nearest rows that were found, 0..1; equally near ones count alike.
        p50_ms: Median time of a search as it is asked for, after a first one that is not counted.
        p99_ms: The time that one search in a hundred exceeds.
        exact_p50_ms: Median time of a search that compares all rows.
    """

    queries: int
    k: int
    recall: float
    p50_ms: float
    p99_ms: float
    exact_p50_ms: float


def measure_search(table: VectorTable, *, queries: int = 200, k: int = 10, seed: int = 0) -> SearchReport:
    """Search for rows of the table, drawn at random, as usual and exactly.

    Raises:
        ConfigError: `queries` or `k` is not positive.
        DataError: The table has fewer than two rows.
    """
    if queries < 1 or k < 1:
        raise ConfigError(f"queries and k must be at least 1, got {queries} and {k}. Try 200 and 10.")
    rows = table.rows
    if rows < 2:
        raise DataError(f"a table of {rows} rows has no neighbours to find. Add rows first.")
    k = min(k, rows - 1)
    ids, vectors = table.sample(queries, seed=seed)
    for compare_all in (False, True):
        table.search(vectors[0], k=k + 1, exact=compare_all)
    usual = [_timed(table, vector, k, exact=False) for vector in vectors]
    exact = [_timed(table, vector, k, exact=True) for vector in vectors]
    recalls = [
        _recall(_others(found, own, k), _others(nearest, own, k))
        for own, (found, _), (nearest, _) in zip(ids, usual, exact, strict=True)
    ]
    seconds = [second for _, second in usual]
    return SearchReport(
        queries=len(ids),
        k=k,
        recall=float(np.mean(recalls)),
        p50_ms=float(np.percentile(seconds, 50)) * 1000,
        p99_ms=float(np.percentile(seconds, 99)) * 1000,
        exact_p50_ms=float(np.percentile([second for _, second in exact], 50)) * 1000,
    )


def _timed(
    table: VectorTable, query: Float[np.ndarray, " dim"], k: int, *, exact: bool
) -> tuple[list[TableHit], float]:
    start = time.perf_counter()
    hits = table.search(query, k=k + 1, exact=exact)  # one more: the row itself
    return hits, time.perf_counter() - start


def _others(hits: list[TableHit], own: str, k: int) -> list[TableHit]:
    return [hit for hit in hits if hit.id != own][:k]


def _recall(found: list[TableHit], nearest: list[TableHit]) -> float:
    farthest = nearest[-1].score - _TIE
    return sum(hit.score >= farthest for hit in found) / len(nearest)
