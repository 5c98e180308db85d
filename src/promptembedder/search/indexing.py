"""From the texts of a corpus to their index."""

from collections.abc import Callable, Sequence

import numpy as np

from promptembedder.data import TextRow
from promptembedder.errors import ConfigError, DataError
from promptembedder.models import Encoder
from promptembedder.search.exact_index import ExactIndex

__all__ = ["build_index"]


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
