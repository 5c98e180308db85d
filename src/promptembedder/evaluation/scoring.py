"""Scores of an encoder on evaluation tasks, computed by mteb."""

import math
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
import mteb
from mteb.abstasks.abstask import AbsTask
from scipy.stats import ConstantInputWarning, NearConstantInputWarning
from sklearn.exceptions import ConvergenceWarning, UndefinedMetricWarning

from promptembedder.errors import DataError
from promptembedder.evaluation.mteb_encoder import InstructedEncoder
from promptembedder.evaluation.mteb_tasks import local_task
from promptembedder.evaluation.official_tasks import HubTask, official_task, task_sizes
from promptembedder.evaluation.task_score import kept_random_state
from promptembedder.evaluation.task_data import EvaluationTask
from promptembedder.evaluation.task_score import TaskScore
from promptembedder.model import Encoder

__all__ = ["score_tasks", "score_under"]

# mteb's classifiers and clusterings, and small samples, bring them always; a user can do nothing about it
_EXPECTED = (ConstantInputWarning, NearConstantInputWarning, ConvergenceWarning, UndefinedMetricWarning)
_NO_METRICS = ("hf_subset", "languages", "mteb_version", "main_score")


def score_tasks(
    encoder: Encoder,
    tasks: Sequence[EvaluationTask | HubTask],
    *,
    takes_instructions: bool = True,
    batch_size: int = 64,
    wordings: Mapping[str, Sequence[str]] | None = None,
) -> list[TaskScore]:
    """The scores of `encoder` on `tasks`, in their order; equal from run to run.

    mteb's own seed, 42, draws its classifiers' and clusterings' rows, as in its published scores.

    Args:
        takes_instructions: False for a model that knows no instructions: it is given none, nor wordings.
        wordings: By a task's name, other wordings of its instruction to be scored under, too.

    Raises:
        DataError: A score is undefined, mteb does not know a `same_as_mteb`, or the hub does not give a task's data.
    """
    wordings = wordings or {}
    with kept_random_state(), _quiet():
        for task in tasks:  # before the first of them costs hours
            if isinstance(task, EvaluationTask) and task.mteb_name is not None:
                official_task(task.mteb_name)
    scores = []
    for task in tasks:
        others = wordings.get(task.name, ()) if takes_instructions else ()
        instructed = InstructedEncoder(
            encoder, (task.instruction, *others) if takes_instructions else (), batch_size=batch_size
        )
        scores.append(_task_score(instructed, task, others))
    return scores


def _task_score(encoder: InstructedEncoder, task: EvaluationTask | HubTask, wordings: Sequence[str]) -> TaskScore:
    start = time.perf_counter()
    with kept_random_state(), _quiet():
        made = _made(task)
        sizes = (task.rows_used, task.documents_used) if isinstance(task, EvaluationTask) else task_sizes(made)
    score, details = _scored(encoder, made, task.instruction)
    others = {wording: score_under(encoder, task, wording) for wording in wordings}
    return TaskScore(
        task=task.name,
        type=task.type,
        metric=task.metric,
        score=score,
        instruction=task.instruction if encoder.instructions else None,
        wording_scores=others,
        mean=statistics.fmean(others.values()) if others else None,
        spread=statistics.pstdev(others.values()) if others else None,
        rows=sizes[0],
        rows_total=task.rows if isinstance(task, EvaluationTask) else sizes[0],
        documents=sizes[1],
        documents_total=task.documents if isinstance(task, EvaluationTask) else sizes[1],
        limit=task.limit if isinstance(task, EvaluationTask) else None,
        seed=task.seed if isinstance(task, EvaluationTask) else None,
        seconds=time.perf_counter() - start,
        encode_seconds=encoder.seconds,
        texts=encoder.texts,
        tokens=encoder.tokens,
        details=details,
    )


def score_under(encoder: InstructedEncoder, task: EvaluationTask | HubTask, instruction: str) -> float:
    """The score on `task` under `instruction`, one of those that `encoder` was made for; 0..100.

    Raises:
        DataError: As in `score_tasks`.
    """
    with kept_random_state(), _quiet():
        made = _made(task)
    return _scored(encoder, made, instruction)[0]


def _made(task: EvaluationTask | HubTask) -> AbsTask:
    """A new mteb task: they hold a random state, which goes on from one evaluation to the next."""
    return local_task(task) if isinstance(task, EvaluationTask) else task.load()


def _scored(encoder: InstructedEncoder, task: AbsTask, instruction: str) -> tuple[float, dict[str, Any]]:
    encoder.instruction = instruction
    with kept_random_state(), _quiet():
        result = mteb.evaluate(
            encoder,
            task,
            co2_tracker=False,
            encode_kwargs={"batch_size": encoder.batch_size, "show_progress_bar": False},
            cache=None,
            show_progress_bar=False,
        ).task_results[0]
    score = 100 * float(result.get_score())
    if not math.isfinite(score):
        name, metric = task.metadata.name, task.metadata.main_score
        raise DataError(f"{name}: {metric} is undefined. Are all vectors alike, or all rows of one kind?")
    parts = {
        f"{split}/{part['hf_subset']}": {key: value for key, value in part.items() if key not in _NO_METRICS}
        for split, of_split in result.scores.items()
        for part in of_split
    }
    return score, _plain(parts if len(parts) > 1 else next(iter(parts.values())))


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither the progress bars of datasets nor the warnings that are always there."""
    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            for category in _EXPECTED:
                warnings.simplefilter("ignore", category)
            # it calls tasks superseded, renamed or in beta: what is meant is that a name was asked for
            warnings.filterwarnings("ignore", category=UserWarning, module=r"mteb\.")
            yield
    finally:
        if bars:
            datasets.enable_progress_bars()


def _plain(value: Any) -> Any:
    """The value in JSON's types; numbers that are not finite are None."""
    match value:
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case bool() | int() | str() | None:
            return value
        case _:
            number = float(value)
            return number if math.isfinite(number) else None
