"""Does the instruction steer the vectors? Two tasks over the same texts, each under both instructions."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from promptembedder.errors import ConfigError
from promptembedder.evaluation.mteb_encoder import InstructedEncoder
from promptembedder.evaluation.official_tasks import HubTask
from promptembedder.evaluation.scoring import score_under
from promptembedder.evaluation.task_data import EvaluationTask, LabelledTexts
from promptembedder.models import Encoder

__all__ = ["InstructionSteering", "instruction_steering", "steered_pairs"]


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
        """Points that the right instruction is worth, mean of both tasks; about 0 where vectors ignore it."""
        return (self.coarse_own - self.coarse_other + self.fine_own - self.fine_other) / 2


def steered_pairs(tasks: Sequence[EvaluationTask | HubTask]) -> list[tuple[EvaluationTask, EvaluationTask]]:
    """The pairs of classification tasks that ask different things of the same texts; the one of fewer labels first."""
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
    """Each task's score under each instruction; an encoder that takes none would have nothing to show.

    Raises:
        ConfigError: The tasks have the same instruction.
        DataError: A score is undefined.
    """
    if coarse.instruction == fine.instruction:
        raise ConfigError(f"{coarse.name} and {fine.name} have one instruction, {coarse.instruction!r}. Give two.")
    instructed = InstructedEncoder(encoder, (coarse.instruction, fine.instruction), batch_size=batch_size)
    return InstructionSteering(
        coarse=coarse.name,
        fine=fine.name,
        coarse_own=score_under(instructed, coarse, coarse.instruction),
        coarse_other=score_under(instructed, coarse, fine.instruction),
        fine_own=score_under(instructed, fine, fine.instruction),
        fine_other=score_under(instructed, fine, coarse.instruction),
    )
