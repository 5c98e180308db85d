"""Time and memory of one training step of a method on synthetic texts, with the trainer's loss and optimiser."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.efficiency.methods import INSTRUCTION, StepModel
from benchmarks.memory import PeakMemory, memory_in_use, release_memory
from promptembedder.errors import ConfigError
from promptembedder.method import SoftTokenEncoder
from promptembedder.model import PromptedSentenceTransformer
from promptembedder.training import LossConfig, OptimConfig, build_contrastive_loss
from promptembedder.types import Float, Tensor

__all__ = ["StepMemory", "StepMeter", "StepTime", "TrainStep"]

# so small that the weights, and the work of a step, stay constant over all repeats
_LEARNING_RATE = 1e-7

_TINY_BATCH, _TINY_LENGTH = 2, 8
_GPU_SECONDS = 0.25  # minimum duration of one measurement: a step on a GPU takes only milliseconds
_CONTEXT_BYTES = 700 << 20  # memory of the driver's context in each process, not counted by torch's allocator


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Memory of a step in a fresh process.

    Attributes:
        peak_bytes: Peak memory during the step. On a CPU, the resident set of the process with Python and libraries. On
            a GPU, the memory of torch's allocator without the driver's context.
        baseline_bytes: Memory in use before the step: libraries (CPU), all weights, and AdamW's two moments of each
            trained weight, which a tiny warm-up step has allocated. Excludes gradients, because they are freed after
            each step.
        weights_bytes: Parameters and buffers of all models in the step, frozen ones included.
        optimizer_bytes: AdamW's moments: small for adapters, twice the weights for full training.
        resting_bytes: Memory of the process between two steps.
        trained_parameters: Number of trained parameters.
        source: Source of the peak: `VmHWM` (kernel), `sampled resident set` (every 5 ms), or `cuda allocator`.
    """

    peak_bytes: int
    baseline_bytes: int
    weights_bytes: int
    optimizer_bytes: int
    resting_bytes: int
    trained_parameters: int
    source: str

    @property
    def activation_bytes(self) -> int:
        """Return the memory of activations, gradients and temporary buffers: the peak minus the baseline."""
        return self.peak_bytes - self.baseline_bytes


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Duration of a step.

    Attributes:
        seconds: Wall-clock time.
        cpu_seconds: CPU time of all threads, more reliable on a busy machine. None on a GPU.
    """

    seconds: float
    cpu_seconds: float | None


class TrainStep:
    """Model in training with the trainer's loss, optimiser and step, and synthetic texts.

    The step excludes tokenisation and the data loader, which run in parallel and cost the same for all methods.
    """

    def __init__(self, model: PromptedSentenceTransformer, *, seed: int = 0) -> None:
        """Prepare `model` for training. Random tokens are drawn from `seed`."""
        self.model = model.train()
        self.loss = build_contrastive_loss(model, LossConfig(), in_batch_negatives=True)
        trained = model.text_encoder.trained_weights()
        # fused, as in the trainer's default
        self.optimizer = torch.optim.AdamW(trained, lr=_LEARNING_RATE, fused=True)
        self._generator = torch.Generator().manual_seed(seed)

    def columns(self, length: int, batch: int) -> list[dict[str, Any]]:
        """Return features of `batch` anchors and `batch` positives under one instruction, each text of `length` tokens.

        Tokens that a method adds to a text (instruction, begin-of-sequence token, soft tokens) are not included in
        `length`.

        Raises:
            ConfigError: If the reader has fewer positions.
        """
        encoder = self.model.text_encoder
        # an empty text yields the tokens that precede every text
        head = self.model.preprocess([""] * batch, prompt=INSTRUCTION)
        room = encoder.max_seq_length - head["input_ids"].shape[1]
        if length > room:
            raise ConfigError(f"texts of {length} tokens do not fit the reader's positions: {room} are left for them.")
        return [self._column(head, batch, length) for _ in ("anchor", "positive")]

    def _column(self, head: dict[str, Any], batch: int, length: int) -> dict[str, Any]:
        encoder = self.model.text_encoder
        rows = encoder.reader.input_embeddings.shape[0]
        ids = torch.randint(0, rows, (batch, length), generator=self._generator)
        here = torch.ones_like(ids)
        joined = {
            name: torch.cat([head[name], text], dim=1).to(encoder.device)
            for name, text in (("input_ids", ids), ("attention_mask", here), ("text_mask", here))
        }
        return {**head, **joined}

    def loss_of(self, columns: Sequence[dict[str, Any]]) -> Float[Tensor, ""]:
        """Compute the InfoNCE loss of a batch, embedded as in `PromptEmbedderTrainer`."""
        features = [dict(column) for column in columns]  # copies, because embedding modifies the features
        encoder = self.model.text_encoder
        if isinstance(encoder, SoftTokenEncoder):
            encoder.embed_columns(features)
        loss: Tensor = self.loss(features, None)
        return loss

    def step(self, columns: Sequence[dict[str, Any]]) -> None:
        """Run forward, backward, gradient clipping and AdamW."""
        self.loss_of(columns).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), OptimConfig.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def weights_bytes(self) -> int:
        """Return the bytes of parameters and buffers. Tied parameters count once."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())

    def optimizer_bytes(self) -> int:
        """Return the bytes of the optimiser state."""
        states = self.optimizer.state.values()
        return sum(value.nbytes for state in states for value in state.values() if isinstance(value, Tensor))

    def trained_parameters(self) -> int:
        """Return the number of trained parameters."""
        return sum(weight.numel() for weight in self.model.text_encoder.trained_weights())


