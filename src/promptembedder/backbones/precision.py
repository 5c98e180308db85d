"""Which number format a frozen LLM runs in."""

import time
from functools import cache

import torch

from promptembedder.errors import ConfigError

__all__ = ["DTYPES", "resolved_dtype"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolved_dtype(name: str, *, device: torch.device | str = "cpu") -> torch.dtype:
    """The dtype that `name` stands for; `auto` is bfloat16 where the device multiplies it much faster, else float32.

    Raises:
        ConfigError: `name` is unknown.
    """
    if name == "auto":
        return torch.bfloat16 if _is_fast_in_bfloat16(torch.device(device).type) else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"unknown dtype {name!r}. Use one of: auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


@cache
def _is_fast_in_bfloat16(device_type: str) -> bool:
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device_type != "cpu":
        return False
    # CPUs differ by a factor of ten either way (matrix units or emulation), so a measurement of a few milliseconds
    # tells them apart safely where no public flag does.
    return _matmul_seconds(torch.float32) > 2.5 * _matmul_seconds(torch.bfloat16)


def _matmul_seconds(dtype: torch.dtype) -> float:
    left, right = torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    seconds = []
    for _ in range(6):  # the first ones also pay for set-up
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
    return min(seconds)
