"""Quality benchmark: all methods on the same reader, data and batches, after equal steps and in equal time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from benchmarks.quality.methods import chosen_methods
from benchmarks.quality.mixture_config import MixtureConfig
from benchmarks.quality.run import QualityRun, RunData, recipe_of, run_method
from promptembedder.backbone import find_source
from promptembedder.data import read_mixture
from promptembedder.errors import ConfigError
from promptembedder.evaluation import EvaluationTask, subsample

__all__ = ["QualityConfig", "bench_quality"]

OnMessage = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class QualityConfig(MixtureConfig):
    """Configuration of the quality benchmark.

    Attributes:
        readers: Frozen LLMs. The prompter is `prompter` for each of them.
        methods: Names of `METHODS`.
        timed: Methods that are trained again for as long as their first LoRA run took. Names of `METHODS`.
        steps: Optimiser steps of every method.
        curve_limit: Maximum number of rows of each evaluation task for the scores over time.
        curve_points: Number of scored points of a run, including its end.
        work: Folder of the runs, their checkpoints and models.
    """

    readers: tuple[str, ...] = ("smollm2-135m",)
    methods: tuple[str, ...] = ("promptembedder", "static", "lora-1e-3", "frozen-mean")
    timed: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    steps: int = 120
    curve_limit: int = 100
    curve_points: int = 3
    work: str = "runs/quality"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "curve_limit"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        chosen_methods(self.methods)
        unknown = [name for name in self.timed if name not in self.methods]
        if unknown:
            raise ConfigError(f"{unknown[0]!r} is to be timed and is none of the methods. Add it to them.")


def bench_quality(
    config: QualityConfig, *, tell: OnMessage = lambda _: None, callbacks: Sequence[TrainerCallback] = ()
) -> list[QualityRun]:
    """Run the benchmark and return its runs. Finished runs in the work folder are loaded.

    Args:
        tell: Called with a description of each run before it begins.
        callbacks: Callbacks for the trainers, for example a progress bar.

    Raises:
        DataError: If a file is missing or malformed.
        ConfigError: If the work folder contains runs with other settings.
        BackboneError: If a reader is missing.
    """
    bench = _Bench(config, config.evaluation_tasks(), tell, callbacks)
    for name in (*config.readers, config.prompter):
        find_source(name)  # fail on a misspelled name now rather than hours later
    read_mixture(Path(config.mixture))
    runs = []
    for reader in config.readers:
        for seed in config.seeds:
            finished = [bench.run(name, reader, seed, config.steps, "steps") for name in config.methods]
            seconds = next((run.seconds for run in finished if run.method.startswith("lora")), 0.0)
            by_name = {run.method: run for run in finished}
            for name in config.timed:
                steps = _steps_in(seconds, by_name[name])
                if steps > config.steps:
                    finished.append(bench.run(name, reader, seed, steps, "seconds"))
            runs += finished
    return runs


@dataclass(frozen=True)
class _Bench:
    """State that is shared by all runs."""

    config: QualityConfig
    tasks: Sequence[EvaluationTask]
    tell: OnMessage
    callbacks: Sequence[TrainerCallback]

    def run(self, name: str, reader: str, seed: int, steps: int, budget: str) -> QualityRun:
        method = chosen_methods([name])[name]
        recipe = recipe_of(base_recipe(self.config, name, reader, seed, steps, budget), method)
        self.tell(f"{name} on {reader}, seed {seed}, {steps} steps: {method.about}")
        return run_method(name, method, recipe, self._data(steps), budget=budget, callbacks=self.callbacks)

    def _data(self, steps: int) -> RunData:
        config, parts = self.config, self.config.curve_points
        points = {steps * part // parts for part in range(1, parts + 1)}
        return RunData(
            tasks=[subsample(task, min(config.limit, task.rows), seed=0) for task in self.tasks],
            curve_tasks=[subsample(task, min(config.curve_limit, task.rows), seed=0) for task in self.tasks],
            points=tuple(sorted(points - {0})),
        )


def _steps_in(seconds: float, run: QualityRun) -> int:
    """Return the number of steps, rounded down to tens, that fit into `seconds` at the speed of `run`."""
    return int(seconds / run.seconds * run.steps) // 10 * 10 if run.seconds else 0


def base_recipe(config: QualityConfig, name: str, reader: str, seed: int, steps: int, budget: str) -> dict[str, Any]:
    """Return the recipe that all methods share, with the output folder of this run."""
    folder = f"{config.work}/{reader.replace(':', '-')}-{name}-{budget}-s{seed}"
    return config.recipe(reader, steps=steps, seed=seed, output=folder)
