"""Scores of an encoder on evaluation tasks, computed by mteb, under a task's own and other instructions."""

import math
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import datasets
import mteb
import numpy as np
from mteb.abstasks import AbsTaskClassification
from mteb.abstasks.abstask import AbsTask
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType
from scipy.stats import ConstantInputWarning, NearConstantInputWarning
from sklearn.exceptions import ConvergenceWarning, UndefinedMetricWarning
from transformers import PreTrainedTokenizerBase

from promptembedder.errors import ConfigError, DataError
from promptembedder.evaluation.evaluators import preserve_rng
from promptembedder.evaluation.mteb_tasks import HubTask, build_local_task, official_task, task_sizes
from promptembedder.evaluation.tasks import EvaluationTask, LabelledTexts
from promptembedder.model import Encoder

__all__ = [
    "InstructionSteering",
    "MtebAdapter",
    "TaskScore",
    "instruction_pairs",
    "instruction_steering",
    "score_tasks",
]

# always raised by mteb's classifiers, clusterings and small samples; not actionable
_EXPECTED = (ConstantInputWarning, NearConstantInputWarning, ConvergenceWarning, UndefinedMetricWarning)
_NO_METRICS = ("hf_subset", "languages", "mteb_version", "main_score")


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """Score of an encoder on one task.

    Args:
        score: Main metric under the task's instruction, 0..100.
        instruction: Instruction of the task. None for an encoder without instructions.
        wording_scores: Scores by other wording of the instruction.
        mean: Mean of `wording_scores`. None if empty.
        spread: Population standard deviation of `wording_scores` in points.
        rows: Number of scored pairs, texts or queries, of `rows_total` in the set.
        documents: Number of searched documents, of `documents_total` in the corpus. 0 if not retrieval.
        seconds: Duration for all wordings, of which `encode_seconds` for encoding.
        texts: Number of encoded texts. Duplicates within the task are encoded once.
        tokens: Number of tokens of these texts after truncation. None if the encoder has no tokenizer.
        standardized: Features of the classifier are standardized. False for mteb's protocol, None without classifier.
        details: All metrics of mteb under the task's instruction, in mteb's scale.
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
    standardized: bool | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class InstructionSteering:
    """Scores of a coarse and a fine task, 0..100, under their own instruction and under the other's."""

    coarse: str
    fine: str
    coarse_own: float
    coarse_other: float
    fine_own: float
    fine_other: float

    @property
    def gain(self) -> float:
        """Gain of a task's instruction over the other one in points, mean of both tasks. About 0 if it is ignored."""
        return (self.coarse_own - self.coarse_other + self.fine_own - self.fine_other) / 2


