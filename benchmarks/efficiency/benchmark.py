"""Efficiency benchmark: cost of a training step of each method, measured side by side in one run."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.efficiency.cell import measure_cell
from benchmarks.efficiency.config import EfficiencyConfig
from benchmarks.efficiency.limits import fitted_batch, searched_batch
from benchmarks.efficiency.methods import StepModel, prepare_backbone
from benchmarks.efficiency.results import EfficiencyResult, Row, measured_row, ratios_of, skipped_row
from benchmarks.efficiency.worker import ProcessWorker, StartWorker
from benchmarks.journal import Journal
from benchmarks.memory import GIB, room_for
from promptembedder.storage import describe_machine, versions

__all__ = ["JOURNAL_NAME", "EfficiencyProgress", "run_efficiency"]

JOURNAL_NAME = "efficiency.journal.jsonl"


@dataclass(frozen=True, kw_only=True)
class EfficiencyProgress:
    """Progress of a run: number of finished rows, total number of rows, and current measurement."""

    done: int
    rows: int
    doing: str


def run_efficiency(
    config: EfficiencyConfig,
    folder: Path,
    *,
    overwrite: bool = False,
    start: StartWorker = ProcessWorker,
    on_progress: Callable[[EfficiencyProgress], None] = lambda _: None,
) -> EfficiencyResult:
    """Measure the cells that are missing from `folder`'s journal, so that an interrupted run resumes.

    Args:
        overwrite: If True, discard the journal.
        start: Starts the worker processes.

    Raises:
        BackboneError: If the reader or the prompter cannot be found or loaded.
        DataError: If the journal is from another machine or other versions.
    """
    for name in {config.reader, config.models()[0].prompter}:
        prepare_backbone(name)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / JOURNAL_NAME
    if overwrite:
        path.unlink(missing_ok=True)
    machine, made_with = describe_machine(), versions()
    run = _Run(config, Journal(path, machine=machine, versions=made_with), start, on_progress)
    rows = run.rows()
    return EfficiencyResult(
        command=config.command(),
        machine=machine,
        versions=made_with,
        settings={
            **dataclasses.asdict(config),
            "prompter": config.models()[0].prompter,
            "dtype": config.models()[0].dtype,
        },
        rows=rows,
        ratios=ratios_of(rows),
        largest_batch=run.largest_batches(rows),
    )


class _Run:
    """Pass over all cells that skips those in the journal."""

    def __init__(
        self,
        config: EfficiencyConfig,
        journal: Journal,
        start: StartWorker,
        on_progress: Callable[[EfficiencyProgress], None],
    ) -> None:
        self.config, self.journal, self.start, self.on_progress = config, journal, start, on_progress
        self.models = config.models()
        self.limit_bytes = _limit_bytes(config)
        self._failed: dict[tuple[str, int], int] = {}  # smallest batch that ran out of memory, by method and length
        self._done = 0

    def rows(self) -> list[Row]:
        """Return one row for each method, length and batch."""
        rows = []
        for length in sorted(set(self.config.lengths)):
            for batch in sorted(set(self.config.batches)):
                rows += self._cell(length, batch)
        return rows

    def largest_batches(self, rows: Sequence[Row]) -> list[Row]:
        """Return the largest batch of each method and length that fits into the given memory."""
        memory = _memory_bytes(self.config)
        found = []
        for length in sorted(set(self.config.lengths)):
            for model in self.models:
                measured = [row for row in rows if (row["method"], row["length"]) == (model.method, length)]
                peaks = {row["batch"]: row["peak_bytes"] for row in measured if "error" not in row}
                batch, how = self._largest(model, length, peaks, memory)
                found.append(
                    {"method": model.method, "length": length, "memory_bytes": memory, "batch": batch, "how": how}
                )
        return found

    def _cell(self, length: int, batch: int) -> list[Row]:
        """Return the rows of all methods at one length and batch."""
        possible = [model for model in self.models if self._failed.get((model.method, length), batch) >= batch]
        self._measure(possible, length, batch, self.config.repeats)
        rows = []
        for model in self.models:
            row = self.journal.get(self._key(model, length, batch, self.config.repeats))
            if model not in possible:
                key = self._key(model, length, batch, self.config.repeats)
                row = skipped_row(key, self._failed[model.method, length])
            assert row is not None
            if "error" in row and model in possible:
                self._failed[model.method, length] = batch
            rows.append(row)
        self._done += len(rows)
        return rows

    def _measure(self, models: Sequence[StepModel], length: int, batch: int, repeats: int) -> None:
        """Add the rows of these models to the journal unless it contains them."""
        missing = [model for model in models if self.journal.get(self._key(model, length, batch, repeats)) is None]
        if not missing:
            return
        outcomes = measure_cell(
            missing,
            length,
            batch,
            repeats=repeats,
            limit_bytes=self.limit_bytes,
            start=self.start,
            on_visit=lambda method: self._tell(f"{method}, {length} tokens, batch {batch}"),
        )
        for model in missing:
            key = self._key(model, length, batch, repeats)
            self.journal.add(key, measured_row(key, outcomes[model.method]))

    def _largest(self, model: StepModel, length: int, peaks: dict[int, int], memory: int) -> tuple[int | None, str]:
        failed = self._failed.get((model.method, length))
        guess = fitted_batch(peaks, memory, failed=failed)
        if not self.config.search_largest:
            return guess, "unknown" if guess is None else "fitted"

        def fits(batch: int) -> bool:
            self._measure([model], length, batch, 0)
            row = self.journal.get(self._key(model, length, batch, 0))
            return row is not None and "error" not in row

        return searched_batch(fits, low=max(peaks, default=0), failed=failed, guess=guess), "searched"

    def _key(self, model: StepModel, length: int, batch: int, repeats: int) -> dict[str, Any]:
        return {
            **dataclasses.asdict(model),
            "length": length,
            "batch": batch,
            "repeats": repeats,
            "memory_gib": self.config.memory_gib,
        }

    def _tell(self, doing: str) -> None:
        rows = len(self.models) * len(set(self.config.lengths)) * len(set(self.config.batches))
        self.on_progress(EfficiencyProgress(done=self._done, rows=rows, doing=doing))


def _limit_bytes(config: EfficiencyConfig) -> int | None:
    """Return the memory limit of a process in bytes, or None if the GPU sets the limit."""
    if config.memory_gib is not None:
        return int(config.memory_gib * GIB)
    # without a limit, the kernel's OOM killer might end an unrelated program
    return room_for(config.device) if config.device == "cpu" else None


def _memory_bytes(config: EfficiencyConfig) -> int:
    """Return the memory in bytes for which the largest batch is determined."""
    if config.memory_gib is not None:
        return int(config.memory_gib * GIB)
    facts = describe_machine()
    memory = facts["memory_bytes" if config.device == "cpu" else "gpu_memory_bytes"]
    assert isinstance(memory, int)
    return memory
