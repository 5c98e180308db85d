"""A worker of the efficiency benchmark that measures in this process."""

import gc
from collections.abc import Callable
from typing import TypeVar

from benchmarks.efficiency.methods import StepModel
from benchmarks.efficiency.step import StepMemory, StepMeter, StepTime
from benchmarks.memory import OutOfMemoryError, is_out_of_memory, release_memory

__all__ = ["InlineWorker"]

T = TypeVar("T")


class InlineWorker:
    """Steps measured in this process: CUDA's allocator counts exactly, and starting a process takes seconds.

    On a CPU the memory of earlier models is included, so only times are meaningful there.
    """

    def __init__(self, model: StepModel, limit_bytes: int | None) -> None:
        """Measure `model`; the device's own limit applies, not `limit_bytes`."""
        self.model = model
        self._meter = StepMeter(model)

    def measure(self, length: int, batch: int) -> StepMemory:
        """Measure the memory of a step. Raises OutOfMemoryError if it does not fit."""
        return self._run(lambda: self._meter.measure(length, batch))

    def timed(self, length: int, batch: int) -> StepTime:
        """Measure the time of a step. Raises OutOfMemoryError if it does not fit."""
        return self._run(lambda: self._meter.timed(length, batch))

    def close(self) -> None:
        """Free the model's memory."""
        self._meter.close()
        gc.collect()
        release_memory(self.model.device)

    def _run(self, compute: Callable[[], T]) -> T:
        try:
            return compute()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            message = (str(error).splitlines() or ["out of memory"])[0]
        # after the except block: its traceback would keep the step's tensors alive
        self.close()
        raise OutOfMemoryError(message)
