"""What a score says beside its number."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["TaskScore"]


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
