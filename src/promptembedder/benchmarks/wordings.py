"""Held-out rows of the trained tasks under seen and unseen wordings: does an instruction mean what it says?"""

import statistics
from collections.abc import Mapping

from sentence_transformers import SentenceTransformer

from promptembedder.data import SearchTask
from promptembedder.evaluation import retrieval_score
from promptembedder.training import TaskData, TrainingData

__all__ = ["held_out_scores"]


def held_out_scores(model: SentenceTransformer, data: TrainingData) -> dict[str, float]:
    """Mean nDCG@10 x 100 over the tasks with held-out rows, each searched among its own held-out answers.

    Keys: `seen`: under the task's first wording; `unseen`: under one that training did not see; `empty`: without an
    instruction; `foreign`: under the first wording of the next task. Label tasks are left out: their rows have many
    right answers.
    """
    tasks = {
        name: task
        for name, task in data.tasks.items()
        if task.in_batch_negatives and task.held_out is not None and task.unseen_instructions
    }
    names = list(tasks)
    by_kind: dict[str, list[float]] = {"seen": [], "unseen": [], "empty": [], "foreign": []}
    for place, (name, task) in enumerate(tasks.items()):
        other = tasks[names[(place + 1) % len(names)]]
        words = {
            "seen": task.instructions[0],
            "unseen": task.unseen_instructions[0],
            "empty": None,
            "foreign": other.instructions[0],
        }
        for kind, score in _scores(model, name, task, words).items():
            by_kind[kind].append(score)
    return {kind: round(statistics.fmean(scores), 3) for kind, scores in by_kind.items() if scores}


def _scores(model: SentenceTransformer, name: str, task: TaskData, words: Mapping[str, str | None]) -> dict[str, float]:
    assert task.held_out is not None
    rows = task.held_out
    search = SearchTask(
        queries={f"q{row}": text for row, text in enumerate(rows["anchor"])},
        documents={f"d{row}": text for row, text in enumerate(rows["positive"])},
        relevant={f"q{row}": {f"d{row}"} for row in range(len(rows))},
    )
    symmetric = task.document_instructions == task.instructions
    scores = {}
    for kind, wording in words.items():
        document = wording if symmetric else next(iter(task.document_instructions), None)
        found = retrieval_score(model, search, query_prompt=wording, document_prompt=document)
        scores[kind] = 100 * found.ndcg_at_10
    return scores
