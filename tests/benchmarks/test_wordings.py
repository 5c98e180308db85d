"""Seen, unseen and empty wordings, and those of other tasks: an encoder that needs the right one shows it."""

from typing import Any

import numpy as np
from datasets import Dataset

from benchmarks.quality.wordings import held_out_scores
from promptembedder.training import TaskData, TrainingData


class _NeedsTheWord:
    """Finds a text's number; under an instruction without the word `number` it takes all texts for one."""

    def encode(self, texts: list[str], *, prompt: str | None, **_: Any) -> np.ndarray:
        vectors = np.zeros((len(texts), 8), dtype=np.float32)
        for row, text in enumerate(texts):
            is_query = text.startswith("q")
            vectors[row, int(text[1:]) if not is_query or "number" in (prompt or "") else 0] = 1
        return vectors


def _task(instruction: str, unseen: str, *, in_batch_negatives: bool = True) -> TaskData:
    rows = Dataset.from_dict({"anchor": [f"q{i}" for i in range(8)], "positive": [f"d{i}" for i in range(8)]})
    return TaskData(
        train=rows,
        held_out=rows,
        instructions=(instruction,),
        document_instructions=(),
        in_batch_negatives=in_batch_negatives,
        unseen_instructions=(unseen,),
    )


def test_each_kind_of_wording_is_scored_apart_and_label_tasks_are_left_out() -> None:
    data = TrainingData(
        {
            "numbers": _task("find the number", "search the number"),
            "others": _task("find it", "search it"),
            "labels": _task("find the number", "search the number", in_batch_negatives=False),
        }
    )
    scores = held_out_scores(_NeedsTheWord(), data)
    blind = scores["empty"]
    assert blind < 60
    # own words help the first task alone, and the first task's words the second
    assert scores["seen"] == scores["unseen"] == scores["others"] == (100 + blind) / 2
