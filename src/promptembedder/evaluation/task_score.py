"""What a score says beside its number."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
import numpy as np
import torch
from pathlib import Path
from typing import Any
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from promptembedder.data import read_rows
from promptembedder.errors import DataError
from dataclasses import dataclass, field

__all__ = ['InstructedSimilarityEvaluator', 'TaskScore', 'kept_random_state', 'similarity_evaluator']

@contextmanager
def kept_random_state() -> Iterator[None]:
    """Give the caller's generators back as they were.

    mteb seeds all of them when it is imported and whenever it makes a task or an evaluator; an evaluation
    would then change the training that it interrupts.
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


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """How an encoder did on one task.

    Args:
        score: 0..100, in the task's main metric, under its own instruction.
        instruction: None for an encoder that takes none.
        wording_scores: The same under other wordings of the instruction.
        mean: Of `wording_scores`; None without any.
        spread: Of `wording_scores`: their population standard deviation, in points of the score.
        rows: Pairs, texts or queries scored, of `rows_total` in the set.
        documents: Searched, of `documents_total` in the corpus; 0 but in retrieval.
        seconds: For all wordings, encoding and scoring; `encode_seconds` of them for encoding.
        texts: Read by the encoder; a text that comes again within the task is not read again.
        tokens: Of these texts, as far as the encoder reads them; None if it has no tokenizer.
        details: Every metric that mteb computes, in its own scale, under the task's own instruction.
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
