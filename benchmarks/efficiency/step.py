"""One training step of a method, as the trainer takes it, on synthetic texts; and what it costs in time and memory."""

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

# so small that weights, and with them the work of a step, stay as they are however often it is repeated
_LEARNING_RATE = 1e-7

_TINY_BATCH, _TINY_LENGTH = 2, 8
_GPU_SECONDS = 0.25  # steps on a GPU take milliseconds: so long it is kept busy for one number
_CONTEXT_BYTES = 700 << 20  # what the driver takes for each process on a GPU, seen by no allocator


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """What a step of a fresh process takes.

    Attributes:
        peak_bytes: The most in use during the step: on a CPU the whole process's resident set, Python and libraries
            included; on a GPU what torch's allocator gave out, without the driver's context.
        baseline_bytes: In use before the step: libraries (CPU), all weights, and AdamW's two moments for each trained
            weight, which a tiny step before has made. No gradients: they are freed after each step, as in training.
        weights_bytes: Parameters and buffers of all models in the step, frozen ones included.
        optimizer_bytes: AdamW's moments; small for adapters, twice the weights for full training.
        resting_bytes: Held by the process between two steps.
        trained_parameters: How many numbers the optimiser changes.
        source: Who counted: `VmHWM` (the kernel), `sampled resident set` (every 5 ms), `cuda allocator`.
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
        """What the step takes on top of what is always there: activations, gradients, temporary buffers."""
        return self.peak_bytes - self.baseline_bytes


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """How long a step took.

    Attributes:
        seconds: On the clock.
        cpu_seconds: Of all threads of the process; on a machine with other work to do they say more. None on a GPU.
    """

    seconds: float
    cpu_seconds: float | None


class TrainStep:
    """A model in training: loss, optimiser and step are the trainer's, only the texts are made up.

    Left out of the step: tokenisation and the data loader, which run beside it and cost all methods the same.
    """

    def __init__(self, model: PromptedSentenceTransformer, *, seed: int = 0) -> None:
        """Train `model`; random tokens are drawn from `seed`."""
        self.model = model.train()
        self.loss = build_contrastive_loss(model, LossConfig(), in_batch_negatives=True)
        trained = model.text_encoder.trained_weights()
        # fused, as the trainer's default
        self.optimizer = torch.optim.AdamW(trained, lr=_LEARNING_RATE, fused=True)
        self._generator = torch.Generator().manual_seed(seed)

    def columns(self, length: int, batch: int) -> list[dict[str, Any]]:
        """Features of `batch` anchors and as many positives under one instruction, each text `length` tokens long.

        What a method puts beside a text (instruction, begin-of-sequence token, soft tokens) comes on top.

        Raises:
            ConfigError: The reader has fewer positions.
        """
        encoder = self.model.text_encoder
        # an empty text gives what stands before every text
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
        """InfoNCE of a batch, embedded as `PromptEmbedderTrainer` embeds it."""
        features = [dict(column) for column in columns]  # embedding writes into them
        encoder = self.model.text_encoder
        if isinstance(encoder, SoftTokenEncoder):
            encoder.embed_columns(features)
        loss: Tensor = self.loss(features, None)
        return loss

    def step(self, columns: Sequence[dict[str, Any]]) -> None:
        """Forward, backward, clip, AdamW."""
        self.loss_of(columns).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), OptimConfig.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def weights_bytes(self) -> int:
        """Parameters and buffers; tied ones count once."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())

    def optimizer_bytes(self) -> int:
        """What the optimiser remembers."""
        states = self.optimizer.state.values()
        return sum(value.nbytes for state in states for value in state.values() if isinstance(value, Tensor))

    def trained_parameters(self) -> int:
        """How many numbers training changes."""
        return sum(weight.numel() for weight in self.model.text_encoder.trained_weights())


class StepMeter:
    """Time and memory of the steps of one model, in this process; the model is built on first use."""

    def __init__(
        self,
        model: StepModel,
        *,
        limit_bytes: int | None = None,
        on_excess: Callable[[], None] | None = None,
    ) -> None:
        """Measure `model`.

        Args:
            limit_bytes: Memory that the process may take; torch refuses more on a GPU.
            on_excess: Called, maybe in another thread, when a measured step on a CPU takes more.
        """
        self.model, self.limit_bytes, self.on_excess = model, limit_bytes, on_excess
        self.on_gpu = torch.device(model.device).type == "cuda"
        self._trainee: TrainStep | None = None
        self._warm: tuple[int, int] | None = None
        self._columns: list[dict[str, Any]] = []

    def measure(self, length: int, batch: int) -> StepMemory:
        """Memory of a step; true only in a process that has done nothing else.

        Where texts' states are kept, it is that of the first epoch's step, which reads the texts and keeps them.
        """
        trainee = self._ready()
        trainee.step(trainee.columns(min(length, _TINY_LENGTH), _TINY_BATCH))  # AdamW's moments, libraries' buffers
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
        """Time of a step; the first one of a shape in this process is not counted."""
        trainee = self._ready()
        if self._warm != (length, batch) or self.on_gpu:  # between two visits other processes had the GPU
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
        """Let go of the model."""
        self._trainee, self._warm, self._columns = None, None, []

    def _ready(self) -> TrainStep:
        if self._trainee is None:
            if self.on_gpu and self.limit_bytes is not None:
                total = torch.cuda.get_device_properties(self.model.device).total_memory
                # of the current GPU; torch takes no device without a number here
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
