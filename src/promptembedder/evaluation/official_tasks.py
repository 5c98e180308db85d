"""Official mteb tasks by name, with data from the hub or its local cache."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.constants import HF_HUB_OFFLINE
from mteb import get_task
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.abstask import AbsTask
from mteb.get_tasks import TASK_LIST
from mteb.types import PromptType

from promptembedder.errors import DataError
from promptembedder.evaluation.task_score import preserve_rng

__all__ = ["HubTask", "hub_tasks", "official_task", "task_sizes"]

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
            raise DataError(f"cannot load the data of {self.name}: {_first_line(error)}") from error
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
            f"the hub does not provide {path}, the data of {task.metadata.name}: {_first_line(error)}. "
            "Check the connection, set HF_HUB_OFFLINE=1 if the data is cached, or give a task file."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
