"""Tiny steps, measured in this process."""

from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from benchmarks.efficiency import step as efficiency_step
from benchmarks.efficiency.config import EfficiencyConfig
from benchmarks.efficiency.methods import StepModel
from benchmarks.efficiency.step import StepMemory, StepMeter, StepTime, TrainStep
from benchmarks.memory import OutOfMemoryError

TINY = "random:tiny-llama"


@pytest.fixture
def step_model() -> Callable[..., StepModel]:
    def made(method: str = "promptembedder", *, reader: str = TINY, prompter: str = TINY) -> StepModel:
        return StepModel(method=method, reader=reader, prompter=prompter, device="cpu", dtype="float32")

    return made


@pytest.fixture
def trainee(step_model: Callable[..., StepModel]) -> Callable[..., TrainStep]:
    def made(method: str, **names: str) -> TrainStep:
        return TrainStep(step_model(method, **names).build())

    return made


@pytest.fixture
def settings_of() -> Callable[..., EfficiencyConfig]:
    """Settings of a run that takes a moment."""

    def made(**changes: object) -> EfficiencyConfig:
        usual = {"methods": ("promptembedder", "static", "lora"), "lengths": (8, 16), "batches": (2, 4)}
        return EfficiencyConfig(**{"reader": TINY, "dtype": "float32", "repeats": 3, **usual, **changes})  # type: ignore[arg-type]

    return made


class Workshop:
    """Starts workers that measure nothing, and remembers what was asked of them.

    Memory grows by 1000 bytes a token of a batch (`lora`: 5000) and rests at 100 bytes.
    """

    def __init__(self) -> None:
        self.visits: list[tuple[str, str, int, int]] = []
        self.started: list[str] = []
        self.open: set[int] = set()
        self.limit = 10**9
        self.interrupt_after: int | None = None

    def start(self, model: StepModel, limit_bytes: int | None) -> "_Worker":
        self.started.append(model.method)
        return _Worker(self, model.method)


class _Worker:
    def __init__(self, workshop: Workshop, method: str) -> None:
        self.workshop, self.method = workshop, method
        workshop.open.add(id(self))

    def measure(self, length: int, batch: int) -> StepMemory:
        self._visit("measure", length, batch)
        peak = 1000 + length * batch * (5000 if self.method == "lora" else 1000)
        if peak > self.workshop.limit:
            raise OutOfMemoryError("too much")
        return StepMemory(
            peak_bytes=peak,
            baseline_bytes=1000,
            weights_bytes=500,
            optimizer_bytes=10,
            resting_bytes=100,
            trained_parameters=5,
            source="made up",
        )

    def timed(self, length: int, batch: int) -> StepTime:
        self._visit("timed", length, batch)
        # something else on the machine slows all methods down alike, more from round to round
        disturbance = sum(visit[:2] == ("timed", self.method) for visit in self.workshop.visits)
        work = 0.1 * len(self.method) * batch
        return StepTime(seconds=disturbance * work, cpu_seconds=work)

    def close(self) -> None:
        self.workshop.open.discard(id(self))

    def _visit(self, what: str, length: int, batch: int) -> None:
        if self.workshop.interrupt_after == len(self.workshop.visits):
            raise KeyboardInterrupt
        self.workshop.visits.append((what, self.method, length, batch))


@pytest.fixture
def workshop() -> Workshop:
    return Workshop()


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[StepModel, int | None], StepMeter]:
    """A worker that really measures, without a process of its own; its memory is then anybody's guess."""
    monkeypatch.setattr(efficiency_step, "release_memory", lambda device: None)  # takes longer than a tiny step
    return lambda model, limit_bytes: StepMeter(model)


@pytest.fixture
def run() -> Callable[..., Result]:
    """Call `python -m benchmarks` with these arguments; an unexpected exception propagates."""
    from benchmarks.cli import bench

    def call(*arguments: object, env: dict[str, str] | None = None) -> Result:
        return CliRunner().invoke(bench, [str(argument) for argument in arguments], env=env, catch_exceptions=False)

    return call


@pytest.fixture
def refused(run: Callable[..., Result]) -> Callable[..., str]:
    """Call the program, check for exit code 2 and one line on stderr, and return the line."""

    def call(*arguments: object) -> str:
        result = run(*arguments)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        return result.stderr

    return call
