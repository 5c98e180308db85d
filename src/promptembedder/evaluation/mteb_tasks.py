"""Adapters of local tasks to mteb's task classes: mteb's metrics without network access."""

from collections.abc import Hashable, Sequence

from datasets import Dataset, DatasetDict
from mteb.abstasks import (
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.task_metadata import TaskMetadata

from promptembedder.evaluation.official_tasks import official_task
from promptembedder.evaluation.task_data import EvaluationTask, LabelledTexts, ScoredPairs, SearchData

__all__ = ["build_local_task"]

_TYPES = {
    "sts": "STS",
    "classification": "Classification",
    "pair_classification": "PairClassification",
    "clustering": "Clustering",
    "retrieval": "Retrieval",
}


class _Similarity(AbsTaskSTS):
    def __init__(self, task: EvaluationTask, data: ScoredPairs) -> None:
        self.metadata = _metadata(task)
        super().__init__()
        # mteb rescales the scores to 0..1, which does not change correlations
        columns = {"sentence1": data.first, "sentence2": data.second, "score": data.scores}
        self.dataset = DatasetDict(test=Dataset.from_dict(columns))
        self.data_loaded = True


class _PairClassification(AbsTaskPairClassification):
    def __init__(self, task: EvaluationTask, data: ScoredPairs) -> None:
        self.metadata = _metadata(task)
        super().__init__()
        columns = {"sentence1": data.first, "sentence2": data.second, "labels": [int(label) for label in data.scores]}
        self.dataset = DatasetDict(test=Dataset.from_dict(columns))
        self.data_loaded = True


class _Classification(AbsTaskClassification):
    def __init__(self, task: EvaluationTask, data: LabelledTexts) -> None:
        self.metadata = _metadata(task)
        super().__init__()
        official = official_task(task.mteb_name) if task.mteb_name else None
        if isinstance(official, AbsTaskClassification):
            self.samples_per_label = official.samples_per_label
            self.n_experiments = official.n_experiments
        numbers = _numbers((*data.train_labels, *data.labels))
        self.dataset = DatasetDict(
            train=Dataset.from_dict({"text": data.train_texts, "label": [numbers[one] for one in data.train_labels]}),
            test=Dataset.from_dict({"text": data.texts, "label": [numbers[one] for one in data.labels]}),
        )
        self.data_loaded = True


class _Clustering(AbsTaskClustering):
    """Clustering as in the official .v2 tasks, whose samples and k-means depend on the task's seed.

    The older kind of task clusters prepared sets of texts, which a flat list of rows does not have.
    """

    max_fraction_of_documents_to_embed = None  # all rows; `subsample` selects a part

    def __init__(self, task: EvaluationTask, data: LabelledTexts) -> None:
        self.metadata = _metadata(task)
        super().__init__()
        numbers = _numbers(data.labels)
        columns = {"sentences": data.texts, "labels": [numbers[label] for label in data.labels]}
        self.dataset = DatasetDict(test=Dataset.from_dict(columns))
        self.data_loaded = True


class _Retrieval(AbsTaskRetrieval):
    def __init__(self, task: EvaluationTask, data: SearchData) -> None:
        self.metadata = _metadata(task)
        super().__init__()
        documents = [{"id": name, "title": title, "text": text} for name, (title, text) in data.documents.items()]
        queries = [{"id": name, "text": text} for name, text in data.queries.items()]
        self.dataset = {
            "default": {
                "test": {
                    "corpus": Dataset.from_list(documents),
                    "queries": Dataset.from_list(queries),
                    "relevant_docs": data.relevant,
                    "top_ranked": None,
                }
            }
        }
        self.data_loaded = True


def build_local_task(task: EvaluationTask) -> AbsTask:
    """Build a new mteb task from the data of `task`."""
    match task.data:
        case ScoredPairs() as pairs:
            return _Similarity(task, pairs) if task.type == "sts" else _PairClassification(task, pairs)
        case LabelledTexts() as texts:
            return _Classification(task, texts) if task.type == "classification" else _Clustering(task, texts)
        case SearchData() as search:
            return _Retrieval(task, search)


def _metadata(task: EvaluationTask) -> TaskMetadata:
    return TaskMetadata(
        name=task.name,
        description=f"{task.name}, from local files.",
        type=_TYPES[task.type],
        dataset={"path": "local/files", "revision": "none"},
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=task.metric,
        prompt=task.instruction,
    )


def _numbers(labels: Sequence[Hashable]) -> dict[Hashable, int]:
    """Number the labels: mteb's binary metrics need numbers."""
    return {label: number for number, label in enumerate(sorted(set(labels), key=lambda label: str(label)))}
