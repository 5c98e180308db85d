"""Nested states of an optimiser, a schedule or a random generator: plain values as JSON, tensors as safetensors."""

import json
from pathlib import Path
from typing import Any

import torch

from promptembedder.errors import ModelFormatError, brief, shown
from promptembedder.shapes import Tensor
from promptembedder.storage.result_files import write_text
from promptembedder.storage.tensors import load_tensors, save_tensors

__all__ = ["load_state", "save_state"]

# what JSON has no word for, as a mapping of one such key
_TENSOR, _TUPLE, _ITEMS = "$tensor", "$tuple", "$items"
_MAX_DEPTH = 64


def save_state(folder: Path, name: str, state: Any) -> None:
    """Write `NAME.json` and `NAME.safetensors`; `load_state` gives the same state again, bit for bit.

    Args:
        state: Mappings, lists and tuples of tensors, None, booleans, numbers and strings.

    Raises:
        TypeError: It holds something else.
        ValueError: It holds a number that is not finite outside a tensor.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_packed(state, tensors), ensure_ascii=False, allow_nan=False)
    save_tensors(folder / f"{name}.safetensors", tensors)
    write_text(folder / f"{name}.json", text)


def load_state(folder: Path, name: str) -> Any:
    """What `save_state` wrote; the tensors on the CPU.

    Raises:
        ModelFormatError: A file is missing or damaged.
    """
    path = folder / f"{name}.json"
    tensors = load_tensors(folder / f"{name}.safetensors")
    try:
        return _unpacked(json.loads(path.read_text(encoding="utf-8")), tensors, depth=0)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelFormatError(f"{path} is damaged: {brief(error)}. Use an earlier checkpoint.") from error


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, dict):
        return {_ITEMS: [[_packed(key, tensors), _packed(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {_TUPLE: [_packed(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_packed(item, tensors) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a state may not hold a {type(value).__name__}: {value!r}")


def _unpacked(value: Any, tensors: dict[str, Tensor], *, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, list):
        return [_unpacked(item, tensors, depth=depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == _TENSOR:
        return tensors[content]
    items = [_unpacked(item, tensors, depth=depth + 1) for item in content]
    if kind == _TUPLE:
        return tuple(items)
    if kind == _ITEMS:
        return dict(items)
    raise ValueError(f"unknown kind {shown(kind)}")
