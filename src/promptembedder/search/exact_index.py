"""Exact search: the query against every text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from promptembedder.errors import ConfigError, DataError
from promptembedder.shapes import Float

__all__ = ["ExactIndex", "Hit"]

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
