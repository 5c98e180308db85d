"""Exact search, approximate indexes and their recall."""

from collections.abc import Sequence
from dataclasses import dataclass
import numpy as np
from promptembedder.errors import ConfigError, DataError
from promptembedder.types import Float
import time
from promptembedder.search.vector_table import TableHit, VectorTable
from collections.abc import Callable, Sequence
from promptembedder.data import TextRow
from promptembedder.model import Encoder

__all__ = ['ExactIndex', 'Hit', 'SearchReport', 'build_index', 'measure_search']

_LENGTH_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A text that was found: `rank` counts from 1, `score` is the cosine."""

    rank: int
    id: str
    text: str
    score: float


@dataclass(frozen=True, kw_only=True)
class ExactIndex:
    """Texts and their vectors, compared one by one.

    Attributes:
        vectors: Float32 of length 1; or 0, which is as far from each query as from any other.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    vectors: Float[np.ndarray, "docs dim"]

    def __post_init__(self) -> None:
        """Check that the columns fit each other."""
        if not len(self.ids) == len(self.texts) == len(self.vectors):
            raise DataError(
                f"an index needs an id, a text and a vector for each document, got {len(self.ids)} ids, "
                f"{len(self.texts)} texts and {len(self.vectors)} vectors."
            )
        lengths = np.linalg.norm(self.vectors, axis=1)
        fitting = (np.abs(lengths - 1) < _LENGTH_TOLERANCE) | (lengths == 0)  # NaN fits neither
        if not fitting.all():
            row = int(fitting.argmin())
            raise DataError(f"the vector of {self.ids[row]!r} has length {lengths[row]:.4g}. Divide it by its length.")

    def search(self, query: Float[np.ndarray, " dim"], *, k: int) -> list[Hit]:
        """The `k` nearest texts by cosine, or all if there are fewer; of equal ones the earlier row goes first.

        Raises:
            ConfigError: `k` is not positive.
            DataError: The query has another width than the index, or is not finite.
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
        # einsum, not @: BLAS sums some rows in another order than others, so equal texts would not tie
        scores = np.einsum("nd,d->n", self.vectors, unit)  # [docs]
        best = np.argsort(-scores, kind="stable")[:k]
        return [
            Hit(rank=rank, id=self.ids[row], text=self.texts[row], score=float(scores[row]))
            for rank, row in enumerate(best, start=1)
        ]


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


def build_index(
    encoder: Encoder,
    rows: Sequence[TextRow],
    *,
    prompt: str | None = None,
    batch_size: int = 32,
    on_rows: Callable[[int], None] | None = None,
) -> ExactIndex:
    """An index of the rows, in their order, with vectors scaled to length 1.

    Args:
        prompt: The instruction the texts are read under.
        on_rows: Called after each batch with the number of its rows.

    Raises:
        DataError: There are no rows, or a vector is not finite.
        ConfigError: `batch_size` is not positive.
    """
    if not rows:
        raise DataError("the corpus is empty: there is nothing to search. Give at least one text.")
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
