"""Run the stages, each in a process with a time limit, and skip on a rerun what an earlier run finished."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.journal import Journal
from benchmarks.offline.packages import ROOT, packages_folder
from promptembedder.errors import ConfigError, PromptEmbedderError

__all__ = [
    "JOURNAL_NAME",
    "STAGES",
    "MeasureConfig",
    "StageError",
    "StageOutcome",
    "machine_report",
    "measure",
    "run_process",
]

JOURNAL_NAME = "offline.journal.jsonl"

STAGES = {"tests": 90.0, "efficiency": 150.0, "speed": 60.0, "train": 170.0, "quality": 230.0}
"""Time limit of each stage in seconds. The stages run in this order; all of them together take 12 minutes at most."""

_TRAIN_MINUTES = 2.0  # included in the limit of the stage train
_SMOKE_LIMIT_S = 300.0  # a busy machine
_PROBE_LIMIT_S = 120.0


class StageError(PromptEmbedderError):
    """A stage that failed, ran out of time, or cannot run on this machine."""


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """Inputs of the stages.

    Attributes:
        output: Folder of results, logs and the journal.
        site: Folder that `install` filled. If None, the packages of this Python are used.
        data: Folder with `mixture.json` and `tasks.json`. If None, `site/data`.
        smoke: Run every stage at toy size on the CPU, with random weights and made-up texts.
        train_minutes: Duration of training in the stage `train`.
        limit_s: Time limit of each stage in seconds. If None, the stage's limit in `STAGES`.
    """

    output: str
    site: str | None = None
    data: str | None = None
    smoke: bool = False
    train_minutes: float = _TRAIN_MINUTES
    limit_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("train_minutes", "limit_s"):
            number = getattr(self, name)
            if number is not None and not number > 0:
                raise ConfigError(f"{name} must be > 0, got {number}.")

    @property
    def device(self) -> str:
        """Return the device of the measurements."""
        return "cpu" if self.smoke else "cuda"

    def data_folder(self) -> Path:
        """Return the folder of the training and evaluation data.

        Raises:
            ConfigError: If no folder is configured, or the folder does not contain `mixture.json` and `tasks.json`.
        """
        folder = self.data or (f"{self.site}/data" if self.site is not None else None)
        if folder is None:
            raise ConfigError("no data folder is given. Set --data, or --site to a folder that contains data.")
        for name in ("mixture.json", "tasks.json"):
            if not (Path(folder) / name).is_file():
                raise ConfigError(f"{folder} does not contain {name}. Check --data.")
        return Path(folder)

    def time_limit(self, stage: str) -> float:
        """Return the time limit of a stage in seconds."""
        if self.limit_s is not None:
            return self.limit_s
        if self.smoke:
            return _SMOKE_LIMIT_S
        longer = 60 * (self.train_minutes - _TRAIN_MINUTES) if stage == "train" else 0.0
        return STAGES[stage] + longer


@dataclass(frozen=True, kw_only=True)
class StageOutcome:
    """Outcome of one stage.

    Attributes:
        state: `done`, `skipped` (finished by an earlier run) or `failed`.
        seconds: Duration. 0 for a skipped stage.
        error: One line for a failed stage, else empty.
    """

    stage: str
    state: str
    seconds: float = 0.0
    error: str = ""


def measure(
    stages: Sequence[str],
    config: MeasureConfig,
    *,
    overwrite: bool = False,
    on_outcome: Callable[[StageOutcome], None] = lambda _: None,
) -> list[StageOutcome]:
    """Run stages sequentially. A stage that fails does not stop the others.

    A finished stage has the result file `output/STAGE.json`. A failed stage may have a partial result file.

    Args:
        overwrite: If True, run finished stages again.
        on_outcome: Called after each stage.

    Raises:
        ConfigError: If a stage is unknown.
        DataError: If the journal is from another machine or other versions.
        StageError: If the machine's facts cannot be determined, for example because torch is missing.
    """
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or not stages:
        problem = f"unknown stage {unknown[0]!r}" if unknown else "no stage is given"
        raise ConfigError(f"{problem}. Use some of: {', '.join(STAGES)}.")
    output = Path(config.output).resolve()
    output.mkdir(parents=True, exist_ok=True)
    if overwrite:
        (output / JOURNAL_NAME).unlink(missing_ok=True)
    report = machine_report(config)
    journal = Journal(output / JOURNAL_NAME, machine=report["machine"], versions=report["versions"])
    outcomes = []
    for stage in STAGES:
        if stage in stages:
            outcomes.append(_run_stage(stage, config, journal, overwrite=overwrite))
            on_outcome(outcomes[-1])
    return outcomes


def machine_report(config: MeasureConfig) -> dict[str, Any]:
    """Return machine facts and versions of the process that a stage would run in.

    Raises:
        StageError: If the process fails.
    """
    output = Path(config.output).resolve()
    log = output / "machine.log"
    command = [sys.executable, "-m", "benchmarks.offline.stages", "machine", json.dumps(asdict(config))]
    run_process(command, log, limit_s=_PROBE_LIMIT_S, environment=_environment(config))
    report: dict[str, Any] = json.loads((output / "machine.json").read_text(encoding="utf-8"))
    return report


def run_process(command: Sequence[str], log: Path, *, limit_s: float, environment: Mapping[str, str]) -> None:
    """Run a command in the checkout and write its output to `log`. End its process group after `limit_s` seconds.

    Raises:
        StageError: If the command fails or exceeds its time limit. The message is one line.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, start_new_session=True
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise StageError(f"exceeded its time limit of {limit_s:g} s. Run it again to resume; log: {log}") from None
        finally:
            with contextlib.suppress(ProcessLookupError):  # the stage's own processes, too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code:
        raise StageError(_last_error(log, code))


def _run_stage(stage: str, config: MeasureConfig, journal: Journal, *, overwrite: bool) -> StageOutcome:
    output = Path(config.output).resolve()
    inputs = asdict(config) | {"limit_s": None, "output": "", "site": None}
    key = {"stage": stage, **inputs}
    if journal.get(key) is not None and (output / f"{stage}.json").is_file():
        return StageOutcome(stage=stage, state="skipped")
    child = asdict(config) | {"output": str(output)}
    command = [sys.executable, "-m", "benchmarks.offline.stages", stage, json.dumps(child)]
    command += ["--overwrite"] if overwrite else []
    started = time.perf_counter()
    try:
        limit_s = config.time_limit(stage)
        run_process(command, output / f"{stage}.log", limit_s=limit_s, environment=_environment(config))
    except StageError as error:
        return StageOutcome(stage=stage, state="failed", seconds=time.perf_counter() - started, error=str(error))
    seconds = round(time.perf_counter() - started, 1)
    journal.add(key, {"seconds": seconds})
    return StageOutcome(stage=stage, state="done", seconds=seconds)


def _environment(config: MeasureConfig) -> dict[str, str]:
    """Return the environment of a stage's process."""
    site = [] if config.site is None else [str(packages_folder(Path(config.site).resolve()))]
    source = [] if config.site is not None else [str(ROOT / "src")]
    paths = [*site, *source, str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # empty means unset: without bytecode each of the processes would compile torch and transformers again
        "PYTHONDONTWRITEBYTECODE": "",
        # tiny tensors gain nothing from threads, and threads of a busy machine wait for each other
        **({"OMP_NUM_THREADS": "1"} if config.smoke else {}),
    }


def _last_error(log: Path, code: int) -> str:
    """Return the last line of a log that is an error message, with the path of the log."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    marked = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    reason = (marked or lines or ["no output"])[-1][:400]
    return f"{reason} (exit code {code}; log: {log})"
