"""Sensitivity of vectors and training to threads, batches, attention, number format and instruction sets.

python benchmarks/determinism.py [OUTPUT.json [DOCUMENT.md [FOLDER]]]

Each setting runs in its own process, because threads and instruction sets are chosen when torch is loaded. Limiting
the instruction sets of torch's own kernels (ATEN), of oneDNN and of MKL simulates other machines. The document's
table between `<!-- determinism -->` and `<!-- end determinism -->` is regenerated.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.document import markdown_table, regenerate
from promptembedder import BackboneConfig, ModelConfig, PromptEmbedder, PrompterConfig
from promptembedder.data import load_docstring_corpus, sample_training_pairs
from promptembedder.storage import describe_machine, versions, write_json
from promptembedder.training import (
    OptimConfig,
    Recipe,
    RunConfig,
    TrainingData,
    build_task_data,
    new_model,
    train_model,
)

LLMS = ("random:tiny-llama", "smollm2-135m")
INSTRUCTION = "Find the code that does what the sentence says"
LOWEST = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}
STEPS, BATCH, TEXTS = 20, 4, 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Configuration of a process.

    Attributes:
        environment: Environment variables that torch and its libraries read when they are loaded.
        trains: If True, train with the seed and the data of the base. If False, use the base's trained weights.
        ways: Ways to encode the same texts.
    """

    name: str
    threads: int = 1
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    dtype: str = "float32"
    trains: bool = False
    ways: tuple[str, ...] = ("plain",)
    llms: tuple[str, ...] = LLMS


BASE = Setting(name="base", trains=True, ways=("plain", "again", "one by one", "by 4", "reversed", "sdpa", "eager"))
OTHERS = (
    Setting(name="a new process", trains=True),
    Setting(name="2 threads", threads=2),
    Setting(name="2 threads, training", threads=2, trains=True, llms=LLMS[:1]),
    Setting(name="ATEN without AVX", environment={"ATEN_CPU_CAPABILITY": "default"}),
    Setting(name="oneDNN up to SSE4.1", environment={"ONEDNN_MAX_CPU_ISA": "SSE41"}),
    Setting(name="MKL up to SSE2", environment={"MKL_CBWR": "COMPATIBLE"}),
    Setting(name="all three at their lowest", environment=LOWEST, trains=True),
    Setting(name="bfloat16", dtype="bfloat16", ways=("plain", "one by one")),
)


