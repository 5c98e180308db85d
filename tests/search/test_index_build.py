"""Laws of building an index, with an encoder that counts letters."""

from typing import Any

import numpy as np
import pytest

from promptembedder.data import TextRow
from promptembedder.errors import ConfigError, DataError
from promptembedder.search import build_index

TEXTS = ["a river and its mouth", "", "cab", "banana", "cab", "abba"]
ROWS = [TextRow(id=f"doc-{row}", text=text) for row, text in enumerate(TEXTS)]


class LetterCounts:
    """Any object with `encode` is an encoder; this one gives vectors of any length, 0 included."""

    def __init__(self) -> None:
        self.prompts: set[str | None] = set()
        self.largest_batch = 0

    def encode(
        self, inputs: list[str], *, prompt: str | None = None, batch_size: int = 32, **kwargs: Any
    ) -> np.ndarray:
        self.prompts.add(prompt)
        self.largest_batch = max(self.largest_batch, len(inputs))
        return np.array([[text.count(letter) for letter in "abc"] for text in inputs], dtype=np.float64)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 32])
def test_rows_keep_their_order_and_vectors_their_direction_whatever_the_batches(batch_size: int) -> None:
    encoder = LetterCounts()
    index = build_index(encoder, ROWS, prompt="count", batch_size=batch_size)
    expected = encoder.encode(TEXTS)
    expected /= np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-9)
    np.testing.assert_allclose(index.vectors, expected, atol=1e-6)
    assert index.vectors.dtype == np.float32
    assert (list(index.ids), list(index.texts)) == ([row.id for row in ROWS], TEXTS)


def test_the_instruction_and_the_batch_size_reach_the_encoder() -> None:
    encoder = LetterCounts()
    build_index(encoder, ROWS, prompt="count", batch_size=4)
    assert (encoder.prompts, encoder.largest_batch) == ({"count"}, 4)


def test_every_row_is_told_as_it_is_done() -> None:
    told: list[int] = []
    build_index(LetterCounts(), ROWS, batch_size=4, on_rows=told.append)
    assert told == [4, 2]


def test_an_empty_corpus_is_refused() -> None:
    with pytest.raises(DataError, match="corpus is empty"):
        build_index(LetterCounts(), [])


def test_a_batch_without_texts_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        build_index(LetterCounts(), ROWS, batch_size=0)
