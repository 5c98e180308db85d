"""The layers of a foreign decoder: states added to what enters them, what they hand on, and where texts leave them."""

import inspect
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from promptembedder.backbone.packing import current_packing
from promptembedder.errors import BackboneError
from promptembedder.types import Float, Tensor

__all__ = ["EnoughError", "added_states", "cache_with_exit", "decoder_layers", "handed_on"]

_HOOKED = "_promptembedder_hooks"


class _Asked(threading.local):
    """What to add and what to keep, by layer; each thread its own, since threads share the layers."""

    def __init__(self) -> None:
        self.additions: dict[int, Tensor] = {}
        self.kept: dict[int, list[Tensor]] = {}
        self.is_last = False
        self.gives_tuples = False  # what the layer before has returned, as some families do
        self.looks = True  # False where a layer makes no more than keys and values


class EnoughError(Exception):
    """Ends a pass whose later layers nobody asked for."""


class _KeptError(Exception):
    """Ends a layer whose keys and values are all that is wanted of a text."""


class ExitCache(DynamicCache):
    """A cache that ends the reading of a text at a layer: see `cache_with_exit`.

    Attributes:
        after: How many of the last states, which follow the text, go on through the deeper layers.
        exit_layer: Layers that the text goes through.
    """

    def __init__(self, exit_layer: int, *, after: int = 0) -> None:
        """Start empty."""
        super().__init__()
        self.after = after
        self.exit_layer = exit_layer
        self._held: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Keep a layer's keys and values, or hold those of a deeper one for the states that go on."""
        if self._held is not None:  # the states that go on: theirs are among those held
            held, self._held = self._held, None
            return held
        kept = key_states, value_states
        if not self.after:
            kept = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if layer_idx < self.exit_layer:
            return kept
        if self.after:
            self._held = kept
        raise _KeptError


class _Endable:
    """A layer's forward that ends where its cache says so. An object, so that layers can be copied and pickled."""

    def __init__(self, layer: nn.Module, index: int) -> None:
        self._plain, self._index = layer.forward, index

    def __call__(self, states: Tensor, *args: Any, **kwargs: Any) -> Any:
        cache = next((value for value in (*args, *kwargs.values()) if isinstance(value, ExitCache)), None)
        if cache is None or self._index < cache.exit_layer:
            output = self._plain(states, *args, **kwargs)
            _asked.gives_tuples = isinstance(output, tuple)
            return output
        _asked.looks = False
        try:
            self._plain(states, *args, **kwargs)
        except _KeptError:
            pass  # its keys and values are made, and that was all
        finally:
            _asked.looks = True
        states = self._gone_on(states, args, kwargs, count=cache.after)
        return (states,) if _asked.gives_tuples else states

    def _gone_on(self, states: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], *, count: int) -> Tensor:
        """`states` as they were, but for the last `count`, which go through the layer."""
        if not count:
            return states
        width = states.shape[1]
        names = inspect.signature(self._plain).parameters
        given = {**dict(zip(names, (states, *args), strict=False)), **kwargs}
        last = {name: _last(value, width, count) for name, value in given.items()}
        if last.get("attention_mask") is None and current_packing() is None:
            # what has no mask looks back from where it stands, and these are not first
            back = torch.ones(count, width, dtype=torch.bool, device=states.device).tril(width - count)
            last["attention_mask"] = back[None, None]
        output = self._plain(**last)
        after = output[0] if isinstance(output, tuple) else output
        return torch.cat([states[:, :-count], after], dim=1)


class _Queries:
    """The forward of a map to queries that makes none where nobody looks, which is half of what such a layer costs."""

    def __init__(self, queries: nn.Linear) -> None:
        self._plain, self._width = queries.forward, queries.out_features

    def __call__(self, states: Tensor) -> Tensor:
        if _asked.looks:
            return self._plain(states)
        return states.new_zeros(1).expand(*states.shape[:-1], self._width)  # takes neither memory nor time


def _last(value: Any, width: int, count: int) -> Any:
    """What belongs to the last `count` of `width` places, of whatever a decoder tells its layers."""
    if isinstance(value, tuple | list):
        return type(value)(_last(each, width, count) for each in value)
    if not isinstance(value, Tensor):
        return value
    if value.ndim > 2:  # states, angles of positions, and who may look at whom: [... places dim]
        return value[..., -count:, :] if value.shape[-2] == width else value
    return value[..., -count:] if value.shape[-1] == width else value  # positions


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


def cache_with_exit(decoder: PreTrainedModel, exit_layer: int, *, after: int = 0) -> ExitCache:
    """A cache for one pass in which texts leave the decoder after `exit_layer` layers.

    Deeper layers only make keys and values of the states there, for what follows the texts and looks at them: the last
    layers change a text's states little. In SmolLM2 that is a sixteenth of a layer's weights (SwiftKV, Qiao et al.
    2024, arXiv:2410.03960).

    Args:
        after: How many states follow the texts in the same pass, and go through all layers.
    """
    with _hooking:
        for index, layer in enumerate(decoder_layers(decoder)):
            if isinstance(layer.forward, _Endable):
                continue
            layer.forward = _Endable(layer, index)
            for name, part in layer.named_modules():
                if name.endswith(".q_proj") and isinstance(part, nn.Linear):  # elsewhere one map makes all three
                    part.forward = _Queries(part)  # type: ignore[method-assign, assignment]
    return ExitCache(exit_layer, after=after)


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
