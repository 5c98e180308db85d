"""The layers of a foreign decoder: vectors added to the states that enter them, and what they hand on."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from promptembedder.errors import BackboneError
from promptembedder.shapes import Float, Tensor

__all__ = ["EnoughError", "added_states", "decoder_layers", "handed_on"]

_HOOKED = "_promptembedder_hooks"


class _Asked(threading.local):
    """What to add and what to keep, by layer; each thread its own, since threads share the layers."""

    def __init__(self) -> None:
        self.additions: dict[int, Tensor] = {}
        self.kept: dict[int, list[Tensor]] = {}
        self.is_last = False


class EnoughError(Exception):
    """Ends a pass whose later layers nobody asked for."""


_asked = _Asked()
_hooking = threading.Lock()


def decoder_layers(decoder: PreTrainedModel) -> nn.ModuleList:
    """The stack of layers of a decoder, whatever its family calls it.

    Raises:
        BackboneError: There is no list of as many modules as the configuration has layers.
    """
    count = decoder.config.num_hidden_layers
    for module in decoder.children():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise BackboneError(f"cannot find the {count} layers of {type(decoder).__name__}; deep soft tokens need them.")


@contextmanager
def added_states(decoder: PreTrainedModel, additions: Mapping[int, Float[Tensor, "batch new dim"]]) -> Iterator[None]:
    """While this lasts, and in this thread alone, `additions[i]` is added to the last states that enter layer i."""
    if not additions:
        yield
        return
    layers = _hooked_layers(decoder)
    _asked.additions = {id(layers[i]): addition for i, addition in additions.items()}
    try:
        yield
    finally:
        _asked.additions = {}


@contextmanager
def handed_on(
    decoder: PreTrainedModel, count: int | None, *, is_last: bool = False
) -> Iterator[list[Float[Tensor, "batch seq dim"]]]:
    """While this lasts, and in this thread alone, the list gets the states after the first `count` layers.

    Args:
        count: None: the list stays empty.
        is_last: Raise `EnoughError` there.
    """
    kept: list[Tensor] = []
    if count is None:
        yield kept
        return
    _asked.kept = {id(_hooked_layers(decoder)[count - 1]): kept}
    _asked.is_last = is_last
    try:
        yield kept
    finally:
        _asked.kept, _asked.is_last = {}, False


def _hooked_layers(decoder: PreTrainedModel) -> nn.ModuleList:
    layers = decoder_layers(decoder)
    with _hooking:  # two hooks on a layer would add twice
        for layer in layers:
            if not hasattr(layer, _HOOKED):
                layer.register_forward_pre_hook(_add)
                layer.register_forward_hook(_keep)
                setattr(layer, _HOOKED, True)
    return layers


def _add(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    addition = _asked.additions.get(id(layer))
    if addition is None:
        return None
    states, *others = inputs
    first = states.shape[1] - addition.shape[1]
    changed = states[:, first:] + addition.to(states.dtype)
    return (changed if first == 0 else torch.cat([states[:, :first], changed], dim=1), *others)


def _keep(layer: nn.Module, _: Any, output: Any) -> None:
    kept = _asked.kept.get(id(layer))
    if kept is not None:
        kept.append(output[0] if isinstance(output, tuple) else output)
        if _asked.is_last:
            raise EnoughError
