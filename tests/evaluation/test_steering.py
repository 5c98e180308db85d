"""The same texts under two instructions."""

from pathlib import Path
from typing import Any

import pytest

from promptembedder.errors import ConfigError
from promptembedder.evaluation import EvaluationTask, instruction_pairs, instruction_steering, read_tasks, subsample


@pytest.fixture
def tasks(task_file: Path) -> dict[str, EvaluationTask]:
    return {task.name: task for task in read_tasks(task_file)}


def test_vectors_that_follow_the_instruction_score_under_their_own_alone(
    encoder: Any, tasks: dict[str, EvaluationTask]
) -> None:
    steering = instruction_steering(encoder, tasks["First"], tasks["Second"])
    assert (steering.coarse, steering.fine) == ("First", "Second")
    assert steering.coarse_own == steering.fine_own == 100
    assert steering.coarse_other < 70
    assert steering.fine_other < 60
    assert steering.gain == pytest.approx((200 - steering.coarse_other - steering.fine_other) / 2)


def test_vectors_that_ignore_it_gain_nothing(encoder: Any, tasks: dict[str, EvaluationTask]) -> None:
    class Deaf:
        def encode(self, inputs: list[str], *, prompt: str | None = None, batch_size: int = 32, **_: Any) -> Any:
            return encoder.encode(inputs)

    steering = instruction_steering(Deaf(), tasks["First"], tasks["Second"])
    assert steering.coarse_own == steering.coarse_other
    assert steering.gain == 0


def test_pairs_ask_different_things_of_the_same_texts_the_one_of_fewer_labels_first(
    tasks: dict[str, EvaluationTask],
) -> None:
    assert instruction_pairs(list(tasks.values())) == [(tasks["First"], tasks["Second"])]
    assert instruction_pairs([tasks["Second"], tasks["First"]]) == [(tasks["First"], tasks["Second"])]
    parts = [subsample(tasks[name], 8, seed=5) for name in ("First", "Second")]
    assert instruction_pairs(parts) == [tuple(parts)]
    assert instruction_pairs([tasks["First"], parts[1]]) == []


def test_one_instruction_cannot_be_told_from_itself(encoder: Any, tasks: dict[str, EvaluationTask]) -> None:
    with pytest.raises(ConfigError, match="have the same instruction, 'attend to the first word'"):
        instruction_steering(encoder, tasks["First"], tasks["First"])
