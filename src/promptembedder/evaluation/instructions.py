"""Scores of two tasks on the same texts under their own and each other's instruction."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from promptembedder.errors import ConfigError
from promptembedder.evaluation.mteb_encoder import MtebAdapter
from promptembedder.evaluation.official_tasks import HubTask
from promptembedder.evaluation.scoring import score_with_instruction
from promptembedder.evaluation.task_data import EvaluationTask, LabelledTexts
from promptembedder.model import Encoder

__all__ = ["InstructionSteering", "instruction_pairs", "instruction_steering"]


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
