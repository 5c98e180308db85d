"""Corpus embedding benchmark: overhead of each engine, memory of the driver, and recovery from faults."""

import random
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.corpus.runs import EmbedRun, check_output, made_corpus, made_model
from promptembedder.batch import MANIFEST_LINES
from promptembedder.errors import ConfigError, DataError
from promptembedder.storage import describe_machine, file_sha256, versions

__all__ = ["CorpusBenchConfig", "run_corpus"]

_MEGABYTE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class CorpusBenchConfig:
    """Settings of the corpus benchmark.

    Attributes:
        rows: Sizes of the corpora.
        workers: Numbers of Ray actors. The local engine is always measured, too.
        shard_rows: Number of rows of a shard.
        faults: Number of commands that are interrupted at a random moment and run again. The faults alternate: a killed
            Ray worker, a killed command with and without Ray, and a full disk.
        fault_rows: Number of rows of the corpus for the faults.
        seed: Seed of the corpora and of the moments of the faults.
        work: Folder for models, corpora and outputs. If None, a temporary folder is used.
    """

    rows: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    workers: tuple[int, ...] = (1, 2)
    shard_rows: int = 1000
    faults: int = 20
    fault_rows: int = 20_000
    seed: int = 0
    work: Path | None = None

    def __post_init__(self) -> None:
        """Validate the values."""
        if any(value < 1 for value in (*self.rows, *self.workers, self.shard_rows, self.fault_rows)) or self.faults < 0:
            raise ConfigError("rows, workers, shard_rows and fault_rows must be at least 1, faults at least 0.")


