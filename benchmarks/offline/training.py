"""Training and scoring of the stages `train` and `quality`."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks.offline.measure import MeasureConfig
from benchmarks.quality.benchmark import QualityConfig, base_recipe, bench_quality
from promptembedder.evaluation import instruction_pairs, instruction_steering, read_tasks
from promptembedder.model import load_encoder
from promptembedder.storage import from_mapping
from promptembedder.training import Recipe, load_training_data, new_model, prepare_output, train_model

__all__ = ["StopAfter", "compare_quality", "train_for"]

_METHODS = ("promptembedder", "lora-1e-3")
_MAX_STEPS = 100_000
_WORDS = ("red", "green", "blue", "cold", "warm", "fast", "slow", "old")
_THINGS = ("house", "river", "car", "stone", "song", "road")


class StopAfter(TrainerCallback):
    """Callback that ends training after a number of seconds of training steps."""

    def __init__(self, seconds: float) -> None:
        """Start the clock with the first step."""
        self.seconds, self._deadline = seconds, None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """End training if the time is over."""
        now = time.monotonic()
        self._deadline = self._deadline or now + self.seconds
        control.should_training_stop = control.should_training_stop or now >= self._deadline
        return control


def train_for(config: MeasureConfig, folder: Path, *, seconds: float) -> dict[str, Any]:
    """Train the method for `seconds`, save the model to `folder`, and return steps, loss and speed."""
    quality = _quality_config(config)
    mapping = base_recipe(quality, "promptembedder", quality.readers[0], 0, _MAX_STEPS, "seconds")
    mapping["run"] |= {"output": str(folder), "save_every": 200}
    mapping["optim"]["schedule"] = "constant"  # training may end after any step
    if config.smoke:
        mapping["optim"]["steps"] = 4
    recipe = from_mapping(Recipe, mapping)
    data = load_training_data(recipe.data, seed=recipe.run.seed)
    checkpoint = prepare_output(recipe)
    model = new_model(recipe, data, device=config.device)
    trained = train_model(model, data, recipe, callbacks=[StopAfter(seconds)], checkpoint=checkpoint)
    return {
        "steps": trained.steps,
        "resumed_from": trained.resumed_from,
        "seconds": trained.seconds,
        "train_loss": trained.train_loss,
        "batch_size": recipe.optim.batch_size,
        "trained_parameters": trained.trained_parameters,
    }


def compare_quality(config: MeasureConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the runs of the quality benchmark, then the instruction steering of each trained model."""
    quality = _quality_config(config)
    runs = bench_quality(quality, tell=print)
    yield "runs", {"settings": asdict(quality), "runs": [asdict(run) for run in runs]}
    tasks = read_tasks(Path(quality.tasks))
    pairs = instruction_pairs(tasks)[:1]
    steering = []
    for method in _METHODS if pairs else ():
        recipe = base_recipe(quality, method, quality.readers[0], 0, quality.steps, "steps")
        model = load_encoder(recipe["run"]["output"]).model
        for coarse, fine in pairs:
            measured = instruction_steering(model, coarse, fine)
            steering.append({"method": method, **asdict(measured), "gain": measured.gain})
    yield "steering", {"pairs": steering}


def _quality_config(config: MeasureConfig) -> QualityConfig:
    work = str(Path(config.output) / "quality-runs")
    if config.smoke:
        folder = _write_smoke_data(Path(config.output) / "smoke-data")
        return QualityConfig(
            mixture=str(folder / "mixture.json"),
            tasks=str(folder / "tasks.json"),
            prompter="random:tiny-llama",
            readers=("random:tiny-llama",),
            methods=_METHODS,
            timed=("promptembedder",),
            steps=3,
            batch_size=4,
            max_seq_length=32,
            held_out=4,
            curve_points=1,
            dtype="float32",
            work=work,
        )
    data = config.data_folder()
    return QualityConfig(
        mixture=str(data / "mixture.json"),
        tasks=str(data / "tasks.json"),
        only=("STSBenchmark", "Banking77Classification", "SciFact"),
        methods=_METHODS,
        timed=("promptembedder",),
        steps=120,
        curve_points=1,
        curve_limit=50,
        dtype="bfloat16",
        work=work,
    )


def _write_smoke_data(folder: Path) -> Path:
    """Write two training tasks and one evaluation task of made-up sentences."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"anchor": f"a {word} {thing}", "positive": f"the {thing} is {word}"} for word in _WORDS for thing in _THINGS
    ]
    mixture = []
    for name, part in (("one", rows[:24]), ("two", rows[24:])):
        _write_rows(folder / f"{name}.jsonl", part)
        mixture.append(
            {
                "name": name,
                "file": f"{name}.jsonl",
                "instruction": f"Find the sentence of task {name}",
                "instruction_paraphrases": [f"Retrieve the sentence of {name}", f"Search {name}"],
                "document_instruction": None,
                "in_batch_negatives": True,
            }
        )
    pairs = [
        {"sentence1": f"a {word} car", "sentence2": f"a {other} car", "score": float(word == other) + index / 99}
        for index, (word, other) in enumerate(zip(_WORDS, _WORDS[:4] * 2, strict=True))
    ]
    _write_rows(folder / "alike.jsonl", pairs)
    task = {
        "name": "Alike",
        "type": "sts",
        "files": {"pairs": "alike.jsonl"},
        "instruction": "Retrieve semantically similar text",
        "metric": "cosine_spearman",
    }
    (folder / "mixture.json").write_text(json.dumps(mixture), encoding="utf-8")
    (folder / "tasks.json").write_text(json.dumps([task]), encoding="utf-8")
    return folder


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
