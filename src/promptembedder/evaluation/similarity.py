"""Similarity tests: does the cosine of two sentences follow people's scores?"""

from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

from promptembedder.data import read_rows
from promptembedder.errors import DataError

__all__ = ["InstructedSimilarityEvaluator", "similarity_evaluator"]


class InstructedSimilarityEvaluator(EmbeddingSimilarityEvaluator):
    """sentence-transformers' evaluator with both sentences read under one instruction."""

    def __init__(
        self, sentences1: list[str], sentences2: list[str], scores: list[float], *, instruction: str, name: str
    ) -> None:
        """Spearman of the cosines with `scores`."""
        super().__init__(sentences1, sentences2, scores, batch_size=64, name=name, write_csv=False)
        self.instruction = instruction

    def embed_inputs(self, model: SentenceTransformer, sentences: Any, **kwargs: Any) -> np.ndarray:
        """Vectors of the sentences under the instruction."""
        return super().embed_inputs(model, sentences, prompt=self.instruction, **kwargs)


def similarity_evaluator(
    path: Path, *, instruction: str, split: str | None = None, limit: int | None = None, name: str = "sts"
) -> InstructedSimilarityEvaluator:
    """An evaluator from a file of rows with `sentence1`, `sentence2` and `score`.

    Args:
        split: Only rows whose `split` says this.
        limit: The first rows only; the name then says so.

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