def run_corpus(config: CorpusBenchConfig, *, on_part: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measure all parts. The commands run sequentially, each in its own process.

    Raises:
        DataError: If a command without an injected fault fails.
        ImportError: If Ray or psutil is not installed.
    """
    with tempfile.TemporaryDirectory(dir=config.work) as folder:
        work = Path(folder)
        on_part("making the model")
        model = made_model(work)
        rows = [row for size in config.rows for row in _measured(model, work, size, config, on_part)]
        faults = _faults(model, work, config, on_part) if config.faults else []
    return {
        "commands": [_command(config)],
        "machine": describe_machine(),
        "versions": versions(),
        "settings": {**asdict(config), "work": None},
        "rows": rows,
        "faults": faults,
    }


def _command(config: CorpusBenchConfig) -> str:
    """Return the command that repeats the measurement, without local folders."""
    options = {
        "rows": ",".join(map(str, config.rows)),
        "workers": ",".join(map(str, config.workers)),
        "shard-rows": config.shard_rows,
        "faults": config.faults,
        "fault-rows": config.fault_rows,
        "seed": config.seed,
    }
    words = (word for name, value in options.items() for word in (f"--{name}", str(value)))
    return shlex.join(["benchmarks", "corpus", *words])


def _measured(
    model: Path, work: Path, size: int, config: CorpusBenchConfig, on_part: Callable[[str], None]
) -> list[dict[str, Any]]:
    corpus = made_corpus(work / f"corpus-{size}.jsonl", size, seed=config.seed)
    rows: list[dict[str, Any]] = []
    names: list[set[str]] = []
    for workers in (0, *config.workers):
        on_part(f"{size} rows, {f'ray with {workers} workers' if workers else 'local'}")
        output = work / "measured"
        run = _undisturbed(model, corpus, output, _options(config, workers))
        assert run.report is not None
        names.append({path.name for path in output.glob("part-*")})
        rows.append(
            {
                "engine": "ray" if workers else "local",
                "workers": workers or 1,
                "rows": size,
                "command_seconds": round(run.seconds, 2),
                "seconds": round(run.report["seconds"], 2),
                "embedding_seconds": round(run.report["embedding_seconds"], 2),
                "rows_per_second": round(size / run.report["embedding_seconds"], 1),
                "driver_peak_megabytes": run.peak_bytes // _MEGABYTE,
                # a shard's name contains its hash
                "same_shards_as_local": names[-1] == names[0],
                **check_output(output, size),
            }
        )
        _removed(output)
    return rows


def _options(config: CorpusBenchConfig, workers: int) -> list[str]:
    options = ["--shard-rows", str(config.shard_rows)]
    return [*options, "--engine", "ray", "--workers", str(workers)] if workers else options


def _undisturbed(model: Path, corpus: Path, output: Path, options: list[str]) -> EmbedRun:
    run = EmbedRun.of(model, corpus, output, options)
    if run.report is None:
        raise DataError(f"embedding {corpus.name} failed: {run.complaint}")
    return run


def _faults(model: Path, work: Path, config: CorpusBenchConfig, on_part: Callable[[str], None]) -> list[dict[str, Any]]:
    corpus = made_corpus(work / "faults.jsonl", config.fault_rows, seed=config.seed)
    workers = max(config.workers)
    on_part("the undisturbed run that faults are compared with")
    _undisturbed(model, corpus, work / "whole", _options(config, 0))
    expected = _content(work / "whole")
    draw = random.Random(config.seed)
    kinds = [("worker", workers), ("disk", 0), ("driver", workers), ("driver", 0)]
    found = []
    for number in range(config.faults):
        kind, engine = kinds[number % len(kinds)]
        share = draw.uniform(0, 0.95)
        on_part(f"fault {number + 1} of {config.faults}: {kind}, {'ray' if engine else 'local'}")
        output = work / "fault"
        options = _options(config, engine)
        if kind == "disk":
            outcome = _full_disk(model, corpus, output, options, share, expected_bytes=_size(work / "whole"))
        else:
            outcome = _killed(kind, model, corpus, output, options, after=int(share * len(expected)))
        shards_before = len(_content(output))
        again = EmbedRun.of(model, corpus, output, options)
        found.append(
            {
                "fault": kind,
                "engine": "ray" if engine else "local",
                "share_of_the_shards": round(share, 3),
                **outcome,
                "shard_files_left": shards_before,
                "skipped_shards": None if again.report is None else again.report["skipped_shards"],
                "same_shards_as_undisturbed": _content(output) == expected,
                **check_output(output, config.fault_rows),
            }
        )
        _removed(output)
    return found


def _killed(kind: str, model: Path, corpus: Path, output: Path, options: list[str], *, after: int) -> dict[str, Any]:
    """Run the command and kill a process once `after` shards are finished."""
    killed: list[str] = []
    manifest = output / MANIFEST_LINES

    def during(process: Any) -> None:
        finished = manifest.read_bytes().count(b"\n") if manifest.exists() else 0
        if killed or finished < after:
            return
        if kind == "driver":
            killed.append("the command")
            process.kill()
            return
        actors = [each for each in process.children(recursive=True) if "MapWorker" in " ".join(each.cmdline())]
        if actors:
            killed.append("an actor")
            actors[0].kill()

    run = EmbedRun.of(model, corpus, output, options, during=during)
    return {"hit": bool(killed), "went_on_by_itself": run.report is not None, "complaint": run.complaint[:200]}


def _full_disk(
    model: Path, corpus: Path, output: Path, options: list[str], share: float, *, expected_bytes: int
) -> dict[str, Any]:
    """Run the command on a disk that is too small, then enlarge the disk.

    Raises:
        DataError: If the user has no permission to mount a disk.
    """
    output.mkdir()
    size = max(int(share * expected_bytes), 64 << 10)
    _mount(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(output)])
    run = EmbedRun.of(model, corpus, output, options)
    _mount(["mount", "-o", f"remount,size={4 * expected_bytes}", str(output)])
    return {"hit": run.report is None, "went_on_by_itself": False, "complaint": run.complaint[:200]}


def _mount(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise DataError(f"a small disk cannot be made: {done.stderr.strip()}. Run as root, or with faults 0.")


def _removed(output: Path) -> None:
    subprocess.run(["umount", str(output)], capture_output=True)  # fails harmlessly unless a small disk is mounted
    for path in output.iterdir():
        path.unlink()
    output.rmdir()


def _content(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in folder.glob("part-*")} if folder.exists() else {}


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
