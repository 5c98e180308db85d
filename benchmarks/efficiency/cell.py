"""Measurement of one length and batch in rounds over all methods, so that disturbances affect all methods equally."""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.efficiency.methods import StepModel
from benchmarks.efficiency.step import StepMemory, StepTime
from benchmarks.efficiency.worker import StartWorker, Worker
from benchmarks.memory import OutOfMemoryError, room_for

__all__ = ["CellOutcome", "measure_cell"]


@dataclass
class CellOutcome:
    """Measurements of one method.

    Attributes:
        memory: Memory of the step. None if the step does not fit.
        times: One time for each repeat. Empty if the step does not fit.
    """

    memory: StepMemory | None = None
    times: list[StepTime] = field(default_factory=list)


def measure_cell(
    models: Sequence[StepModel],
    length: int,
    batch: int,
    *,
    repeats: int,
    limit_bytes: int | None,
    start: StartWorker,
    on_visit: Callable[[str], None],
) -> dict[str, CellOutcome]:
    """Measure the memory and `repeats` times of a step of each method. With 0 repeats, measure only the memory.

    The first round runs each method alone in a fresh process and measures its memory. If all methods fit into memory
    together, one process for each method then stays alive for the other rounds. Otherwise each visit starts a fresh
    process. Only one process computes at a time. Every other round runs in reverse order, so that a steady drift
    cancels.
    """
    outcomes = {model.method: CellOutcome() for model in models}
    for model in models:
        on_visit(model.method)
        _first_visit(outcomes[model.method], start(model, limit_bytes), length, batch, timed=repeats > 0)
    alive: dict[str, Worker] = {}
    try:
        for turn in range(1, repeats):
            fitting = [model for model in models if outcomes[model.method].memory is not None]
            stay = _fit_together(fitting, outcomes, alive)
            while alive and not stay:  # another program has taken the memory
                alive.popitem()[1].close()
            for model in fitting if turn % 2 == 0 else reversed(fitting):
                on_visit(model.method)
                worker = alive.pop(model.method, None) or start(model, limit_bytes)
                alive[model.method] = worker
                _visit(outcomes[model.method], worker, length, batch)
                if not stay or outcomes[model.method].memory is None:
                    alive.pop(model.method).close()
    finally:
        for worker in alive.values():
            worker.close()
    return outcomes


def _first_visit(outcome: CellOutcome, worker: Worker, length: int, batch: int, *, timed: bool) -> None:
    try:
        outcome.memory = worker.measure(length, batch)
        if timed:
            _visit(outcome, worker, length, batch)
    except OutOfMemoryError:
        pass  # the outcome without memory records the failure
    finally:
        worker.close()


def _visit(outcome: CellOutcome, worker: Worker, length: int, batch: int) -> None:
    try:
        outcome.times.append(worker.timed(length, batch))
    except OutOfMemoryError:
        outcome.memory, outcome.times = None, []


def _fit_together(models: Sequence[StepModel], outcomes: Mapping[str, CellOutcome], alive: Container[str]) -> bool:
    """Return True if all workers can stay in memory while any one of them runs its step."""
    memories = {name: outcome.memory for name, outcome in outcomes.items() if outcome.memory is not None}
    if not memories:
        return False
    resting = sum(memory.resting_bytes for name, memory in memories.items() if name not in alive)
    highest = max(memory.peak_bytes - memory.resting_bytes for memory in memories.values())
    device = models[0].device
    # leave half of a CPU's memory to programs that start meanwhile
    return resting + max(highest, 0) <= room_for(device) // (2 if device == "cpu" else 1)
