"""Small training runs, each by all processes of one launch together; what came of them is left in files.

`torchrun --nproc_per_node 2 tests/training/joint_runs.py FOLDER CASE...`; the tests call `run_case` for one process.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from promptembedder.backbone import BackboneConfig, decoder_layers
from promptembedder.errors import PromptEmbedderError
from promptembedder.evaluation import similarity_evaluator
from promptembedder.method import ModelConfig, PrompterConfig, RelaxationConfig
from promptembedder.model import BaselineConfig
from promptembedder.training import (
    DataConfig,
    LossConfig,
    OptimConfig,
    Recipe,
    RunConfig,
    destroy_distributed,
    init_distributed,
    load_training_data,
    new_model,
    prepare_output,
    train_model,
)

WORDS = ("red", "green", "blue", "cold", "warm", "fast", "slow", "old")
THINGS = ("house", "river", "car", "stone", "song")
MODEL = ModelConfig(
    prompter=PrompterConfig(backbone=BackboneConfig(source="random:tiny-llama", dtype="float32"), lora_rank=4),
    reader=BackboneConfig(source="random:tiny-qwen3", dtype="float32"),
    num_soft_tokens=3,
    max_seq_length=48,
)


class StopAtError(Exception):
    """Stands for a kill."""


@dataclass
class Watch(TrainerCallback):
    """Notes the first step's gradients and all losses; stops the run, or disturbs a process, at a step."""

    stop_at: int = 0
    disturb_at: int = 0

    def __post_init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}
        self.logs: list[dict[str, float]] = []
        self.prompter_passes = 0
        self.sent: set[str] = set()
        self.layer_numbers = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        encoder = model.text_encoder
        if getattr(encoder, "prompter", None) is not None:
            encoder.prompter.register_forward_hook(lambda *_: self._count_pass(model))
        names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
        self.sent = set(names) - set(getattr(model, "_ddp_params_and_buffers_to_ignore", []))
        weights = decoder_layers(encoder.reader.decoder).parameters()
        self.layer_numbers = sum(getattr(w, "to_local", lambda w=w: w)().numel() for w in weights)

    def _count_pass(self, model: Any) -> None:
        self.prompter_passes += model.text_encoder.training

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if not self.gradients:
            self.gradients = {name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.logs.append(logs)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == self.disturb_at and args.process_index == 1:
            with torch.no_grad():
                next(weight for weight in model.parameters() if weight.requires_grad).add_(1e-3)
        if state.global_step == self.stop_at:
            raise StopAtError


def write_data(folder: Path) -> None:
    """One task of each kind; none has a whole number of batches."""
    rows = [(f"a {word} {thing}", f"the {thing} is {word}") for word in WORDS for thing in THINGS][:27]
    negative = [{"anchor": a, "positive": p, "negative": rows[i - 3][1]} for i, (a, p) in enumerate(rows)]
    pairs = [{"anchor": a, "positive": p} for a, p in rows[:13]]  # by sixes, the last batch has one row
    scored = [{"sentence1": a, "sentence2": p, "score": i / 27} for i, (a, p) in enumerate(rows)]
    for name, content in (("pairs", pairs), ("negative", negative), ("scored", scored)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    wordings = {
        "instruction": "Find it",
        "instruction_paraphrases": ["Which one?", "Look"],
        "document_instruction": None,
    }
    tasks = [
        {"name": "pairs", "file": "pairs.jsonl", "in_batch_negatives": True, **wordings},
        {"name": "negative", "file": "negative.jsonl", "in_batch_negatives": True, **wordings},
        {"name": "labels", "file": "negative.jsonl", "in_batch_negatives": False, **wordings},
    ]
    (folder / "mixture.json").write_text(json.dumps(tasks), encoding="utf-8")


def _model(**changes: Any) -> dict[str, Any]:
    return {"model": dataclasses.replace(MODEL, **changes)}


def _optim(**changes: Any) -> dict[str, Any]:
    settings = {"steps": 1, "batch_size": 6, "warmup_steps": 1, "max_grad_norm": 1e9}
    return {"optim": OptimConfig(**{**settings, **changes})}


LONG = {"steps": 14, "max_grad_norm": 1.0}  # two epochs of a mixture, small batches among them
STOPPED = 8
CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "pairs": (("pairs",), {}),
    "negatives": (("negative",), {}),
    "labels": (("labels",), {}),
    "symmetric": (("negative",), {"loss": LossConfig(symmetric=True)}),
    "stepwise": (("negative",), {"loss": LossConfig(stepwise=True)}),
    "stepwise_labels": (("labels",), {"loss": LossConfig(stepwise=True)}),
    "uneven": (("negative",), _optim(batch_size=5)),
    "prefix": (("negative",), _model(placement="prefix", deep_prompt_interval=0, text_pooling_weight=0.0)),
    "with_text": (
        ("negative",),
        _model(prompter=dataclasses.replace(MODEL.prompter, template="{text}\n\n" + MODEL.prompter.template)),
    ),
    "noisy": (("pairs", "negative"), {**_model(relaxation=RelaxationConfig(kind="gumbel")), **_optim(steps=3)}),
    "full": (("negative",), _model(prompter=dataclasses.replace(MODEL.prompter, tuning="full"))),
    "lora": (("negative",), {"baseline": BaselineConfig(kind="lora", lora_rank=4)}),
    "static": (("negative",), {"baseline": BaselineConfig(kind="static")}),
    "bfloat16": (("negative",), _model(reader=dataclasses.replace(MODEL.reader, dtype="bfloat16"))),
    "mixture": ((), _optim(**LONG)),
    "evaluated": ((), _optim(steps=2)),
    "sharded": (("negative",), _optim(steps=2)),
    "disturbed": (("negative",), _optim(steps=4)),
    "stopped_alone": ((), _optim(**LONG)),
    "stopped_together": ((), _optim(**LONG)),
}


def recipe_of(case: str, folder: Path, *, together: bool) -> Recipe:
    """What a case trains; a reader is spread over processes only where there are several."""
    tasks, changes = CASES[case]
    run = RunConfig(
        output=str(folder / f"{case}_output"),
        save_every=5,
        log_every=1,
        check_ranks=together and case != "with_text",
        shard_reader=together and case == "sharded",
    )
    data = DataConfig(mixture=str(folder / "mixture.json"), tasks=tasks, held_out=5 if case == "evaluated" else 0)
    return Recipe(**{"model": MODEL, "data": data, "run": run, **_optim(), **changes})


def run_case(case: str, folder: Path, *, together: bool, stop_at: int = 0) -> Mapping[str, Any]:
    """Train, or go on from where the case was stopped."""
    recipe = recipe_of(case, folder, together=together)
    if not together:
        recipe = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, output=f"{recipe.run.output}_alone"))
    if case.startswith("stopped"):  # the recipe that one process and two go on with is the same
        run = dataclasses.replace(recipe.run, output=str(folder / f"{case}_output"), check_ranks=False)
        recipe = dataclasses.replace(recipe, run=run)
    checkpoint = prepare_output(recipe)
    data = load_training_data(recipe.data, seed=0)
    model = new_model(recipe, data, device="cpu")
    watch = Watch(stop_at=stop_at, disturb_at=2 if case == "disturbed" else 0)
    evaluator = similarity_evaluator(folder / "scored.jsonl", instruction="Find it") if case == "evaluated" else None
    try:
        result = train_model(model, data, recipe, evaluator=evaluator, callbacks=[watch], checkpoint=checkpoint)
    except (PromptEmbedderError, StopAtError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {
        "losses": [line["loss"] for line in watch.logs if "loss" in line],
        "train_loss": result.train_loss,
        "communicated": [line["communicated_bytes"] for line in watch.logs if "communicated_bytes" in line],
        "gradients": watch.gradients,
        "weights": {n: w.detach().clone() for n, w in model.named_parameters() if w.requires_grad},
        "resumed_from": result.resumed_from,
        "metrics": {name: value for name, value in result.metrics.items() if "loss" in name or "spearman" in name},
        "trained_bytes": 4 * result.trained_parameters,
        "prompter_passes": watch.prompter_passes,
        "sent": watch.sent,
        "layer_numbers": watch.layer_numbers,
    }


def main(folder: Path, cases: list[str]) -> None:
    """Run the cases one after the other; rank r leaves CASE.r.pt."""
    ranks = init_distributed()
    for case in cases:
        stop_at = STOPPED if case == "stopped_together" else 0
        outcome = run_case(case, folder, together=True, stop_at=stop_at)
        torch.save(outcome, folder / f"{case}.{ranks.rank}.pt")
    destroy_distributed()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
