"""What the efficiency benchmark measures: checked at the door."""

from dataclasses import dataclass

from benchmarks.efficiency.limits import MAX_BATCH
from benchmarks.efficiency.methods import METHODS, StepModel, default_prompter, require_methods
from benchmarks.speed.machine_rates import require_device
from promptembedder.backbone import resolve_dtype
from promptembedder.errors import ConfigError

__all__ = ["EfficiencyConfig"]


@dataclass(frozen=True, kw_only=True)
class EfficiencyConfig:
    """What is measured.

    Attributes:
        prompter: None takes `default_prompter(reader)`.
        methods: Names in `METHODS`.
        lengths: Tokens of a text.
        batches: Rows of a step; each is an anchor and a positive. One that does not fit ends the method's row of them.
        memory_gib: Memory that each process may take; None: all of a GPU, nine tenths of what is free on a CPU.
        device: `cpu` or `cuda`.
        dtype: Of the reader; see `BackboneConfig`.
        repeats: Times each step is timed.
        search_largest: Try which is the largest batch that fits, instead of drawing a line.
    """

    reader: str = "smollm2-135m"
    prompter: str | None = None
    methods: tuple[str, ...] = tuple(METHODS)
    lengths: tuple[int, ...] = (32, 128, 512)
    batches: tuple[int, ...] = (8, 16, 32, 64, 128)
    memory_gib: float | None = None
    device: str = "cpu"
    dtype: str = "auto"
    repeats: int = 5
    search_largest: bool = False

    def __post_init__(self) -> None:
        require_methods(self.methods)
        for name, least in (("lengths", 1), ("batches", 2)):  # a batch of one has no negatives
            numbers = getattr(self, name)
            if not numbers or min(numbers) < least or max(numbers) > MAX_BATCH:
                raise ConfigError(f"{name} must be numbers from {least} to {MAX_BATCH}, got {list(numbers)}.")
        if self.repeats < 1:
            raise ConfigError(f"repeats must be at least 1, got {self.repeats}. Try 5.")
        if self.memory_gib is not None and not self.memory_gib > 0:
            raise ConfigError(f"memory_gib must be > 0, got {self.memory_gib}.")
        require_device(self.device)
        resolve_dtype(self.dtype)

    def models(self) -> list[StepModel]:
        """What is measured, with all that was left to us decided."""
        dtype = str(resolve_dtype(self.dtype, device=self.device)).removeprefix("torch.")
        prompter = self.prompter or default_prompter(self.reader)
        return [
            StepModel(method=method, reader=self.reader, prompter=prompter, device=self.device, dtype=dtype)
            for method in dict.fromkeys(self.methods)
        ]

    def command(self) -> str:
        """The command that measures just this."""
        model = self.models()[0]
        words = ["python -m benchmarks efficiency", f"--reader {self.reader}", f"--prompter {model.prompter}"]
        words += [f"--methods {','.join(self.methods)}"]
        words += [f"--{name} {','.join(map(str, getattr(self, name)))}" for name in ("lengths", "batches")]
        words += [] if self.memory_gib is None else [f"--memory-gib {self.memory_gib:g}"]
        words += [f"--device {self.device}", f"--dtype {model.dtype}", f"--repeats {self.repeats}"]
        return " ".join([*words, *(["--search-largest"] if self.search_largest else [])])
