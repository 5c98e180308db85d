"""mteb tasks: official ones by name with data from the hub, and local tasks as mteb's task classes."""

import difflib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from datasets import Dataset, DatasetDict
from huggingface_hub.constants import HF_HUB_OFFLINE
from mteb import get_task
from mteb.abstasks import (
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.get_tasks import TASK_LIST
from mteb.types import PromptType
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from promptembedder.errors import DataError, first_line
from promptembedder.evaluation.evaluators import preserve_rng
from promptembedder.evaluation.tasks import EvaluationTask, LabelledTexts, ScoredPairs, SearchData

__all__ = ["HubTask", "build_local_task", "hub_tasks", "official_task", "task_sizes"]

_PROBE_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class HubTask:
    """Official mteb task. `name` is of the form `Name` or `Name (subset)`."""

    name: str
    type: str
    metric: str
    instruction: str
    paraphrases: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    def load(self) -> AbsTask:
        """Load a new mteb task with its data.

        Raises:
            DataError: The data cannot be loaded.
        """
        task = official_task(self.name)
        try:
            task.load_data()
        except Exception as error:  # datasets, the hub and the task's code raise errors without a common base
            raise DataError(f"cannot load the data of {self.name}: {first_line(error)}") from error
        return task


def hub_tasks(names: Sequence[str]) -> list[HubTask]:
    """Return the named tasks without their data, and check that the hub provides the data.

    Raises:
        DataError: mteb has no such task or subset, a task has other modalities than text, or the hub is unreachable.
    """
    if not names:
        raise DataError("no task is named. Give names of mteb tasks separated by commas, or a task file.")
    with preserve_rng():
        tasks = [(name, official_task(name)) for name in names]
    chosen = [_hub_task(name, task) for name, task in tasks]
    for _, task in tasks:
        _check_reachable(task)
    return chosen


def official_task(name: str) -> AbsTask:
    """Return the mteb task `Name`, or one subset of it: `Name (subset)`, restricted to the test split if it has one.

    Raises:
        DataError: mteb has no such task or subset.
    """
    base, _, subset = name.removesuffix(")").partition(" (")
    known = [known_task.metadata.name for known_task in TASK_LIST]
    if base not in known:
        close = difflib.get_close_matches(base, known, n=3)
        hint = f"Did you mean {' or '.join(close)}?" if close else "Give the name of an mteb task, or a task file."
        raise DataError(f"mteb has no task {base!r}. {hint}")
    task = get_task(base, eval_splits=["test"])
    subsets = task.metadata.hf_subsets
    if subset and subset not in subsets:
        raise DataError(f"{base} has no subset {subset!r}. It has: {', '.join(subsets)}.")
    return task.filter_languages(None, hf_subsets=[subset]) if subset else task


def task_sizes(task: AbsTask) -> tuple[int, int]:
    """Return the number of rows or queries and the number of documents of a loaded mteb task."""
    rows = documents = 0
    for subset in task.hf_subsets:
        parts = task.dataset[subset] if subset in task.dataset else task.dataset
        for split in task.eval_splits:
            part = parts[split]
            rows += len(part["queries"]) if isinstance(task, AbsTaskRetrieval) else len(part)
            documents += len(part["corpus"]) if isinstance(task, AbsTaskRetrieval) else 0
    return rows, documents


def _hub_task(name: str, task: AbsTask) -> HubTask:
    if task.metadata.modalities != ["text"]:
        raise DataError(f"{name} has the modalities {', '.join(task.metadata.modalities)}; only text is supported.")
    prompt = task.metadata.prompt
    if isinstance(prompt, dict):
        prompt = prompt.get(PromptType.query.value)
    return HubTask(
        name=name,
        type=task.metadata.type,
        metric=task.metadata.main_score,
        instruction=(prompt or task.abstask_prompt).strip(),
    )


def _check_reachable(task: AbsTask) -> None:
    """Check with one request that the hub provides the data. The loaders retry for half a minute."""
    if HF_HUB_OFFLINE:
        return  # offline, the loaders use only the local cache
    path = task.metadata.dataset["path"]
    try:
        huggingface_hub.HfApi().dataset_info(path, timeout=_PROBE_TIMEOUT_S)
    except Exception as error:  # the http library of the hub's client varies
        raise DataError(
            f"the hub does not provide {path}, the data of {task.metadata.name}: {first_line(error)}. "
            "Check the connection, set HF_HUB_OFFLINE=1 if the data is cached, or give a task file."
        ) from error


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
        self.is_standardized = not isinstance(official, AbsTaskClassification)
        if isinstance(official, AbsTaskClassification):
            self.samples_per_label = official.samples_per_label
            self.n_experiments = official.n_experiments
        else:
            # mean-pooled embeddings share a large mean, under which mteb's regularized classifier learns nothing
            self.evaluator_model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=100))
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
