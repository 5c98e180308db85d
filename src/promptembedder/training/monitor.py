"""Monitoring of a training run: divergence checks and the metrics file."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from promptembedder.errors import ConfigError, TrainingStoppedError
from promptembedder.storage import write_text
from promptembedder.types import Tensor

__all__ = ["DivergenceMonitor", "JsonlMetrics", "MonitorConfig"]

logger = logging.getLogger(__name__)

_CONSTANT = 0.01  # share of the soft tokens' squared norm that depends on the instruction


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """Bounds outside which a run is stopped. A run that learns stays far inside the defaults.

    A loss, gradient or weight that is not finite stops a run immediately, whatever is set here.

    Attributes:
        bounds: Check the bounds below.
        patience: Number of consecutive steps out of bounds that stop the run. The gradient of a single outlier batch is
            clipped.
        max_grad_norm: Maximum gradient norm before clipping.
        max_cosine: Maximum mean cosine between the soft tokens of an instruction. At 1 all soft tokens are the same.
        min_entropy: Minimum entropy of the relaxed tokens in nats. Below it a softmax passes no gradient. Ignored for
            relaxations that are meant to select one token.
        min_norm_ratio: Minimum norm of the soft tokens over the mean norm of the reader's input embeddings.
        max_norm_ratio: Maximum of the same ratio.
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
            raise ConfigError(f"monitor.patience must be at least 1, got {self.patience}.")
        for name in ("max_grad_norm", "max_norm_ratio"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"monitor.{name} must be > 0, got {getattr(self, name)}.")


class DivergenceMonitor:
    """Divergence checks of one run."""

    def __init__(self, config: MonitorConfig, *, check_entropy: bool, last_good: Callable[[], Path | None]) -> None:
        """Start with all counters at 0.

        Args:
            check_entropy: Apply `min_entropy`. Meaningful only if tokens are relaxed by a plain softmax.
            last_good: Returns the checkpoint to name in an error.
        """
        self._config, self._check_entropy, self._last_good = config, check_entropy, last_good
        self._steps_out: dict[str, int] = {}
        self._steps_constant = 0

    def check_loss(self, loss: float, *, step: int, task: str | None = None) -> None:
        """Stop the run if the loss is not finite.

        Raises:
            TrainingStoppedError: If the loss is not finite.
        """
        if not isfinite(loss):
            where = f" (data set {task})" if task else ""
            self._stop(step, f"the loss is {loss}{where}", "Look for rows of that data, or lower optim.learning_rate.")

    def check_gradient(self, norm: float, *, step: int) -> None:
        """Stop the run if the gradient is not finite, or its norm is out of bounds for `patience` steps.

        Args:
            norm: Gradient norm before clipping.

        Raises:
            TrainingStoppedError: If the run has to stop.
        """
        fix = "Lower optim.learning_rate and the other learning rates, or raise optim.warmup_steps."
        if not isfinite(norm):
            self._stop(step, f"the gradient's norm is {norm}", fix)
        self._check_bounds("the gradient's norm", norm, high=self._config.max_grad_norm, step=step, fix=fix)

    def check_soft_tokens(self, diagnostics: Mapping[str, float], *, step: int) -> None:
        """Stop the run if the soft tokens are out of bounds for `patience` steps.

        Raises:
            TrainingStoppedError: If the run has to stop.
        """
        config = self._config
        fix = "Lower optim.learning_rate and optim.alignment_learning_rate, or widen monitor's bounds."
        bounds = {
            "soft_token_cosine": (None, config.max_cosine),
            "soft_token_entropy": (config.min_entropy if self._check_entropy else None, None),
            "soft_token_norm_ratio": (config.min_norm_ratio, config.max_norm_ratio),
        }
        for name, (low, high) in bounds.items():
            if name in diagnostics:
                self._check_bounds(name, diagnostics[name], low=low, high=high, step=step, fix=fix)
        self._warn_of_constant(diagnostics.get("instruction_variance"), step=step)

    def _warn_of_constant(self, variance: float | None, *, step: int) -> None:
        """Warn once if the soft tokens have not depended on the instruction for `patience` steps with several."""
        if variance is None or self._steps_constant >= self._config.patience:
            return
        self._steps_constant = self._steps_constant + 1 if variance < _CONSTANT else 0
        if self._steps_constant == self._config.patience:
            logger.warning(
                "step %d: the instruction explains %.2g %% of the soft tokens: the prompter has become a constant. "
                "Set model.prompter.output to state, or train on texts under several instructions (data.corpora).",
                step,
                100 * variance,
            )

    def check_weights(self, weights: Iterable[tuple[str, Tensor]], *, step: int) -> None:
        """Stop the run before weights that are not finite are saved.

        Raises:
            TrainingStoppedError: If a weight is not finite.
        """
        for name, weight in weights:
            if not bool(torch.isfinite(weight).all()):
                self._stop(
                    step, f"the weight {name} is not finite", "Lower optim.learning_rate and the other learning rates."
                )

    def _check_bounds(
        self, name: str, value: float, *, step: int, fix: str, low: float | None = None, high: float | None = None
    ) -> None:
        if not self._config.bounds:
            return
        inside = (low is None or value >= low) and (high is None or value <= high)  # NaN is outside
        self._steps_out[name] = 0 if inside else self._steps_out.get(name, 0) + 1
        if self._steps_out[name] >= self._config.patience:
            span = f"{'-inf' if low is None else f'{low:g}'} to {'inf' if high is None else f'{high:g}'}"
            steps = f"{self._config.patience} steps" if self._config.patience > 1 else "1 step"
            self._stop(step, f"{name} is {value:.6g}, out of {span} for {steps}", fix)

    def _stop(self, step: int, cause: str, fix: str) -> None:
        checkpoint = self._last_good()
        saved = f"The last good checkpoint is {checkpoint}." if checkpoint else "There is no checkpoint yet."
        raise TrainingStoppedError(f"training stopped at step {step}: {cause}. {saved} {fix} Then train again.")


class JsonlMetrics(TrainerCallback):
    """Callback that appends one JSON line to a file for each logged step, on the first process only."""

    def __init__(self, path: Path) -> None:
        """Set the file to append to."""
        self.path = path
        self._started = time.perf_counter()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Drop the lines that a resumed run will write again."""
        self._started = time.perf_counter()
        if not state.is_world_process_zero:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # log_history has all lines before the checkpoint: later lines are written again, even those of the same step
        lines = self._lines()[: len(state.log_history)]
        lines += state.log_history[len(lines) :]  # lost in a power cut, or the file was deleted
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))  # atomic: a kill here loses no line

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Write the logged values with the step and the seconds since training began in this process."""
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