class MtebAdapter(AbsEncoder):
    """Encoder for mteb under the instruction in the attribute `instruction`, which the caller sets.

    In retrieval only queries are encoded under the instruction, otherwise all texts.
    """

    def __init__(self, encoder: Encoder, instructions: Sequence[str], *, batch_size: int = 64) -> None:
        """Wrap `encoder`, for one task.

        Args:
            instructions: All instructions of the task. An encoder with `encode_instructions` computes their vectors
                in one pass over the texts. Empty for a model without instructions.
        """
        self.model = encoder
        self.instructions = tuple(dict.fromkeys(instructions))
        self.instruction = self.instructions[0] if self.instructions else None
        self.batch_size = batch_size
        # mteb requires the form owner/name; the name is not used
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={
                "name": "promptembedder/evaluated",
                "revision": "none",
                "similarity_fn_name": ScoringFunction.COSINE,
            }
        )
        self.texts = 0
        self.seconds = 0.0
        self._tokens = 0
        tokenizer = getattr(encoder, "tokenizer", None)
        self._tokenizer = tokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else None
        self._encode_many = getattr(encoder, "encode_instructions", None) if len(self.instructions) > 1 else None
        self._vectors: dict[str | None, dict[str, np.ndarray]] = {}

    @property
    def tokens(self) -> int | None:
        """Number of tokens encoded so far, after truncation. None without a tokenizer."""
        return None if self._tokenizer is None else self._tokens

    def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **_: Any) -> np.ndarray:
        """Encode the `text` of the batches of `inputs`. The other arguments of mteb are ignored."""
        with_prompt = self.instructions and prompt_type != PromptType.document
        prompt = self.instruction if with_prompt else None
        texts = [text for batch in inputs for text in batch["text"]]
        known = self._vectors.setdefault(prompt, {})
        new = list(dict.fromkeys(text for text in texts if text not in known))
        if new:
            start = time.perf_counter()
            self._encode_new(new, prompt)
            self.seconds += time.perf_counter() - start
            self._count(new)
        return np.stack([known[text] for text in texts])

    def _encode_new(self, texts: list[str], prompt: str | None) -> None:
        if self._encode_many is not None and prompt is not None:
            try:
                many = self._encode_many(texts, self.instructions, batch_size=self.batch_size)
            except ConfigError:  # the states of the text depend on the instruction in this model
                self._encode_many = None
            else:
                for instruction, vectors in zip(self.instructions, many, strict=True):
                    self._vectors.setdefault(instruction, {}).update(zip(texts, vectors, strict=True))
                return
        vectors = self.model.encode(texts, prompt=prompt, batch_size=self.batch_size, show_progress_bar=False)
        self._vectors[prompt].update(zip(texts, np.asarray(vectors, dtype=np.float32), strict=True))

    def _count(self, texts: list[str]) -> None:
        self.texts += len(texts)
        if self._tokenizer is not None:
            limit = getattr(self.model, "max_seq_length", None) or float("inf")
            # verbose=False suppresses warnings about long texts
            ids = self._tokenizer(texts, verbose=False)["input_ids"]
            self._tokens += int(sum(min(len(text), limit) for text in ids))


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
        local = task if isinstance(task, EvaluationTask) else None
        rows, documents = task_sizes(mteb_task) if local is None else (local.rows_used, local.documents_used)
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
        rows=rows,
        rows_total=rows if local is None else local.rows,
        documents=documents,
        documents_total=documents if local is None else local.documents,
        limit=None if local is None else local.limit,
        seed=None if local is None else local.seed,
        seconds=time.perf_counter() - start,
        encode_seconds=encoder.seconds,
        texts=encoder.texts,
        tokens=encoder.tokens,
        standardized=_is_standardized(mteb_task),
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


def _is_standardized(task: AbsTask) -> bool | None:
    if not isinstance(task, AbsTaskClassification):
        return None
    return getattr(task, "is_standardized", False)


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


def instruction_pairs(tasks: Sequence[EvaluationTask | HubTask]) -> list[tuple[EvaluationTask, EvaluationTask]]:
    """Return the pairs of classification tasks with equal texts and different instructions, fewer labels first."""
    texts = [
        (task, task.data)
        for task in tasks
        if isinstance(task, EvaluationTask) and isinstance(task.data, LabelledTexts) and task.type == "classification"
    ]
    pairs = []
    for one, other in combinations(texts, 2):
        if one[1].texts == other[1].texts and one[0].instruction != other[0].instruction:
            coarse, fine = sorted((one, other), key=lambda pair: len(set(pair[1].train_labels)))
            pairs.append((coarse[0], fine[0]))
    return pairs


def instruction_steering(
    encoder: Encoder, coarse: EvaluationTask, fine: EvaluationTask, *, batch_size: int = 64
) -> InstructionSteering:
    """Score each of two tasks under both instructions. The encoder must accept instructions.

    Raises:
        ConfigError: The tasks have the same instruction.
        DataError: A score is undefined.
    """
    if coarse.instruction == fine.instruction:
        raise ConfigError(f"{coarse.name} and {fine.name} have the same instruction, {coarse.instruction!r}. Give two.")
    adapter = MtebAdapter(encoder, (coarse.instruction, fine.instruction), batch_size=batch_size)
    return InstructionSteering(
        coarse=coarse.name,
        fine=fine.name,
        coarse_own=score_with_instruction(adapter, coarse, coarse.instruction),
        coarse_other=score_with_instruction(adapter, coarse, fine.instruction),
        fine_own=score_with_instruction(adapter, fine, fine.instruction),
        fine_other=score_with_instruction(adapter, fine, coarse.instruction),
    )
