"""Task scores, and the similarity evaluator used during training."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

from promptembedder.data import read_rows
from promptembedder.errors import DataError

__all__ = ["InstructedSimilarityEvaluator", "TaskScore", "preserve_rng", "similarity_evaluator"]


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


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """Score of an encoder on one task.

    Args:
        score: Main metric under the task's instruction, 0..100.
        instruction: Instruction of the task. None for an encoder without instructions.
        wording_scores: Scores by other wording of the instruction.
        mean: Mean of `wording_scores`. None if empty.
        spread: Population standard deviation of `wording_scores` in points.
        rows: Number of scored pairs, texts or queries, of `rows_total` in the set.
        documents: Number of searched documents, of `documents_total` in the corpus. 0 if not retrieval.
        seconds: Duration for all wordings, of which `encode_seconds` for encoding.
        texts: Number of encoded texts. Duplicates within the task are encoded once.
        tokens: Number of tokens of these texts after truncation. None if the encoder has no tokenizer.
        details: All metrics of mteb under the task's instruction, in mteb's scale.
    """

    task: str
    type: str
    metric: str
    score: float
    instruction: str | None
    wording_scores: dict[str, float] = field(default_factory=dict)
    mean: float | None = None
    spread: float | None = None
    rows: int
    rows_total: int
    documents: int
    documents_total: int
    limit: int | None
    seed: int | None
    seconds: float
    encode_seconds: float
    texts: int
    tokens: int | None
    details: dict[str, Any] = field(default_factory=dict)