class StepMeter:
    """Meter of time and memory of one model's steps in this process. The model is built on first use."""

    def __init__(
        self,
        model: StepModel,
        *,
        limit_bytes: int | None = None,
        on_excess: Callable[[], None] | None = None,
    ) -> None:
        """Prepare the measurement of `model`.

        Args:
            limit_bytes: Memory limit of the process. On a GPU, torch enforces it.
            on_excess: Called, possibly in another thread, if a measured step on a CPU exceeds the limit.
        """
        self.model, self.limit_bytes, self.on_excess = model, limit_bytes, on_excess
        self.on_gpu = torch.device(model.device).type == "cuda"
        self._trainee: TrainStep | None = None
        self._warm: tuple[int, int] | None = None
        self._columns: list[dict[str, Any]] = []

    def measure(self, length: int, batch: int) -> StepMemory:
        """Measure the memory of a step. Valid only in a process that has run nothing else.

        If the texts' hidden states are cached, the step is that of the first epoch, which computes and caches the
        states.
        """
        trainee = self._ready()
        trainee.step(trainee.columns(min(length, _TINY_LENGTH), _TINY_BATCH))  # allocates AdamW's moments, buffers
        release_memory(self.model.device)
        baseline = memory_in_use(self.model.device)
        peak = PeakMemory(self.model.device, limit_bytes=self.limit_bytes, on_excess=self.on_excess)
        with peak:
            self._warm_up(length, batch)
        return StepMemory(
            peak_bytes=peak.bytes,
            baseline_bytes=baseline,
            weights_bytes=trainee.weights_bytes(),
            optimizer_bytes=trainee.optimizer_bytes(),
            resting_bytes=self._resting_bytes(),
            trained_parameters=trainee.trained_parameters(),
            source=peak.source,
        )

    def timed(self, length: int, batch: int) -> StepTime:
        """Measure the time of a step. The first step of a shape in this process is not timed."""
        trainee = self._ready()
        if self._warm != (length, batch) or self.on_gpu:  # other processes have used the GPU between two visits
            self._warm_up(length, batch)
        count, seconds = 0, 0.0
        started, started_cpu = time.perf_counter(), time.process_time()
        while count == 0 or (self.on_gpu and seconds < _GPU_SECONDS):
            trainee.step(self._columns)
            self._synchronize()
            count, seconds = count + 1, time.perf_counter() - started
        if self.on_gpu:
            release_memory(self.model.device)
            return StepTime(seconds=seconds / count, cpu_seconds=None)
        return StepTime(seconds=seconds / count, cpu_seconds=(time.process_time() - started_cpu) / count)

    def close(self) -> None:
        """Release the model."""
        self._trainee, self._warm, self._columns = None, None, []

    def _ready(self) -> TrainStep:
        if self._trainee is None:
            if self.on_gpu and self.limit_bytes is not None:
                total = torch.cuda.get_device_properties(self.model.device).total_memory
                # limits the current GPU: torch requires a device with an index here
                torch.cuda.set_per_process_memory_fraction(min(1.0, self.limit_bytes / total))
            self._trainee = TrainStep(self.model.build())
        return self._trainee

    def _warm_up(self, length: int, batch: int) -> None:
        trainee = self._ready()
        if self._warm != (length, batch):
            self._columns = trainee.columns(length, batch)
        trainee.step(self._columns)
        self._synchronize()
        self._warm = (length, batch)

    def _resting_bytes(self) -> int:
        if not self.on_gpu:
            return memory_in_use(self.model.device)
        release_memory(self.model.device)
        return int(torch.cuda.memory_reserved(self.model.device)) + _CONTEXT_BYTES

    def _synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.model.device)
