"""Early exit: texts skip the attention and MLP of deeper layers, which still compute their keys and values."""

import inspect
import threading
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from promptembedder.backbone.layers import decoder_layers
from promptembedder.backbone.packing import current_packing
from promptembedder.types import Tensor

__all__ = ["EarlyExitCache", "early_exit_cache"]


class _ExitState(threading.local):
    """State of the running layer, one per thread, because threads share the layers."""

    def __init__(self) -> None:
        self.returns_tuple = False  # True if the preceding layer returned a tuple, as in some families
        self.skip_queries = False  # True while a layer computes only keys and values


class _StopLayer(Exception):  # noqa: N818 - control flow, not an error
    """Stop a layer after its keys and values."""


class EarlyExitCache(DynamicCache):
    """KV cache whose texts leave the decoder after a layer: see `early_exit_cache`.

    Attributes:
        suffix_len: Number of trailing hidden states, after the text, that run through the deeper layers.
        early_exit_layer: Number of layers that the text runs through.
    """

    def __init__(self, early_exit_layer: int, *, suffix_len: int = 0) -> None:
        """Create an empty cache."""
        super().__init__()
        self.suffix_len = suffix_len
        self.early_exit_layer = early_exit_layer
        self._buffer: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Store a layer's keys and values, or buffer those of a deeper layer for its suffix states."""
        if self._buffer is not None:  # second call of a deeper layer: the buffer contains the suffix already
            buffered, self._buffer = self._buffer, None
            return buffered
        stored = key_states, value_states
        if not self.suffix_len:
            stored = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if layer_idx < self.early_exit_layer:
            return stored
        if self.suffix_len:
            self._buffer = stored
        raise _StopLayer


class _EarlyExitForward:
    """Layer forward that supports `EarlyExitCache`. An object, so that layers can be copied and pickled."""

    def __init__(self, layer: nn.Module, index: int) -> None:
        self._plain, self._index = layer.forward, index

    def __call__(self, states: Tensor, *args: Any, **kwargs: Any) -> Any:
        cache = next((value for value in (*args, *kwargs.values()) if isinstance(value, EarlyExitCache)), None)
        if cache is None or self._index < cache.early_exit_layer:
            output = self._plain(states, *args, **kwargs)
            _exit_state.returns_tuple = isinstance(output, tuple)
            return output
        _exit_state.skip_queries = True
        try:
            self._plain(states, *args, **kwargs)
        except _StopLayer:
            pass  # the keys and values are complete
        finally:
            _exit_state.skip_queries = False
        states = self._forward_suffix_only(states, args, kwargs, count=cache.suffix_len)
        return (states,) if _exit_state.returns_tuple else states

    def _forward_suffix_only(
        self, states: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], *, count: int
    ) -> Tensor:
        """Run the last `count` states through the layer and leave the others unchanged."""
        if not count:
            return states
        width = states.shape[1]
        names = inspect.signature(self._plain).parameters
        arguments = {**dict(zip(names, (states, *args), strict=False)), **kwargs}
        last = {name: _last(value, width, count) for name, value in arguments.items()}
        if last.get("attention_mask") is None and current_packing() is None:
            # without a mask SDPA aligns queries to the first keys, but these are the last
            back = torch.ones(count, width, dtype=torch.bool, device=states.device).tril(width - count)
            last["attention_mask"] = back[None, None]
        output = self._plain(**last)
        suffix = output[0] if isinstance(output, tuple) else output
        return torch.cat([states[:, :-count], suffix], dim=1)


class _SkippableQProj:
    """Query projection that is skipped when no query is used, half of the cost of a layer after the exit."""

    def __init__(self, queries: nn.Linear) -> None:
        self._plain, self._width = queries.forward, queries.out_features

    def __call__(self, states: Tensor) -> Tensor:
        if not _exit_state.skip_queries:
            return self._plain(states)
        return states.new_zeros(1).expand(*states.shape[:-1], self._width)  # takes neither memory nor time


def _last(value: Any, width: int, count: int) -> Any:
    """Select the last `count` of `width` positions from an argument of a decoder layer."""
    if isinstance(value, tuple | list):
        return type(value)(_last(each, width, count) for each in value)
    if not isinstance(value, Tensor):
        return value
    if value.ndim > 2:  # hidden states, rotary embeddings and attention masks: [... seq dim]
        return value[..., -count:, :] if value.shape[-2] == width else value
    return value[..., -count:] if value.shape[-1] == width else value  # position ids


_exit_state = _ExitState()
_patch_lock = threading.Lock()


def early_exit_cache(decoder: PreTrainedModel, early_exit_layer: int, *, suffix_len: int = 0) -> EarlyExitCache:
    """Create the KV cache for one pass in which texts leave the decoder after `early_exit_layer` layers.

    Deeper layers compute only keys and values from the hidden states at the exit, for the suffix to attend to: the last
    layers change the hidden states of a text little. In SmolLM2 the key and value projections are a sixteenth of a
    layer's weights (SwiftKV, Qiao et al. 2024, arXiv:2410.03960).

    Args:
        suffix_len: Number of hidden states that follow the texts in the same pass and run through all layers.
    """
    with _patch_lock:
        for index, layer in enumerate(decoder_layers(decoder)):
            if isinstance(layer.forward, _EarlyExitForward):
                continue
            layer.forward = _EarlyExitForward(layer, index)
            for name, module in layer.named_modules():
                # other families fuse the three projections
                if name.endswith(".q_proj") and isinstance(module, nn.Linear):
                    module.forward = _SkippableQProj(module)  # type: ignore[method-assign, assignment]
    return EarlyExitCache(early_exit_layer, suffix_len=suffix_len)
