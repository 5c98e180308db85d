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
from promptembedder.evaluation.mteb_encoder import MtebAdapter
from promptembedder.evaluation.mteb_tasks import build_local_task
from promptembedder.evaluation.official_tasks import HubTask, official_task, task_sizes
from promptembedder.evaluation.task_data import EvaluationTask
from promptembedder.evaluation.task_score import TaskScore, preserve_rng
from promptembedder.model import Encoder

__all__ = ["score_tasks", "score_with_instruction"]

# always raised by mteb's classifiers, clusterings and small samples; not actionable
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
    """Score `encoder` on `tasks`, in their order and deterministically.

    mteb's seed, 42, draws the rows of its classifiers and clusterings, as in its published scores.

    Args:
        takes_instructions: If False, the model is scored without instructions and without `wordings`.
        wordings: Further instructions to score under, by the task's name.

    Raises:
        DataError: A score is undefined, a `same_as_mteb` is not an mteb task, or the data of a task cannot be loaded.
    """
    wordings = wordings or {}
    with preserve_rng(), _suppress_output():
        for task in tasks:  # fail before hours of scoring
            if isinstance(task, EvaluationTask) and task.mteb_name is not None:
                official_task(task.mteb_name)
    scores = []
    for task in tasks:
        others = wordings.get(task.name, ()) if takes_instructions else ()
        adapter = MtebAdapter(encoder, (task.instruction, *others) if takes_instructions else (), batch_size=batch_size)
        scores.append(_task_score(adapter, task, others))
    return scores


def _task_score(encoder: MtebAdapter, task: EvaluationTask | HubTask, wordings: Sequence[str]) -> TaskScore:
    start = time.perf_counter()
    with preserve_rng(), _suppress_output():
        mteb_task = _build_task(task)
        sizes = (task.rows_used, task.documents_used) if isinstance(task, EvaluationTask) else task_sizes(mteb_task)
    score, details = _evaluate(encoder, mteb_task, task.instruction)
    others = {wording: score_with_instruction(encoder, task, wording) for wording in wordings}
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


def score_with_instruction(encoder: MtebAdapter, task: EvaluationTask | HubTask, instruction: str) -> float:
    """Return the score on `task` under `instruction`, one of the instructions of `encoder`, in 0..100.

    Raises:
        DataError: As in `score_tasks`.
    """
    with preserve_rng(), _suppress_output():
        mteb_task = _build_task(task)
    return _evaluate(encoder, mteb_task, instruction)[0]


def _build_task(task: EvaluationTask | HubTask) -> AbsTask:
    """Build a new mteb task: a task's random state advances with each evaluation."""
    return build_local_task(task) if isinstance(task, EvaluationTask) else task.load()


def _evaluate(encoder: MtebAdapter, task: AbsTask, instruction: str) -> tuple[float, dict[str, Any]]:
    encoder.instruction = instruction
    with preserve_rng(), _suppress_output():
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
        raise DataError(
            f"{name}: {metric} is undefined. Check that the vectors differ and that the rows have more than one label."
        )
    parts = {
        f"{split}/{part['hf_subset']}": {key: value for key, value in part.items() if key not in _NO_METRICS}
        for split, rows in result.scores.items()
        for part in rows
    }
    return score, _to_json(parts if len(parts) > 1 else next(iter(parts.values())))


@contextmanager
def _suppress_output() -> Iterator[None]:
    """Suppress the progress bars of datasets and expected warnings."""
    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            for category in _EXPECTED:
                warnings.simplefilter("ignore", category)
            # mteb warns of superseded, renamed and beta tasks, but the user chose them by name
            warnings.filterwarnings("ignore", category=UserWarning, module=r"mteb\.")
            yield
    finally:
        if bars:
            datasets.enable_progress_bars()


def _to_json(value: Any) -> Any:
    """Convert a value to JSON types. Numbers that are not finite become None."""
    match value:
        case dict():
            return {str(key): _to_json(item) for key, item in value.items()}
        case list() | tuple():
            return [_to_json(item) for item in value]
        case bool() | int() | str() | None:
            return value
        case _:
            number = float(value)
            return number if math.isfinite(number) else None
