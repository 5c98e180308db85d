"""Configuration of the efficiency benchmark, validated on construction."""

from dataclasses import dataclass

from benchmarks.efficiency.limits import MAX_BATCH
from benchmarks.efficiency.methods import METHODS, StepModel, default_prompter, require_methods
from benchmarks.speed.machine_rates import require_device
from promptembedder.backbone import resolve_dtype
from promptembedder.errors import ConfigError

__all__ = ["EfficiencyConfig"]


@dataclass(frozen=True, kw_only=True)
class EfficiencyConfig:
    """Configuration of the efficiency benchmark.

    Attributes:
        prompter: Name of the prompter. If None, `default_prompter(reader)` is used.
        methods: Names in `METHODS`.
        lengths: Text lengths in tokens.
        batches: Batch sizes in rows, each an anchor and a positive. Larger batches are skipped once one does not fit.
        memory_gib: Memory limit of each process in GiB. If None, all of a GPU, or nine tenths of a CPU's free memory.
        device: `cpu` or `cuda`.
        dtype: Number format of the reader. See `BackboneConfig`.
        repeats: Number of timings of each step.
        search_largest: If True, search for the largest batch that fits instead of extrapolating it.
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
        """Return the measured models with all defaults resolved."""
        dtype = str(resolve_dtype(self.dtype, device=self.device)).removeprefix("torch.")
        prompter = self.prompter or default_prompter(self.reader)
        return [
            StepModel(method=method, reader=self.reader, prompter=prompter, device=self.device, dtype=dtype)
            for method in dict.fromkeys(self.methods)
        ]

    def command(self) -> str:
        """Return the command that repeats this measurement."""
        model = self.models()[0]
        words = ["python -m benchmarks efficiency", f"--reader {self.reader}", f"--prompter {model.prompter}"]
        words += [f"--methods {','.join(self.methods)}"]
        words += [f"--{name} {','.join(map(str, getattr(self, name)))}" for name in ("lengths", "batches")]
        words += [] if self.memory_gib is None else [f"--memory-gib {self.memory_gib:g}"]
        words += [f"--device {self.device}", f"--dtype {model.dtype}", f"--repeats {self.repeats}"]
        return " ".join([*words, *(["--search-largest"] if self.search_largest else [])])
