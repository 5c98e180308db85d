"""Traceable model for one instruction: token ids and attention mask to unit vectors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from promptembedder.backbone import Backbone, decoder_layers, text_positions
from promptembedder.errors import ConfigError
from promptembedder.method import (
    SoftTokenEncoder,
    content_mask,
    early_exit_layer,
    l2_normalize,
    num_prompt_layers,
    pool,
    text_pooling_layer,
)
from promptembedder.types import Float, Int, Tensor

__all__ = ["FixedInstructionModel", "require_traceable"]

_KINDS = ("full_attention", "sliding_attention")


class FixedInstructionModel(nn.Module):
    """Traceable equivalent of `SoftTokenEncoder.embed_token_ids` for the soft tokens of one instruction.

    The graph contains the soft tokens of all layers, text pooling, output projection and normalisation. Attention masks
    are explicit, and every position attends to itself, so that a row of padding has no empty softmax.
    """

    soft: Tensor

    def __init__(self, encoder: SoftTokenEncoder, soft: Float[Tensor, "prompt width"]) -> None:
        """Share the weights of `encoder`."""
        super().__init__()
        self.encoder = encoder
        self.decoder = encoder.reader.decoder
        self.register_buffer("soft", soft)
        self.layers_read = text_pooling_layer(encoder.config, encoder.reader)
        self._captured: list[Tensor] = []

    @contextmanager
    def hooked(self) -> Iterator["FixedInstructionModel"]:
        """Register the hooks that `forward` needs: deep prompts, text pooling and early exit.

        The hooks of `backbone.layers` cannot be traced: they find their layer by identity, and tracers pass copies.
        """
        layers = decoder_layers(self.decoder)
        every, dim = self.encoder.config.deep_prompt_interval, self.encoder.reader.dim
        handles = []
        for level in range(1, num_prompt_layers(self.encoder.config, self.encoder.reader)):
            addition = self.soft[:, level * dim : (level + 1) * dim]
            handles.append(layers[level * every].register_forward_pre_hook(_adder(addition)))
        if self.layers_read is not None:
            handles.append(layers[self.layers_read - 1].register_forward_hook(self._capture))
        if (
            self.encoder.config.early_exit_fraction < 1
        ):  # deeper layers see the text's hidden states at the exit; the graph runs all layers
            after_exit = layers[early_exit_layer(self.encoder.config, self.encoder.reader) :]
            handles += [layer.register_forward_hook(_text_freezer(len(self.soft))) for layer in after_exit]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def forward(
        self, input_ids: Int[Tensor, "batch seq"], attention_mask: Int[Tensor, "batch seq"]
    ) -> Float[Tensor, "batch dim_r"]:
        """Embed a batch as unit vectors, float32; padding may be on either side."""
        count, dim = len(self.soft), self.encoder.reader.dim
        width = input_ids.shape[1]
        # left-pad, tokens in order; distinct sort keys, because not every runtime sorts stably
        order = (attention_mask * width + torch.arange(width, device=input_ids.device)).argsort(dim=1)
        ids, mask = input_ids.gather(1, order), attention_mask.gather(1, order)
        text = self.decoder.get_input_embeddings()(ids)
        soft = self.soft[:, :dim].to(text.dtype).expand(text.shape[0], -1, -1)
        present = torch.cat([mask, mask.new_ones(mask.shape[0], count)], dim=1)
        self._captured.clear()
        states = self.decoder(
            inputs_embeds=torch.cat([text, soft], dim=1),
            attention_mask=_masks(self.encoder.reader, present),
            position_ids=text_positions(present),
            use_cache=False,
        ).last_hidden_state
        everywhere = mask.new_ones(mask.shape[0], count)
        summary = pool(states[:, -count:], everywhere, pooling=self.encoder.config.pooling)
        if self.encoder.text_pooling is not None:
            text_mask = content_mask(mask, self.encoder.reader)
            own = self.encoder.text_pooling.summarise(self._captured[0][:, :-count], text_mask)
            _, _, query = self.encoder.split_by_layer(self.soft.unsqueeze(0))
            summary = self.encoder.text_pooling(summary, own, query)
        return l2_normalize(summary)

    def _capture(self, _: nn.Module, __: Any, output: Any) -> None:
        self._captured.append(output[0] if isinstance(output, tuple) else output)


def require_traceable(encoder: SoftTokenEncoder) -> None:
    """Check that the model for one instruction can be traced.

    Raises:
        ConfigError: If soft tokens depend on the text or precede it, or a layer has an unsupported kind of attention.
    """
    config, reader_config = encoder.config, encoder.reader.model.config
    if not encoder.reads_text_once:
        raise ConfigError(
            "a graph for one instruction needs placement 'suffix' and a prompter.template without {text}, "
            f"this model has placement {config.placement!r} and the template "
            f"{config.prompter.template!r}. Train such a model."
        )
    unknown = set(getattr(reader_config, "layer_types", None) or ()) - set(_KINDS)
    if unknown:
        raise ConfigError(
            f"{reader_config.model_type} has layers of {sorted(unknown)[0]}; supported are {' and '.join(_KINDS)}. "
            "Serve this model with promptembedder serve."
        )


def _masks(reader: Backbone, present: Int[Tensor, "batch seq"]) -> Any:
    """Return the attention mask, [batch 1 seq seq], or one mask by kind of layer."""
    config = reader.model.config
    position = torch.arange(present.shape[1], device=present.device)
    distance = position.unsqueeze(1) - position
    keys = present.bool()[:, None, None, :]

    def mask(window: int | None) -> Tensor:
        causal = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        return (causal & keys) | (distance == 0)

    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if "sliding_attention" in kinds:
        return {kind: mask(window if kind == "sliding_attention" else None) for kind in kinds}
    return mask(None if kinds else window)


def _text_freezer(count: int) -> Any:
    def freeze_text(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        frozen = torch.cat([inputs[0][:, :-count], states[:, -count:]], dim=1)
        return (frozen, *output[1:]) if isinstance(output, tuple) else frozen

    return freeze_text


def _adder(addition: Float[Tensor, "prompt dim_r"]) -> Any:
    def add(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        states, *others = inputs
        count = len(addition)
        changed = states[:, -count:] + addition.to(states.dtype)
        return (torch.cat([states[:, :-count], changed], dim=1), *others)

    return add
