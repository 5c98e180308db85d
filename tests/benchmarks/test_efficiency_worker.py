"""Real processes: what is measured in them arrives here, and so does what goes wrong."""

from collections.abc import Callable

import pytest

from benchmarks.efficiency.methods import StepModel
from benchmarks.efficiency.worker import ProcessWorker
from benchmarks.memory import OutOfMemoryError
from promptembedder.errors import BackboneError

pytestmark = pytest.mark.integration


def test_a_process_measures_ends_at_its_limit_and_tells_what_is_wrong(step_model: Callable[..., StepModel]) -> None:
    """One test: the process that all others are forked from takes seconds to import torch."""
    worker = ProcessWorker(step_model("static"), None)
    memory = worker.measure(8, 2)
    assert memory.peak_bytes >= memory.baseline_bytes > 50 << 20
    assert worker.timed(8, 2).seconds > 0
    worker.close()

    worker = ProcessWorker(step_model("static"), 50 << 20)  # less than Python and torch alone
    with pytest.raises(OutOfMemoryError, match="static"):
        worker.measure(8, 2)
    worker.close()

    worker = ProcessWorker(step_model("static", reader="random:nothing"), None)
    with pytest.raises(BackboneError, match="no random model is named 'nothing'"):
        worker.measure(8, 2)
    worker.close()
