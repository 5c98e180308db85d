"""The stages, each a function that runs in a process of its own and writes its result file part by part."""

import gc
import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.offline.measure import MeasureConfig, StageError
from benchmarks.offline.packages import ROOT
from promptembedder.errors import PromptEmbedderError
from promptembedder.storage import describe_machine, versions, write_text

__all__ = ["StageResult", "main", "require_memory", "run_stage"]

_MODEL_PART_BYTES = 15 << 20
_SMOKE_TEST = "tests/benchmarks/test_journal.py"


class StageResult:
    """Result file of a stage, rewritten after each part, so that a stage that is stopped leaves its finished parts."""

    def __init__(self, stage: str, config: MeasureConfig) -> None:
        """Begin the result file, or continue that of a stopped run with the same inputs on the same machine."""
        self.path = Path(config.output) / f"{stage}.json"
        facts = {
            "stage": stage,
            "command": _command(stage, config),
            "data": config.data,
            "device": config.device,
            "driver": _driver(),
            "machine": describe_machine(),
            "versions": versions(),
        }
        self.content: dict[str, Any] = {**facts, "complete": False, "parts": _finished_parts(self.path, facts)}
        self._write()

    def __contains__(self, name: str) -> bool:
        return name in self.content["parts"]

    def add(self, name: str, content: Any) -> None:
        """Add a part."""
        self.content["parts"][name] = content
        self._write()

    def attempt(self, name: str, compute: Callable[[], Any]) -> None:
        """Add the part that `compute` returns, unless a stopped run has finished the part.

        An error that a user can fix becomes the part, as `{"error": line}`.
        """
        from benchmarks.memory import is_out_of_memory

        if name in self:
            return
        try:
            self.add(name, compute())
        except Exception as error:
            if not isinstance(error, PromptEmbedderError) and not is_out_of_memory(error):
                raise
            line = (str(error).splitlines() or ["out of memory"])[0]
            print(f"{name}: {line}")
            self.add(name, {"error": line})
        gc.collect()

    def finish(self) -> None:
        """Mark the result as complete.

        Raises:
            StageError: If every part is an error.
        """
        errors = [part["error"] for part in self.content["parts"].values() if "error" in part]
        if errors and len(errors) == len(self.content["parts"]):
            raise StageError(errors[0])
        self.content["complete"] = True
        self._write()

    def _write(self) -> None:
        write_text(self.path, json.dumps(self.content, indent=1, default=str) + "\n")


def _finished_parts(path: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts without errors in the result file of a stopped run with equal `facts`, else no parts."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        same = not content["complete"] and all(content[name] == fact for name, fact in facts.items())
        return {name: part for name, part in content["parts"].items() if same and "error" not in part}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no such file, or not a result
        return {}


def run_tests(config: MeasureConfig, result: StageResult) -> None:
    """Run the tests that are marked `gpu`. At toy size one test file of a benchmark runs with them."""
    files = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if re.search(r"pytest\.mark\.gpu\b", path.read_text(encoding="utf-8"))
    ]
    report = Path(config.output) / "tests.xml"
    # not the project's options, which need plugins
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(ROOT), "--import-mode=importlib"]
    command += ["-p", "no:cacheprovider", "-q", "--tb=short", f"--junitxml={report}"]
    selection = ["-k", "gpu or test_journal", *files, _SMOKE_TEST] if config.smoke else ["-k", "gpu", *files]
    done = subprocess.run([*command, *selection], cwd=ROOT, check=False)
    if not report.is_file():
        raise StageError(f"pytest wrote no report (exit code {done.returncode})")
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = [f"{case.get('classname')}.{case.get('name')}" for case in suite.iter("testcase") if _has_failed(case)]
    result.add("pytest", {**counts, "failed": failed, "command": " ".join([*command[1:], *selection])})
    if done.returncode:
        raise StageError(f"{counts['failures'] + counts['errors']} of {counts['tests']} tests failed: {failed[:3]}")
    if counts["tests"] == counts["skipped"]:
        raise StageError("all tests were skipped")


