"""Monitoring of a training run: divergence checks and the metrics file."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
import torch
from promptembedder.errors import ConfigError, TrainingStoppedError
from promptembedder.types import Tensor
import json
import time
from typing import Any
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from promptembedder.storage import write_text

__all__ = ['Health', 'HealthConfig', 'JsonlMetrics']

@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """Bounds of a healthy run, wide enough that none which learns comes near.

    A loss, gradient or weight that is not finite stops a run at once, whatever is set here.

    Attributes:
        bounds: Look at the bounds below, too.
        patience: Steps in a row out of bounds that stop the run: one wild batch does not, its gradient is clipped.
        max_grad_norm: Of the gradient before it is clipped.
        max_cosine: Mean cosine between the soft tokens of an instruction: 1 is K times the same token.
        min_entropy: Of the relaxed tokens, in nats; below, a softmax passes no gradient on. Relaxations that are meant
            to choose one token are not held to it.
        min_norm_ratio: Length of the soft tokens over that of the reader's own tokens.
        max_norm_ratio: Likewise.
    """

    bounds: bool = True
    patience: int = 5
    max_grad_norm: float = 1e5
    max_cosine: float = 0.9999
    min_entropy: float = 1e-6
    min_norm_ratio: float = 1e-3
    max_norm_ratio: float = 1e3

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ConfigError(f"health.patience must be at least 1, got {self.patience}.")
        for name in ("max_grad_norm", "max_norm_ratio"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"health.{name} must be > 0, got {getattr(self, name)}.")


class Health:
    """Watches one run."""

    def __init__(self, config: HealthConfig, *, soft_max: bool, last_good: Callable[[], Path | None]) -> None:
        """Start with nothing amiss.

        Args:
            soft_max: Whether tokens are relaxed by a softmax alone, so that `min_entropy` means something.
            last_good: Finds the checkpoint that an error names.
        """
        self._config, self._soft_max, self._last_good = config, soft_max, last_good
        self._steps_out: dict[str, int] = {}

    def check_loss(self, loss: float, *, step: int, task: str | None = None) -> None:
        """Stop at a loss that is not finite.

        Raises:
            TrainingStoppedError: It is not.
        """
        if not isfinite(loss):
            where = f" (data set {task})" if task else ""
            self._stop(step, f"the loss is {loss}{where}", "Look for rows of that data, or lower optim.learning_rate.")

    def check_gradient(self, norm: float, *, step: int) -> None:
        """Stop at a gradient that is not finite, or has been too long for some steps; `norm` before clipping.

        Raises:
            TrainingStoppedError: It is so.
        """
        mend = "Lower optim.learning_rate and its kin, or raise optim.warmup_steps."
        if not isfinite(norm):
            self._stop(step, f"the gradient's norm is {norm}", mend)
        self._judge("the gradient's norm", norm, high=self._config.max_grad_norm, step=step, mend=mend)

    def check_soft_tokens(self, diagnostics: Mapping[str, float], *, step: int) -> None:
        """Stop at soft tokens that have been out of bounds for some steps.

        Raises:
            TrainingStoppedError: They have.
        """
        config = self._config
        mend = "Lower optim.learning_rate and optim.alignment_learning_rate, or widen health's bounds."
        bounds = {
            "soft_token_cosine": (None, config.max_cosine),
            "soft_token_entropy": (config.min_entropy if self._soft_max else None, None),
            "soft_token_norm_ratio": (config.min_norm_ratio, config.max_norm_ratio),
        }
        for name, (low, high) in bounds.items():
            if name in diagnostics:
                self._judge(name, diagnostics[name], low=low, high=high, step=step, mend=mend)

    def check_weights(self, weights: Iterable[tuple[str, Tensor]], *, step: int) -> None:
        """Stop before weights are saved that are not finite.

        Raises:
            TrainingStoppedError: One is not.
        """
        for name, weight in weights:
            if not bool(torch.isfinite(weight).all()):
                self._stop(step, f"the weight {name} is not finite", "Lower optim.learning_rate and its kin.")

    def _judge(
        self, name: str, value: float, *, step: int, mend: str, low: float | None = None, high: float | None = None
    ) -> None:
        if not self._config.bounds:
            return
        inside = (low is None or value >= low) and (high is None or value <= high)  # NaN is outside
        self._steps_out[name] = 0 if inside else self._steps_out.get(name, 0) + 1
        if self._steps_out[name] >= self._config.patience:
            span = f"{'-inf' if low is None else f'{low:g}'} to {'inf' if high is None else f'{high:g}'}"
            steps = f"{self._config.patience} steps" if self._config.patience > 1 else "1 step"
            self._stop(step, f"{name} is {value:.6g}, out of {span} for {steps}", mend)

    def _stop(self, step: int, cause: str, mend: str) -> None:
        good = self._last_good()
        kept = f"The last good checkpoint is {good}." if good else "There is no checkpoint yet."
        raise TrainingStoppedError(f"training stopped at step {step}: {cause}. {kept} {mend} Then start anew.")


class JsonlMetrics(TrainerCallback):
    """Appends one line for each logged step to a file; of several processes the first does."""

    def __init__(self, path: Path) -> None:
        """Write to `path`."""
        self.path = path
        self._started = time.perf_counter()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Drop the lines that the resumed run will write again."""
        self._started = time.perf_counter()
        if not state.is_world_process_zero:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # the checkpoint knows all lines before it: those after it come again, even where they tell of the same step
        kept = self._lines()[: len(state.log_history)]
        kept += state.log_history[len(kept) :]  # lost with the power, or a file of its own that somebody deleted
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))  # killed here, none is lost

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Write the logged values with step and seconds since this process began to train."""
        if not state.is_world_process_zero:
            return
        seconds = round(time.perf_counter() - self._started, 2)
        line = {"step": state.global_step, "seconds": seconds, **(logs or {})}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _lines(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        lines = []
        for text in self.path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue  # the last line of a killed run may be cut off
        return lines
