"""The layers of a foreign decoder, and vectors added to the states that enter them."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from promptembedder.errors import BackboneError
from promptembedder.shapes import Float, Tensor

__all__ = ["added_states", "decoder_layers"]

_HOOKED = "_promptembedder_adds_states"


class _Additions(threading.local):
    """What to add, by layer; each thread its own, since threads share the layers."""

    def __init__(self) -> None:
        self.by_layer: dict[int, Tensor] = {}


_additions = _Additions()
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
    """While this lasts, and in this thread alone, `additions[i]` is added to the states that enter layer i."""
    if not additions:
        yield
        return
    layers = decoder_layers(decoder)
    with _hooking:  # two hooks on a layer would add twice
        for layer in layers:
            if not hasattr(layer, _HOOKED):
                layer.register_forward_pre_hook(_add)
                setattr(layer, _HOOKED, True)
    _additions.by_layer = {id(layers[i]): addition for i, addition in additions.items()}
    try:
        yield
    finally:
        _additions.by_layer = {}


def _add(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    addition = _additions.by_layer.get(id(layer))
    if addition is None:
        return None
    states, *others = inputs
    return (states + addition.to(states.dtype), *others)
