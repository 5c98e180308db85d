"""Peak rates of the machine, and operations of a forward pass: the lower bound of all timings."""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from promptembedder.backbone import decoder_layers
from promptembedder.errors import ConfigError

__all__ = ["copy_rate", "forward_flops", "matmul_rate", "require_device", "seconds_of"]

_COPIED_BYTES = 256 << 20


def require_device(device: str) -> None:
    """Check that a device is known and available.

    Raises:
        ConfigError: If the device is neither `cpu` nor `cuda`, or there is no GPU.
    """
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"unknown device {device!r}. Use cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' is not available here. Use --device cpu, or install torch with CUDA.")


def seconds_of(call: Callable[[], object], *, device: torch.device) -> tuple[float, float]:
    """Return wall-clock seconds, and CPU seconds of all threads, of one call."""
    started, started_cpu = time.perf_counter(), time.process_time()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started, time.process_time() - started_cpu


@torch.inference_mode()
def matmul_rate(decoder: PreTrainedModel, *, rows: int, repeats: int) -> float:
    """Return FLOP/s of a product of `rows` states with the fastest matrix of a layer, the best of the repeats."""
    matrices = {weight.shape: weight for weight in _matrices(decoder_layers(decoder)[0])}
    rates = []
    for (outer, inner), weight in matrices.items():
        states = torch.randn(rows, inner, dtype=weight.dtype, device=weight.device)
        call: Callable[[], object] = partial(nn.functional.linear, states, weight)
        seconds = [seconds_of(call, device=weight.device)[0] for _ in range(repeats + 1)]
        rates.append(2 * rows * inner * outer / min(seconds))
    return max(rates)


@torch.inference_mode()
def copy_rate(device: torch.device, *, repeats: int) -> float:
    """Return bytes a second read and written by a copy of 256 MiB, the best of the repeats."""
    source = torch.ones(_COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = [seconds_of(lambda: target.copy_(source), device=device)[0] for _ in range(repeats + 1)]
    return 2 * _COPIED_BYTES / min(seconds)


def forward_flops(decoder: PreTrainedModel, *, texts: int, length: int) -> int:
    """Return the FLOP of one pass over texts of `length` tokens: two for each weight and token, and causal attention.

    Attention: each of L tokens attends to (L + 1) / 2 tokens on average, in two products of the total width of the
        heads.
    """
    config, layers = decoder.config, decoder_layers(decoder)
    weights = sum(weight.numel() for layer in layers for weight in _matrices(layer))
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    looks = length * (length + 1) // 2
    attention = len(layers) * 2 * 2 * config.num_attention_heads * head_dim * looks
    return texts * (2 * weights * length + attention)


def _matrices(module: nn.Module) -> list[torch.Tensor]:
    """Return the weights [out in] of all linear maps."""
    found: list[torch.Tensor] = []
    for part in module.modules():
        if isinstance(part, nn.Linear):
            found.append(part.weight)
        elif isinstance(part, Conv1D):
            found.append(part.weight.T)
    return found