def _has_failed(case: ElementTree.Element) -> bool:
    return case.find("failure") is not None or case.find("error") is not None


@dataclass(frozen=True)
class _Shape:
    """Models and cells of one part of the stage `efficiency`."""

    reader: str
    prompter: str
    methods: tuple[str, ...]
    lengths: tuple[int, ...]
    batches: tuple[int, ...]
    repeats: int = 1


_OURS = "promptembedder"
_SHAPES = {
    "7b-128": _Shape(
        *("random:llama-7b", "random:smollm2-135m"),
        (_OURS, "lora-checkpointing", "lora", "static", "promptembedder-input"),
        *((128,), (8, 32, 128)),
    ),
    "7b-512": _Shape(
        *("random:llama-7b", "random:smollm2-135m"), (_OURS, "lora-checkpointing", "lora"), (512,), (8, 32)
    ),
    "7b-128-prompter-0.5b": _Shape("random:llama-7b", "random:qwen2.5-0.5b", (_OURS,), (128,), (8, 32)),
}
_TINY = "random:tiny-llama"
_SMOKE_SHAPES = {"tiny": _Shape(_TINY, _TINY, (_OURS, "static", "lora-checkpointing", "lora"), (8,), (2, 4))}


def run_efficiency_stage(config: MeasureConfig, result: StageResult) -> None:
    """Measure time and memory of a training step of each method, at several lengths and batch sizes."""
    from benchmarks.efficiency.benchmark import run_efficiency
    from benchmarks.efficiency.config import EfficiencyConfig
    from benchmarks.offline.inline_worker import InlineWorker

    def measure_shape(name: str, shape: _Shape) -> dict[str, Any]:
        require_memory([shape.reader, shape.prompter], config.device)
        measured = run_efficiency(
            EfficiencyConfig(**asdict(shape), device=config.device, dtype="float32" if config.smoke else "bfloat16"),
            Path(config.output) / f"efficiency-{name}",
            start=InlineWorker,
            on_progress=lambda progress: print(progress.doing),
        )
        return measured.content()

    for name, shape in (_SMOKE_SHAPES if config.smoke else _SHAPES).items():
        result.attempt(name, lambda name=name, shape=shape: measure_shape(name, shape))  # type: ignore[misc]


