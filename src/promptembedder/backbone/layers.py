"""Decoder layers: find them, add to their inputs, capture their outputs, shard their weights over processes."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from transformers import PreTrainedModel

from promptembedder.errors import BackboneError
from promptembedder.types import Float, Tensor

__all__ = [
    "StopForward",
    "add_to_layer_inputs",
    "capture_hidden_state",
    "decoder_layers",
    "is_sharded",
    "shard_layers",
]

_HOOKED = "_promptembedder_hooks"
_SHARDED = "_promptembedder_sharded"


class _HookState(threading.local):
    """Additions and captured outputs by layer id, one per thread, because threads share the layers."""

    def __init__(self) -> None:
        self.additions: dict[int, Tensor] = {}
        self.captured: dict[int, list[Tensor]] = {}
        self.is_last = False


class StopForward(Exception):  # noqa: N818 - control flow, not an error
    """Stop a forward pass after the last layer that is needed."""


_hook_state = _HookState()
_hook_lock = threading.Lock()


def decoder_layers(decoder: PreTrainedModel) -> nn.ModuleList:
    """Return the stack of decoder layers, independent of the name it has in the family.

    Raises:
        BackboneError: If no child is a ModuleList with `num_hidden_layers` modules.
    """
    count = decoder.config.num_hidden_layers
    for module in decoder.children():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise BackboneError(
        f"{type(decoder).__name__} has no stack of {count} decoder layers: it is an encoder, or a family with an "
        "unknown layout. Choose a causal LLM, such as smollm2-135m."
    )


@contextmanager
def add_to_layer_inputs(
    decoder: PreTrainedModel, additions: Mapping[int, Float[Tensor, "batch new dim"]]
) -> Iterator[None]:
    """Add `additions[i]` to the last hidden states that enter layer i, inside the block and in this thread only."""
    if not additions:
        yield
        return
    layers = _hooked_layers(decoder)
    _hook_state.additions = {id(layers[i]): addition for i, addition in additions.items()}
    try:
        yield
    finally:
        _hook_state.additions = {}


@contextmanager
def capture_hidden_state(
    decoder: PreTrainedModel, count: int | None, *, is_last: bool = False
) -> Iterator[list[Float[Tensor, "batch seq dim"]]]:
    """Append the hidden states after the first `count` layers to a list, inside the block and in this thread only.

    Args:
        count: Number of layers. If None, the list stays empty.
        is_last: Raise `StopForward` after that layer.
    """
    captured: list[Tensor] = []
    if count is None:
        yield captured
        return
    _hook_state.captured = {id(_hooked_layers(decoder)[count - 1]): captured}
    _hook_state.is_last = is_last
    try:
        yield captured
    finally:
        _hook_state.captured, _hook_state.is_last = {}, False


def _hooked_layers(decoder: PreTrainedModel) -> nn.ModuleList:
    layers = decoder_layers(decoder)
    with _hook_lock:  # two hooks on one layer would add twice
        for layer in layers:
            if not hasattr(layer, _HOOKED):
                layer.register_forward_pre_hook(_add)
                layer.register_forward_hook(_capture)
                setattr(layer, _HOOKED, True)
    return layers


def _add(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    addition = _hook_state.additions.get(id(layer))
    if addition is None:
        return None
    states, *rest = inputs
    first = states.shape[1] - addition.shape[1]
    changed = states[:, first:] + addition.to(states.dtype)
    return (changed if first == 0 else torch.cat([states[:, :first], changed], dim=1), *rest)


def _capture(layer: nn.Module, _: Any, output: Any) -> None:
    captured = _hook_state.captured.get(id(layer))
    if captured is not None:
        captured.append(output[0] if isinstance(output, tuple) else output)
        if _hook_state.is_last:
            raise StopForward


def shard_layers(decoder: PreTrainedModel, device: torch.device) -> None:
    """Shard the weights of each layer over all processes, for a frozen decoder that exceeds the memory of one device.

    A layer is complete on `device` only during its computation.

    FSDP hooks gather the weights, so the modules do not change. Input embeddings, position tables and the last norm are
    not sharded. All processes must then call the decoder equally often. The decoder must be in CPU memory, and the
    process group must exist.

    Raises:
        BackboneError: If the decoder's layers cannot be found.
    """
    from torch.distributed.fsdp import fully_shard  # slow import, rarely needed

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    layers = decoder_layers(decoder)
    whole = set(decoder.parameters()) - set(layers.parameters())
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    # the decoder has no sharded weights itself, but as the root module it prefetches the next layer
    fully_shard(decoder, mesh=mesh, ignored_params=whole)
    setattr(decoder, _SHARDED, True)


def is_sharded(decoder: PreTrainedModel) -> bool:
    """Return True if all processes must call this decoder equally often."""
    return hasattr(decoder, _SHARDED)
