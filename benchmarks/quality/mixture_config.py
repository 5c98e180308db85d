"""Data, lengths and batches shared by the benchmarks that train on a mixture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptembedder.errors import ConfigError
from promptembedder.evaluation import EvaluationTask, read_tasks

__all__ = ["MixtureConfig"]


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """Training and evaluation data, the same for every method.

    Attributes:
        mixture: Mixture file for training.
        tasks: Task file for scoring.
        rows: Number of rows of each task of the mixture, drawn with the seed.
        held_out: Number of rows of each task that are excluded from training and searched under seen and unseen
            wordings.
        only: Names of the tasks that are scored. If empty, all tasks of the file are.
        limit: Maximum number of rows of each evaluation task.
    """

    mixture: str
    tasks: str
    only: tuple[str, ...] = ()
    prompter: str = "smollm2-135m"
    batch_size: int = 24
    max_seq_length: int = 128
    rows: int = 4000
    held_out: int = 50
    limit: int = 200
    dtype: str = "auto"

    def __post_init__(self) -> None:
        for name in ("limit", "rows", "held_out"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")

    def evaluation_tasks(self) -> list[EvaluationTask]:
        """Return the evaluation tasks with all their rows.

        Raises:
            DataError: If the file is missing or malformed, or contains no task of a given name.
        """
        return read_tasks(Path(self.tasks), only=self.only)

    def recipe(self, reader: str, *, steps: int, seed: int, output: str) -> dict[str, Any]:
        """Return the recipe that all methods share, as a mapping."""
        return {
            "model": {
                "prompter": {"backbone": {"source": self.prompter, "dtype": "float32"}},
                "reader": {"source": reader, "dtype": self.dtype},
                "max_seq_length": self.max_seq_length,
            },
            "data": {
                "mixture": self.mixture,
                "limit": self.rows,
                "held_out": self.held_out,
                "held_out_variants": 1,
            },
            "optim": {"steps": steps, "batch_size": self.batch_size},
            "run": {"output": output, "seed": seed, "save_every": max(steps // 4, 1), "keep_checkpoints": 1},
        }