def run_speed_stage(config: MeasureConfig, result: StageResult) -> None:
    """Time encoding against the bare forward and sentence-transformers, under one and under eight instructions."""
    from benchmarks.speed.benchmark import SpeedConfig, run_speed
    from benchmarks.speed.cases import Case

    texts = 4 if config.smoke else 256
    instructions = [Case(kind="instructions", length=128, texts=texts, instructions=count) for count in (1, 8)]
    lengths = [Case(kind=kind, length=length, texts=texts) for kind, length in (("length", 128), ("mixed", 512))]
    bare = [Case(kind="bare", length=128, texts=texts), Case(kind="bare", length=512, texts=texts // 4)]
    cases = {_TINY: [*lengths, *instructions]}
    if not config.smoke:
        cases = {"random:smollm2-135m": [*lengths, *instructions], "random:llama-7b": [*bare, *instructions]}

    @dataclass(frozen=True, kw_only=True)
    class _ListedCases(SpeedConfig):
        def cases(self) -> list[Case]:
            return cases[self.reader]

    def time_reader(reader: str) -> dict[str, Any]:
        prompter = _TINY if config.smoke else "random:smollm2-135m"
        require_memory([reader, prompter], config.device)
        speed_config = _ListedCases(
            reader=reader,
            prompter=prompter,
            lengths=(128,),
            tokens=128 * texts,
            device=config.device,
            dtype="float32" if config.smoke else "bfloat16",
            repeats=1 if config.smoke else 3,
        )
        return run_speed(speed_config, Path(config.output) / f"speed-{reader.removeprefix('random:')}", on_case=print)

    for reader in cases:
        result.attempt(reader, lambda reader=reader: time_reader(reader))  # type: ignore[misc]


def run_train_stage(config: MeasureConfig, result: StageResult) -> None:
    """Train the shipped recipe for a number of minutes and save the model in parts of at most 15 MiB."""
    from benchmarks.offline.bundle import write_bundle
    from benchmarks.offline.training import train_for

    folder = Path(config.output) / "train-model"
    seconds = 5.0 if config.smoke else 60 * config.train_minutes
    if "training" not in result:
        shutil.rmtree(folder, ignore_errors=True)  # a model that was saved without its numbers, or a stopped training
        result.add("training", train_for(config, folder, seconds=seconds))
    parts = write_bundle({"model": folder}, Path(config.output) / "train-parts", part_bytes=_MODEL_PART_BYTES)
    result.add("model", {"parts": [asdict(part) for part in parts]})


def run_quality_stage(config: MeasureConfig, result: StageResult) -> None:
    """Score the method and LoRA after equal steps and in equal time, and the effect of instructions."""
    from benchmarks.offline.training import compare_quality

    for name, content in compare_quality(config):
        result.add(name, content)


_RUN = {
    "tests": run_tests,
    "efficiency": run_efficiency_stage,
    "speed": run_speed_stage,
    "train": run_train_stage,
    "quality": run_quality_stage,
}


def run_stage(stage: str, config: MeasureConfig, *, overwrite: bool = False) -> None:
    """Run one stage in this process and write its result file.

    Args:
        overwrite: If True, delete the results that an earlier run of the stage left in the output folder.

    Raises:
        StageError: If the stage fails, or there is no GPU for it.
    """
    if overwrite:
        for path in Path(config.output).glob(f"{stage}-*"):
            shutil.rmtree(path)
        (Path(config.output) / f"{stage}.json").unlink(missing_ok=True)
    if not config.smoke:
        require_gpu()
    result = StageResult(stage, config)
    _RUN[stage](config, result)
    result.finish()


def require_gpu() -> None:
    """Check that torch can use a GPU.

    Raises:
        StageError: If torch has no CUDA, the driver is too old, or there is no GPU. The message is torch's first line.
    """
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        raise StageError(f"no usable GPU: {(str(error).splitlines() or ['unknown reason'])[0]}") from error


def require_memory(backbones: list[str], device: str) -> None:
    """Check that the weights of random backbones fit into the free memory of the device, two bytes for each weight.

    Raises:
        StageError: If the weights do not fit.
    """
    import torch

    from benchmarks.memory import GIB, room_for
    from promptembedder.backbone.random_models import random_model

    with torch.device("meta"):
        models = [random_model(name.removeprefix("random:"), layers=None, dtype=torch.bfloat16) for name in backbones]
    needed = sum(parameter.nbytes for model in models for parameter in model.parameters())
    room = room_for(device)
    if needed > room:
        raise StageError(
            f"{' and '.join(backbones)} need {needed / GIB:.1f} GiB for their weights, {device} has "
            f"{room / GIB:.1f} GiB free. Use a device with more memory."
        )


def _command(stage: str, config: MeasureConfig) -> str:
    words = ["python -m benchmarks.offline measure", stage]
    words += ["--smoke"] if config.smoke else []
    words += [f"--train-minutes {config.train_minutes:g}"] if stage == "train" and not config.smoke else []
    return " ".join(words)


def _driver() -> str | None:
    """Return the version of the NVIDIA driver, or None if there is none."""
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.splitlines()), None)


def main(arguments: list[str]) -> int:
    """Run `STAGE CONFIG [--overwrite]`, where CONFIG is JSON, and return the exit code."""
    stage, config = arguments[0], MeasureConfig(**json.loads(arguments[1]))
    started = time.perf_counter()
    try:
        if stage == "machine":
            report = {"machine": describe_machine(), "versions": versions()}
            write_text(Path(config.output) / "machine.json", json.dumps(report, indent=1) + "\n")
        else:
            run_stage(stage, config, overwrite="--overwrite" in arguments)
    except PromptEmbedderError as error:
        print(f"error: {(str(error).splitlines() or [type(error).__name__])[0]}")
        return 1
    print(f"{stage}: {time.perf_counter() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