def _texts() -> list[str]:
    pairs = load_docstring_corpus().test
    chosen = [pairs[place] for place in np.linspace(0, len(pairs) - 1, TEXTS // 2).astype(int)]
    return [text for pair in chosen for text in (pair.anchor, pair.positive)]


def _recipe(setting: Setting, llm: str, output: Path) -> Recipe:
    model = ModelConfig(
        prompter=PrompterConfig(backbone=BackboneConfig(source=llm, dtype="float32")),
        reader=BackboneConfig(source=llm, dtype=setting.dtype),
        max_seq_length=64,
    )
    return Recipe(
        model=model,
        optim=OptimConfig(steps=STEPS, batch_size=BATCH, warmup_steps=2),
        run=RunConfig(output=str(output), log_every=1, save_every=STEPS),
    )


def _data() -> TrainingData:
    corpus = load_docstring_corpus()
    pairs = sample_training_pairs(corpus, STEPS * BATCH, seed=0)
    tasks = build_task_data(pairs, "docstrings", instructions=[INSTRUCTION], document_instructions=[], seed=0)
    return TrainingData(tasks)


def _encoded(model: PromptEmbedder, texts: Sequence[str], way: str) -> np.ndarray:
    if way in ("sdpa", "eager"):
        for llm in (model.encoder.reader.model, model.encoder.prompter.backbone.model):
            llm.set_attn_implementation(way)
        model.encoder.store.clear()
    batch = {"one by one": 1, "by 4": 4}.get(way, len(texts))
    if way == "reversed":
        return model.encode(texts[::-1], prompt=INSTRUCTION, batch_size=batch)[::-1]
    return model.encode(texts, prompt=INSTRUCTION, batch_size=batch)


def work(setting: Setting, folder: Path) -> None:
    """Train or load the base's weights, encode in all ways, and write the results. Runs in its own process."""
    torch.set_num_threads(setting.threads)
    for llm in setting.llms:
        _work_with(setting, llm, folder / _slug(setting.name) / _slug(llm), folder / "base" / _slug(llm) / "model")


def _work_with(setting: Setting, llm: str, own: Path, base_model: Path) -> None:
    recipe = _recipe(setting, llm, own / "model")
    losses: list[float] = []
    if setting.trains:
        data = _data()
        model = new_model(recipe, data, device="cpu")
        train_model(model, data, recipe)
        lines = (own / "model" / "metrics.jsonl").read_text().splitlines()
        losses = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
    else:
        model = PromptEmbedder.create(config=recipe.model, device="cpu")
        model.encoder.restore(base_model)
    assert isinstance(model, PromptEmbedder)
    model.eval()
    own.mkdir(parents=True, exist_ok=True)
    np.savez(own / "vectors.npz", **{way: _encoded(model, _texts(), way) for way in setting.ways})
    facts = {"capability": torch.backends.cpu.get_cpu_capability(), "machine": describe_machine(), "losses": losses}
    (own / "facts.json").write_text(json.dumps(facts))


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def _finish(setting: Setting, folder: Path) -> None:
    """Run the setting in its own process unless the folder contains its results."""
    if all((folder / _slug(setting.name) / _slug(llm) / "facts.json").is_file() for llm in setting.llms):
        return
    environment = os.environ | {"OMP_NUM_THREADS": str(setting.threads)} | dict(setting.environment)
    words = [sys.executable, __file__, "--work", setting.name, str(folder)]
    subprocess.run(words, env=environment, check=True, stdout=sys.stderr)


def _results(setting: Setting, llm: str, folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    results = folder / _slug(setting.name) / _slug(llm)
    with np.load(results / "vectors.npz") as vectors:
        return dict(vectors), json.loads((results / "facts.json").read_text())


def _difference(base: np.ndarray, other: np.ndarray) -> dict[str, float | bool]:
    left, right = base.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    # rounding cancels 1 - cosine for nearly equal vectors, but not half the squared distance
    apart = np.linalg.norm(
        left / np.linalg.norm(left, axis=1)[:, None] - right / np.linalg.norm(right, axis=1)[:, None], axis=1
    )
    return {
        "equal": bool(np.array_equal(base, other)),
        "max_abs": float(np.abs(left - right).max()),
        "min_cosine": float(((left * right).sum(axis=1) / lengths).min()),
        "max_one_minus_cosine": float((apart**2 / 2).max()),
        "same_nearest": float((_nearest(left) == _nearest(right)).mean()),
    }


def _nearest(vectors: np.ndarray) -> np.ndarray:
    """Return the index of the most similar function (odd rows) for each sentence (even rows)."""
    return (vectors[::2] @ vectors[1::2].T).argmax(axis=1)


def measure(folder: Path) -> dict[str, Any]:
    """Compare all settings with the base. Results of an interrupted run in the folder are reused."""
    for setting in (BASE, *OTHERS):
        _finish(setting, folder)
    rows = [row for llm in LLMS for row in _compared(llm, folder)]
    facts = {llm: _results(BASE, llm, folder)[1] for llm in LLMS}
    shared = facts[LLMS[0]]
    return {
        "command": "python benchmarks/determinism.py",
        "texts": TEXTS,
        "steps": STEPS,
        "losses": {llm: own["losses"] for llm, own in facts.items()},
        "capability": shared["capability"],
        "machine": shared["machine"],
        "versions": versions(),
        "rows": rows,
    }


def _compared(llm: str, folder: Path) -> list[dict[str, Any]]:
    base, facts = _results(BASE, llm, folder)
    rows: list[dict[str, Any]] = []
    for way in BASE.ways[1:]:
        rows.append({"llm": llm, "setting": way, "what": "encode", **_difference(base["plain"], base[way])})
    for setting in (each for each in OTHERS if llm in each.llms):
        vectors, setting_facts = _results(setting, llm, folder)
        for way, found in vectors.items():
            name = setting.name.removesuffix(", training") if way == "plain" else f"{setting.name}, {way}"
            what = "train and encode" if setting.trains else "encode"
            row = {"llm": llm, "setting": name, "what": what, "capability": setting_facts["capability"]}
            row |= _difference(base["plain"], found)
            if setting.trains:
                row["max_loss_difference"] = float(np.abs(np.subtract(setting_facts["losses"], facts["losses"])).max())
            rows.append(row)
    return rows


def markdown(content: Mapping[str, Any]) -> str:
    """Return a Markdown table for each LLM and a description of the machine."""
    header = ["setting", "what", "max abs", "1 - cosine", "same nearest", "loss differs by"]
    parts = []
    for llm in dict.fromkeys(row["llm"] for row in content["rows"]):
        lines = [_line(row) for row in content["rows"] if row["llm"] == llm]
        parts.append(f"{llm}, loss from {content['losses'][llm][0]:.2f} to {content['losses'][llm][-1]:.2f}:\n")
        parts.append(markdown_table(header, lines))
    machine, libraries = content["machine"], content["versions"]
    parts.append(
        f"{content['texts']} texts, {content['steps']} training steps; base: float32, 1 thread, one batch, "
        f"{content['capability']}. {machine['cpu']}, {machine['cores']} cores, torch {libraries['torch']}, "
        f"transformers {libraries['transformers']}. `{content['command']}`"
    )
    return "\n".join(parts)


def _line(row: Mapping[str, Any]) -> list[str]:
    loss = row.get("max_loss_difference")
    numbers = ["0", "0"] if row["equal"] else [f"{row['max_abs']:.1e}", f"{row['max_one_minus_cosine']:.1e}"]
    nearest = f"{round(100 * row['same_nearest'])} %"
    return [row["setting"], row["what"], *numbers, nearest, "" if loss is None else f"{loss:.1e}" if loss else "0"]


def main(
    output: str = "benchmarks/results/determinism.json",
    document: str = "docs/determinism.md",
    folder: str = "runs/determinism",
) -> None:
    """Measure all settings, and write the JSON file and the document's table."""
    write_json(Path(output), measure(Path(folder)))
    regenerate(Path(document), Path(output).parent, {Path(output).stem: markdown})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(next(each for each in (BASE, *OTHERS) if each.name == sys.argv[2]), Path(sys.argv[3]))
    else:
        main(*sys.argv[1:])
