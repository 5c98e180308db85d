"""Texts and what follows them, read in one pass that keeps nothing: with padding, or packed where that is the same."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from promptembedder.backbones.attention import ATTENTION
from promptembedder.backbones.layers import added_states, cache_with_exit, handed_on
from promptembedder.backbones.packing import Packing, has_varlen, packing_texts
from promptembedder.backbones.sharding import is_sharded
from promptembedder.nn import text_positions
from promptembedder.shapes import Float, Int, Tensor

__all__ = ["packs", "read_text_and_after"]

_PACKS = "_promptembedder_packs"


@torch.no_grad()
def read_text_and_after(
    decoder: PreTrainedModel,
    ids: Int[Tensor, "batch seq"],
    mask: Int[Tensor, "batch seq"],
    embeddings: Float[Tensor, "batch prompt dim"],
    additions: Mapping[int, Float[Tensor, "batch prompt dim"]] | None = None,
    *,
    hidden_layers: int | None = None,
    exit_layer: int | None = None,
) -> tuple[Float[Tensor, "batch prompt dim"], Float[Tensor, "batch seq dim"]]:
    """`read_text` and `read_after` in one pass that keeps nothing: final states of `embeddings`, hidden of the texts.

    For one continuation, without gradient. A single short text takes half the time of two passes, each of which goes
    through all weights. Padding is left out where the decoder `packs`; texts of one length should stand together.
    """
    texts = _Texts(ids, mask, embeddings, additions or {})
    if not bool(mask.all()) and packs(decoder):
        return _read_packed(decoder, texts, hidden_layers=hidden_layers, exit_layer=exit_layer)
    return _read_padded(decoder, texts, hidden_layers=hidden_layers, exit_layer=exit_layer)


@dataclass(frozen=True)
class _Texts:
    """Left-padded texts, and what follows each of them."""

    ids: Int[Tensor, "batch seq"]
    mask: Int[Tensor, "batch seq"]
    embeddings: Float[Tensor, "batch prompt dim"]
    additions: Mapping[int, Float[Tensor, "batch prompt dim"]]

    @property
    def present(self) -> Int[Tensor, "batch columns"]:
        """1 for a token, soft or not."""
        return torch.cat([self.mask, self.mask.new_ones(self.embeddings.shape[:2])], dim=1)


def _read_padded(
    decoder: PreTrainedModel, texts: _Texts, *, hidden_layers: int | None = None, exit_layer: int | None = None
) -> tuple[Float[Tensor, "batch prompt dim"], Float[Tensor, "batch seq dim"]]:
    prompt = texts.embeddings.shape[1]
    cache = None if exit_layer is None else cache_with_exit(decoder, exit_layer, after=prompt)
    text = decoder.get_input_embeddings()(texts.ids)
    with added_states(decoder, texts.additions), handed_on(decoder, hidden_layers) as kept:
        output = decoder(
            inputs_embeds=torch.cat([text, texts.embeddings.to(text.dtype)], dim=1),
            attention_mask=texts.present,
            position_ids=text_positions(texts.present),
            past_key_values=cache,
            use_cache=cache is not None,
        )
    hidden = kept[0] if kept else output.last_hidden_state
    return output.last_hidden_state[:, -prompt:], hidden[:, :-prompt]


def _read_packed(
    decoder: PreTrainedModel, texts: _Texts, *, hidden_layers: int | None = None, exit_layer: int | None = None
) -> tuple[Float[Tensor, "batch prompt dim"], Float[Tensor, "batch seq dim"]]:
    batch, prompt, dim = texts.embeddings.shape
    of_text = texts.mask.bool()
    packing = Packing(texts.mask.sum(dim=1).tolist(), after=prompt, device=of_text.device)
    cache = None if exit_layer is None else cache_with_exit(decoder, exit_layer, after=packing.soft)
    text = decoder.get_input_embeddings()(texts.ids[of_text])
    positions = text_positions(texts.present)
    additions = {layer: addition.reshape(1, -1, dim) for layer, addition in texts.additions.items()}
    with packing_texts(packing), added_states(decoder, additions), handed_on(decoder, hidden_layers) as kept:
        output = decoder(
            inputs_embeds=torch.cat([text, texts.embeddings.reshape(-1, dim).to(text.dtype)]).unsqueeze(0),
            # without one, transformers would look for packed texts itself
            attention_mask=texts.mask.new_ones(1, len(text) + packing.soft),
            position_ids=torch.cat([positions[:, :-prompt][of_text], positions[:, -prompt:].flatten()]).unsqueeze(0),
            past_key_values=cache,
            use_cache=cache is not None,
        )
    last = output.last_hidden_state
    hidden = (kept[0] if kept else last)[0, : len(text)]
    padded = hidden.new_zeros(*of_text.shape, hidden.shape[-1])
    padded[of_text] = hidden
    return last[0, len(text) :].reshape(batch, prompt, -1), padded


def packs(decoder: PreTrainedModel) -> bool:
    """Whether `decoder` reads texts in one row, without padding, as it reads them padded: tried once, on a few tokens.

    A family may mix tokens elsewhere than in attention, or attend in a way of its own: texts in one row would then mix.
    """
    known: dict[tuple[torch.device, torch.dtype], bool] = decoder.__dict__.setdefault(_PACKS, {})
    where = decoder.device, decoder.dtype
    if where not in known:
        known[where] = _may_pack(decoder) and _packs(decoder)
    return known[where]


def _may_pack(decoder: PreTrainedModel) -> bool:
    if decoder.config._attn_implementation != ATTENTION or is_sharded(decoder):  # a trial would be one call more
        return False
    if decoder.device.type != "cpu":
        return has_varlen(decoder.device, decoder.dtype)
    return decoder.dtype.itemsize == 4  # in half precision each new width costs memory for good: see `few_widths`


@torch.no_grad()
def _packs(decoder: PreTrainedModel) -> bool:
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 1], [0, 1, 1, 1]], device=decoder.device)
    ids = torch.arange(mask.numel(), device=mask.device).reshape(mask.shape) % decoder.config.vocab_size
    texts = _Texts(ids, mask, decoder.get_input_embeddings()(ids[:, :2]), {})
    padded, _ = _read_padded(decoder, texts)
    try:
        packed, _ = _read_packed(decoder, texts)
    except (RuntimeError, ValueError, TypeError, IndexError):  # foreign code that wants a mask of another shape
        return False
    near = 8 * max(torch.finfo(decoder.dtype).eps, 1e-5) * float(padded.abs().max())
    return bool((padded - packed).abs().max() <= near)
