"""Official mteb tasks by name; their data comes from the hub, or from the copy of it that is already here."""

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
from promptembedder.evaluation.task_score import kept_random_state

__all__ = ["HubTask", "hub_tasks", "official_task", "task_sizes"]

_PROBE_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class HubTask:
    """A task of mteb's own: `name` as it was asked for, of the form `Name` or `Name (subset)`."""

    name: str
    type: str
    metric: str
    instruction: str
    paraphrases: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    def load(self) -> AbsTask:
        """A new mteb task with its data.

        Raises:
            DataError: The hub does not give the data.
        """
        task = official_task(self.name)
        try:
            task.load_data()
        except Exception as error:  # whatever datasets, the hub or the task's own code may raise
            raise DataError(f"cannot load the data of {self.name}: {_first_line(error)}") from error
        return task


def hub_tasks(names: Sequence[str]) -> list[HubTask]:
    """The tasks of these names; their data is not loaded yet, but the hub is asked whether it can be.

    Raises:
        DataError: mteb has no such task or subset, the task is about more than texts, or the hub is out of reach.
    """
    if not names:
        raise DataError("no task is named. Give names of mteb's, separated by commas, or a task file.")
    with kept_random_state():
        tasks = [(name, official_task(name)) for name in names]
    chosen = [_hub_task(name, task) for name, task in tasks]
    for _, task in tasks:
        _check_reachable(task)
    return chosen


def official_task(name: str) -> AbsTask:
    """The mteb task called `Name`, or one subset of it: `Name (subset)`; of its splits only test where it has one.

    Raises:
        DataError: mteb has no such task or subset.
    """
    base, _, subset = name.removesuffix(")").partition(" (")
    known = [made.metadata.name for made in TASK_LIST]
    if base not in known:
        close = difflib.get_close_matches(base, known, n=3)
        hint = f"Did you mean {' or '.join(close)}?" if close else "Give a name of mteb's, or a task file."
        raise DataError(f"mteb has no task {base!r}. {hint}")
    task = get_task(base, eval_splits=["test"])
    subsets = task.metadata.hf_subsets
    if subset and subset not in subsets:
        raise DataError(f"{base} has no subset {subset!r}. It has: {', '.join(subsets)}.")
    return task.filter_languages(None, hf_subsets=[subset]) if subset else task


def task_sizes(task: AbsTask) -> tuple[int, int]:
    """How many rows or queries, and how many documents, a loaded mteb task scores."""
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
        raise DataError(f"{name} is about {', '.join(task.metadata.modalities)}; only texts can be embedded here.")
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
    """Ask the hub once: the loaders would try for half a minute before they give up."""
    if HF_HUB_OFFLINE:
        return  # they then look at the copies here alone, at once
    path = task.metadata.dataset["path"]
    try:
        huggingface_hub.HfApi().dataset_info(path, timeout=_PROBE_TIMEOUT_S)
    except Exception as error:  # of whichever http library the hub's client uses
        raise DataError(
            f"the hub does not give {path}, the data of {task.metadata.name}: {_first_line(error)}. "
            "Check the connection; with a copy of it here set HF_HUB_OFFLINE=1; or give a task file."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
