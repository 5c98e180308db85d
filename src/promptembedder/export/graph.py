"""One instruction's whole model as one graph: token ids and mask in, unit vectors out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from promptembedder.backbone import Backbone
from promptembedder.backbone import decoder_layers
from promptembedder.errors import ConfigError
from promptembedder.method import SoftTokenEncoder
from promptembedder.method import exit_layer, own_tokens, readout_layers
from promptembedder.method import pooled, unit_vectors
from promptembedder.backbone import text_positions
from promptembedder.types import Float, Int, Tensor

__all__ = ["OneInstruction", "require_traceable"]

_KINDS = ("full_attention", "sliding_attention")


class OneInstruction(nn.Module):
    """The vector of `SoftTokenEncoder.embed_rows` under one set of soft tokens, written so that exporters can trace it.

    Soft tokens of the input and of the deeper layers, the text's own states, head and normalisation are all inside.
    Masks are written out, and every position may look at itself: a row of padding then has no empty softmax.
    """

    soft: Tensor

    def __init__(self, encoder: SoftTokenEncoder, soft: Float[Tensor, "prompt width"]) -> None:
        """Share the weights of `encoder`."""
        super().__init__()
        self.encoder = encoder
        self.decoder = encoder.reader.decoder
        self.register_buffer("soft", soft)
        self.layers_read = readout_layers(encoder.settings, encoder.reader)
        self._kept: list[Tensor] = []

    @contextmanager
    def hooked(self) -> Iterator["OneInstruction"]:
        """While this lasts, deeper soft tokens are added and the text's own states kept: `forward` needs it.

        Not the library's own hooks: those ask which layer they are in by its identity, and tracers show them copies.
        """
        layers = decoder_layers(self.decoder)
        every, dim = self.encoder.settings.deep_every, self.encoder.reader.dim
        handles = []
        for level in range(1, self.soft.shape[1] // dim):
            addition = self.soft[:, level * dim : (level + 1) * dim]
            handles.append(layers[level * every].register_forward_pre_hook(_adder(addition)))
        if self.layers_read is not None:
            handles.append(layers[self.layers_read - 1].register_forward_hook(self._keep))
        if self.encoder.settings.exit_depth < 1:  # deeper layers see texts as they were there; here they compute all
            left = layers[exit_layer(self.encoder.settings, self.encoder.reader) :]
            handles += [layer.register_forward_hook(_text_keeper(len(self.soft))) for layer in left]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def forward(
        self, input_ids: Int[Tensor, "batch seq"], attention_mask: Int[Tensor, "batch seq"]
    ) -> Float[Tensor, "batch dim_r"]:
        """Unit vectors, float32; padding may be anywhere."""
        count, dim = len(self.soft), self.encoder.reader.dim
        width = input_ids.shape[1]
        # padding to the left, tokens in their order: distinct keys, since not every runtime sorts stably
        order = (attention_mask * width + torch.arange(width, device=input_ids.device)).argsort(dim=1)
        ids, mask = input_ids.gather(1, order), attention_mask.gather(1, order)
        text = self.decoder.get_input_embeddings()(ids)
        soft = self.soft[:, :dim].to(text.dtype).expand(text.shape[0], -1, -1)
        present = torch.cat([mask, mask.new_ones(mask.shape[0], count)], dim=1)
        self._kept.clear()
        states = self.decoder(
            inputs_embeds=torch.cat([text, soft], dim=1),
            attention_mask=_masks(self.encoder.reader, present),
            position_ids=text_positions(present),
            use_cache=False,
        ).last_hidden_state
        everywhere = mask.new_ones(mask.shape[0], count)
        summary = pooled(states[:, -count:], everywhere, pooling=self.encoder.settings.pooling)
        if self.encoder.head is not None:
            summary = self.encoder.head(summary)
        if self.encoder.readout is not None:
            own = own_tokens(mask, self.encoder.reader)
            mean = pooled(self._kept[0][:, :-count], own, pooling="mean")
            summary = self.encoder.readout(summary, mean, own.amax(dim=1, keepdim=True))
        return unit_vectors(summary)

    def _keep(self, _: nn.Module, __: Any, output: Any) -> None:
        self._kept.append(output[0] if isinstance(output, tuple) else output)


def require_traceable(encoder: SoftTokenEncoder) -> None:
    """Refuse what one graph for one instruction cannot hold.

    Raises:
        ConfigError: Soft tokens depend on the text or come before it, or a layer's attention is of a kind whose mask is
            not written out here.
    """
    settings, config = encoder.settings, encoder.reader.model.config
    if not encoder.reads_text_once:
        raise ConfigError(
            f"a graph for one instruction needs placement 'suffix' and conditioning 'instruction', this model has "
            f"{settings.placement!r} and {settings.conditioning!r}. Train with those."
        )
    unknown = set(getattr(config, "layer_types", None) or ()) - set(_KINDS)
    if unknown:
        raise ConfigError(
            f"{config.model_type} has layers of {sorted(unknown)[0]}; exported are those of {' and '.join(_KINDS)}. "
            "Serve this model with promptembedder serve."
        )


def _masks(reader: Backbone, present: Int[Tensor, "batch seq"]) -> Any:
    """Who may look at whom, [batch 1 seq seq]; by kind of layer where the decoder has several."""
    config = reader.model.config
    place = torch.arange(present.shape[1], device=present.device)
    back = place.unsqueeze(1) - place
    looks = present.bool()[:, None, None, :]

    def seen(window: int | None) -> Tensor:
        near = back >= 0 if window is None else (back >= 0) & (back < window)
        return (near & looks) | (back == 0)

    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if "sliding_attention" in kinds:
        return {kind: seen(window if kind == "sliding_attention" else None) for kind in kinds}
    return seen(None if kinds else window)


def _text_keeper(count: int) -> Any:
    def keep(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        kept = torch.cat([inputs[0][:, :-count], states[:, -count:]], dim=1)
        return (kept, *output[1:]) if isinstance(output, tuple) else kept

    return keep


def _adder(addition: Float[Tensor, "prompt dim_r"]) -> Any:
    def add(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        states, *others = inputs
        count = len(addition)
        changed = states[:, -count:] + addition.to(states.dtype)
        return (torch.cat([states[:, :-count], changed], dim=1), *others)

    return add
