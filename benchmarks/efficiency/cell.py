"""One length and batch: every method's step, in rounds, so that what disturbs the machine disturbs all alike."""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.efficiency.methods import StepModel
from benchmarks.efficiency.step import StepMemory, StepTime
from benchmarks.efficiency.worker import StartWorker, Worker
from benchmarks.memory import OutOfMemoryError, room_for

__all__ = ["CellOutcome", "measure_cell"]


@dataclass
class CellOutcome:
    """What was found for one method.

    Attributes:
        memory: None if it does not fit.
        times: One a repeat; empty if it does not fit.
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
    """Memory and `repeats` times of a step of each method; with 0 repeats the memory alone.

    The first round gives each method a fresh process, alone on the machine, whose memory is counted. As long as all of
    them fit into memory together, one process a method then stays alive for the other rounds; else each visit starts
    anew. Only one process computes at a time. Every other round goes backwards, so that a steady drift evens out.
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
            while alive and not stay:  # something else has taken the memory
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
        pass  # no memory in the outcome says it
    finally:
        worker.close()


def _visit(outcome: CellOutcome, worker: Worker, length: int, batch: int) -> None:
    try:
        outcome.times.append(worker.timed(length, batch))
    except OutOfMemoryError:
        outcome.memory, outcome.times = None, []


def _fit_together(models: Sequence[StepModel], outcomes: Mapping[str, CellOutcome], alive: Container[str]) -> bool:
    """Whether all can rest while any one of them takes its step, as things are now."""
    memories = {name: outcome.memory for name, outcome in outcomes.items() if outcome.memory is not None}
    if not memories:
        return False
    resting = sum(memory.resting_bytes for name, memory in memories.items() if name not in alive)
    highest = max(memory.peak_bytes - memory.resting_bytes for memory in memories.values())
    device = models[0].device
    # half of a CPU's memory is left to what others may start meanwhile
    return resting + max(highest, 0) <= room_for(device) // (2 if device == "cpu" else 1)
