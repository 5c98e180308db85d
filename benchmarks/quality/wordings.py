"""Scores of the trained tasks' held-out rows under seen and unseen wordings of the instruction."""

import statistics
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from promptembedder.data import SearchTask
from promptembedder.evaluation import vector_score
from promptembedder.model import Encoder
from promptembedder.training import TaskData, TrainingData

__all__ = ["KINDS", "held_out_scores"]

KINDS = ("seen", "unseen", "empty", "others")


def held_out_scores(model: Encoder, data: TrainingData, *, kinds: Sequence[str] = KINDS) -> dict[str, float]:
    """Return the mean nDCG@10 x 100 over the tasks with held-out rows, each searched among its own held-out answers.

    The keys are `seen` (the task's first wording), `unseen` (a wording that is not in the training data), `empty` (no
    instruction), and `others` (the first wording of the next task). Label tasks are excluded, because their
    rows have many right answers.
    """
    tasks = {
        name: task
        for name, task in data.tasks.items()
        if task.in_batch_negatives and task.held_out is not None and task.unseen_instructions
    }
    others = list(tasks.values())
    by_kind: dict[str, list[float]] = {kind: [] for kind in kinds}
    for task, other in zip(others, (*others[1:], *others[:1]), strict=True):
        words = {
            "seen": task.instructions[0],
            "unseen": task.unseen_instructions[0],
            "empty": None,
            "others": other.instructions[0],
        }
        for kind, score in _scores(model, task, {kind: words[kind] for kind in kinds}).items():
            by_kind[kind].append(score)
    return {kind: round(statistics.fmean(scores), 3) for kind, scores in by_kind.items() if scores}


def _scores(model: Encoder, task: TaskData, words: Mapping[str, str | None]) -> dict[str, float]:
    assert task.held_out is not None
    rows = task.held_out
    search = SearchTask(
        queries={f"q{row}": text for row, text in enumerate(rows["anchor"])},
        documents={f"d{row}": text for row, text in enumerate(rows["positive"])},
        relevant={f"q{row}": {f"d{row}"} for row in range(len(rows))},
    )
    symmetric = task.document_instructions == task.instructions

    def vectors(texts: Collection[str], wording: str | None) -> np.ndarray:
        return np.asarray(model.encode(list(texts), prompt=wording, show_progress_bar=False))

    documents = vectors(search.documents.values(), next(iter(task.document_instructions), None))
    scores = {}
    for kind, wording in words.items():
        if symmetric:
            documents = vectors(search.documents.values(), wording)
        found = vector_score(search, vectors(search.queries.values(), wording), documents)
        scores[kind] = 100 * found.ndcg_at_10
    return scores
