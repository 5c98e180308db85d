"""Which number format a frozen LLM runs in."""

from functools import cache
from pathlib import Path

import torch

from promptembedder.errors import ConfigError, shown

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
        raise ConfigError(f"unknown dtype {shown(name)}. Use one of: auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


@cache
def _is_fast_in_bfloat16(device_type: str) -> bool:
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device_type == "cpu" and "amx_bf16" in _cpu_flags()


def _cpu_flags() -> set[str]:
    """Instruction sets as Linux names them; empty elsewhere.

    Only matrix units make bf16 much faster on a CPU (10x here, where plain vector units gain nothing or lose). Timing a
    small product instead was tried: on a busy machine it gave different answers from run to run.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())
