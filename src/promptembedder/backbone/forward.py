"""Forward passes of a frozen decoder: prefill a text's KV cache, run soft tokens on top of it, or both at once."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel

from promptembedder.backbone.early_exit import early_exit_cache
from promptembedder.backbone.layers import StopForward, add_to_layer_inputs, capture_hidden_state, is_sharded
from promptembedder.backbone.packing import ATTENTION, Packing, has_varlen, packing_texts
from promptembedder.types import Bool, Float, Int, Tensor

__all__ = [
    "TextCache",
    "forward_embeddings",
    "forward_suffix",
    "forward_suffixes",
    "forward_tokens",
    "forward_with_suffix",
    "gather_text_caches",
    "hidden_states_at",
    "left_pad",
    "left_pad_ids",
    "prefill",
    "supports_packing",
    "text_positions",
]


def left_pad(
    ids: Int[Tensor, "batch seq"], mask: Int[Tensor, "batch seq"] | Bool[Tensor, "batch seq"]
) -> tuple[Int[Tensor, "batch kept"], Int[Tensor, "batch kept"]]:
    """Move all padding to the left and drop columns that contain only padding.

    With the text at the end of each row, soft tokens follow it directly: sliding windows, which count columns, then
    see the same distances as in an unpadded text.
    """
    mask = mask.long()
    order = mask.argsort(dim=1, stable=True)  # padding (0) first, tokens (1) in their order
    width = max(int(mask.sum(dim=1).max()), 0) if mask.numel() else 0
    first = mask.shape[1] - width  # columns that are padding in every row
    return ids.gather(1, order)[:, first:], mask.gather(1, order)[:, first:]


def left_pad_ids(
    rows: Sequence[Sequence[int]], *, device: torch.device | None = None, width: int | None = None
) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """Pad rows of ids with zeros on the left to `width` (default: the longest row) and return ids and mask."""
    if width is None:
        width = max(map(len, rows), default=0)
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], dtype=torch.long)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], dtype=torch.long)
    return ids.reshape(len(rows), width).to(device), mask.reshape(len(rows), width).to(device)


def text_positions(mask: Int[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"]:
    """Return the position of each token in its text, counted from 0. Padding gets 0."""
    return (mask.cumsum(dim=1) - 1).clamp_min(0)


_PACKS = "_promptembedder_packs"


@torch.no_grad()
def forward_with_suffix(
    decoder: PreTrainedModel,
    ids: Int[Tensor, "batch seq"],
    mask: Int[Tensor, "batch seq"],
    embeddings: Float[Tensor, "batch prompt dim"],
    additions: Mapping[int, Float[Tensor, "batch prompt dim"]] | None = None,
    *,
    hidden_layers: int | None = None,
    early_exit_layer: int | None = None,
) -> tuple[Float[Tensor, "batch prompt dim"], Float[Tensor, "batch seq dim"]]:
    """Run `prefill` and `forward_suffix` in one pass without a KV cache.

    For one suffix, without gradient. A single short text takes half the time of two passes, each of which loads all
    weights. Padding is dropped where the decoder `supports_packing`. Texts of one length should be adjacent.

    Returns:
        Final hidden states of `embeddings`, and hidden states of the texts.
    """
    texts = _Texts(ids, mask, embeddings, additions or {})
    if not bool(mask.all()) and supports_packing(decoder):
        return _forward_packed(decoder, texts, hidden_layers=hidden_layers, early_exit_layer=early_exit_layer)
    return _forward_padded(decoder, texts, hidden_layers=hidden_layers, early_exit_layer=early_exit_layer)


@dataclass(frozen=True)
class _Texts:
    """Left-padded texts and the suffix of each."""

    ids: Int[Tensor, "batch seq"]
    mask: Int[Tensor, "batch seq"]
    embeddings: Float[Tensor, "batch prompt dim"]
    additions: Mapping[int, Float[Tensor, "batch prompt dim"]]

    @property
    def present(self) -> Int[Tensor, "batch columns"]:
        """Attention mask of texts and soft tokens."""
        return torch.cat([self.mask, self.mask.new_ones(self.embeddings.shape[:2])], dim=1)


def _forward_padded(
    decoder: PreTrainedModel, texts: _Texts, *, hidden_layers: int | None = None, early_exit_layer: int | None = None
) -> tuple[Float[Tensor, "batch prompt dim"], Float[Tensor, "batch seq dim"]]:
    prompt = texts.embeddings.shape[1]
    cache = None if early_exit_layer is None else early_exit_cache(decoder, early_exit_layer, suffix_len=prompt)
    text = decoder.get_input_embeddings()(texts.ids)
    with add_to_layer_inputs(decoder, texts.additions), capture_hidden_state(decoder, hidden_layers) as kept:
        output = decoder(
            inputs_embeds=torch.cat([text, texts.embeddings.to(text.dtype)], dim=1),
            attention_mask=texts.present,
            position_ids=text_positions(texts.present),
            past_key_values=cache,
            use_cache=cache is not None,
        )
    hidden = kept[0] if kept else output.last_hidden_state
    return output.last_hidden_state[:, -prompt:], hidden[:, :-prompt]


def _forward_packed(
    decoder: PreTrainedModel, texts: _Texts, *, hidden_layers: int | None = None, early_exit_layer: int | None = None
) -> tuple[Float[Tensor, "batch prompt dim"], Float[Tensor, "batch seq dim"]]:
    batch, prompt, dim = texts.embeddings.shape
    of_text = texts.mask.bool()
    packing = Packing(texts.mask.sum(dim=1).tolist(), suffix_len=prompt, device=of_text.device)
    cache = None
    if early_exit_layer is not None:
        cache = early_exit_cache(decoder, early_exit_layer, suffix_len=packing.suffix_tokens)
    text = decoder.get_input_embeddings()(texts.ids[of_text])
    positions = text_positions(texts.present)
    additions = {layer: addition.reshape(1, -1, dim) for layer, addition in texts.additions.items()}
    with (
        packing_texts(packing),
        add_to_layer_inputs(decoder, additions),
        capture_hidden_state(decoder, hidden_layers) as kept,
    ):
        output = decoder(
            inputs_embeds=torch.cat([text, texts.embeddings.reshape(-1, dim).to(text.dtype)]).unsqueeze(0),
            # without a mask, transformers would detect packed texts itself
            attention_mask=texts.mask.new_ones(1, len(text) + packing.suffix_tokens),
            position_ids=torch.cat([positions[:, :-prompt][of_text], positions[:, -prompt:].flatten()]).unsqueeze(0),
            past_key_values=cache,
            use_cache=cache is not None,
        )
    last = output.last_hidden_state
    hidden = (kept[0] if kept else last)[0, : len(text)]
    padded = hidden.new_zeros(*of_text.shape, hidden.shape[-1])
    padded[of_text] = hidden
    return last[0, len(text) :].reshape(batch, prompt, -1), padded


def supports_packing(decoder: PreTrainedModel) -> bool:
    """Return True if `decoder` computes the same states for unpadded and padded batches. The result is cached.

    In a family that mixes tokens outside of attention, or has an attention of its own, texts in one row would mix.
    """
    known: dict[tuple[torch.device, torch.dtype], bool] = decoder.__dict__.setdefault(_PACKS, {})
    where = decoder.device, decoder.dtype
    if where not in known:
        known[where] = _may_pack(decoder) and _packing_is_exact(decoder)
    return known[where]


def _may_pack(decoder: PreTrainedModel) -> bool:
    if decoder.config._attn_implementation != ATTENTION or is_sharded(decoder):  # a trial would be an additional call
        return False
    if decoder.device.type != "cpu":
        return has_varlen(decoder.device, decoder.dtype)
    return decoder.dtype.itemsize == 4  # in half precision each new width permanently uses memory: see `bucket_width`


@torch.no_grad()
def _packing_is_exact(decoder: PreTrainedModel) -> bool:
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 1], [0, 1, 1, 1]], device=decoder.device)
    ids = torch.arange(mask.numel(), device=mask.device).reshape(mask.shape) % decoder.config.vocab_size
    texts = _Texts(ids, mask, decoder.get_input_embeddings()(ids[:, :2]), {})
    padded, _ = _forward_padded(decoder, texts)
    try:
        packed, _ = _forward_packed(decoder, texts)
    except (RuntimeError, ValueError, TypeError, IndexError):  # model code that expects a mask of another shape
        return False
    near = 8 * max(torch.finfo(decoder.dtype).eps, 1e-5) * float(padded.abs().max())
    return bool((padded - packed).abs().max() <= near)


_QUERIES = 128  # queries per pass: scores between different suffixes are computed and masked


@dataclass(frozen=True)
class TextCache:
    """KV cache, attention mask and hidden states of a batch of left-padded texts.

    Attributes:
        keys: One tensor per layer, [batch heads seq head_dim]. Empty if no text has a token.
        values: As `keys`.
        mask: [batch seq], 1 for a token.
        hidden: [batch seq dim], the final hidden states, or those after `hidden_layers` layers.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Int[Tensor, "batch seq"]
    hidden: Float[Tensor, "batch seq dim"]


@torch.no_grad()
def prefill(
    decoder: PreTrainedModel,
    ids: Int[Tensor, "batch seq"],
    mask: Int[Tensor, "batch seq"],
    *,
    hidden_layers: int | None = None,
    early_exit_layer: int | None = None,
) -> TextCache:
    """Compute the KV cache and hidden states of left-padded texts, always without gradient.

    Padding is dropped where the decoder `supports_packing`. Texts of one length should be adjacent.

    Args:
        hidden_layers: Number of layers after which `TextCache.hidden` is captured. If None, the final states.
        early_exit_layer: Number of layers that the texts run through. Deeper layers compute their keys and values from
            the hidden states there. If None, all layers.
    """
    if ids.shape[1] == 0:  # all texts are empty
        width = decoder.config.hidden_size
        return TextCache((), (), mask, torch.zeros(ids.shape[0], 0, width, device=ids.device))
    # A plain cache keeps every position in every layer; sliding windows are then applied by the mask alone. The
    # per-layer window caches drop positions by column, padding included.
    cache = DynamicCache() if early_exit_layer is None else early_exit_cache(decoder, early_exit_layer)
    of_text, positions = mask.bool(), text_positions(mask)
    packing = None
    if not bool(of_text.all()) and supports_packing(decoder):
        packing = Packing(mask.sum(dim=1).tolist(), suffix_len=0, device=mask.device)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    if packing is not None:
        inputs = {name: tensor[of_text].unsqueeze(0) for name, tensor in inputs.items()}
    with packing_texts(packing), capture_hidden_state(decoder, hidden_layers) as kept:
        output = decoder(**inputs, past_key_values=cache, use_cache=True)

    def padded(heads: Float[Tensor, "rows heads columns head_dim"]) -> Float[Tensor, "batch heads seq head_dim"]:
        if packing is None:
            return heads
        whole = heads.new_zeros(len(mask), heads.shape[1], mask.shape[1], heads.shape[3])
        whole.transpose(1, 2)[of_text] = heads[0].transpose(0, 1)
        return whole

    keys = tuple(padded(layer.keys) for layer in cache.layers)
    values = tuple(padded(layer.values) for layer in cache.layers)
    hidden = kept[0] if kept else output.last_hidden_state
    return TextCache(keys, values, mask, padded(hidden.unsqueeze(1))[:, 0])


@torch.no_grad()
def hidden_states_at(
    decoder: PreTrainedModel, ids: Int[Tensor, "batch seq"], mask: Int[Tensor, "batch seq"], *, layers: int
) -> Float[Tensor, "batch seq dim"]:
    """Compute the hidden states of left-padded texts after the first `layers` layers and skip the others."""
    if ids.shape[1] == 0:  # all texts are empty
        return torch.zeros(ids.shape[0], 0, decoder.config.hidden_size, device=ids.device)
    with capture_hidden_state(decoder, layers, is_last=True) as kept, suppress(StopForward):
        decoder(input_ids=ids, attention_mask=mask, position_ids=text_positions(mask), use_cache=False)
    return kept[0]


def gather_text_caches(parts: Sequence[TextCache], rows: Sequence[tuple[int, int]]) -> TextCache:
    """Gather texts from several caches into one batch, left-padded to the longest.

    Args:
        rows: Index of the cache and of the row in it for each text of the result. Texts may repeat.
    """
    if len(parts) == 1 and list(rows) == [(0, place) for place in range(len(parts[0].mask))]:
        return parts[0]
    width = max(part.mask.shape[1] for part in parts)
    device = parts[0].mask.device
    of_part = [[i for i, (part, _) in enumerate(rows) if part == number] for number in range(len(parts))]
    targets = [torch.tensor(own, dtype=torch.long, device=device) for own in of_part]
    sources = [torch.tensor([rows[i][1] for i in own], dtype=torch.long, device=device) for own in of_part]

    def gather(tensors: Sequence[Tensor | None], dim: int) -> Tensor:
        template = next(tensor for tensor in tensors if tensor is not None)
        shape = list(template.shape)
        shape[0], shape[dim] = len(rows), width
        whole = template.new_zeros(shape)
        for tensor, target, source in zip(tensors, targets, sources, strict=True):
            if tensor is not None and tensor.shape[dim]:
                end = whole.narrow(dim, width - tensor.shape[dim], tensor.shape[dim])
                end[target] = tensor[source]
        return whole

    layers = range(max(len(part.keys) for part in parts))  # a batch of empty texts has none
    return TextCache(
        keys=tuple(gather([part.keys[layer] if part.keys else None for part in parts], 2) for layer in layers),
        values=tuple(gather([part.values[layer] if part.values else None for part in parts], 2) for layer in layers),
        mask=gather([part.mask for part in parts], 1),
        hidden=gather([part.hidden for part in parts], 1),
    )


def forward_suffix(
    decoder: PreTrainedModel,
    states: TextCache,
    embeddings: Float[Tensor, "batch prompt dim"],
    additions: Mapping[int, Float[Tensor, "batch prompt dim"]] | None = None,
) -> Float[Tensor, "batch prompt dim"]:
    """Compute the final hidden states of `embeddings` after the cached texts, with gradient to the embeddings.

    `states` is not modified, so it can be reused for any number of suffixes.

    Args:
        additions: Vectors by layer, added to the hidden states of the embeddings that enter the layer.
    """
    batch, prompt = embeddings.shape[:2]
    # the cache is changed by the forward pass, the tensors in it are not
    cache = DynamicCache(zip(states.keys, states.values, strict=True)) if states.keys else DynamicCache()
    lengths = states.mask.sum(dim=1, keepdim=True)  # [batch 1]
    own = torch.ones(batch, prompt, dtype=states.mask.dtype, device=states.mask.device)
    with add_to_layer_inputs(decoder, additions or {}):
        output = decoder(
            inputs_embeds=embeddings.to(decoder.dtype),
            attention_mask=torch.cat([states.mask, own], dim=1),
            position_ids=lengths + torch.arange(prompt, device=lengths.device),
            past_key_values=cache,
            use_cache=True,
        )
    return output.last_hidden_state


def forward_suffixes(
    decoder: PreTrainedModel,
    states: TextCache,
    embeddings: Float[Tensor, "continuations prompt dim"],
    additions: Mapping[int, Float[Tensor, "continuations prompt dim"]] | None = None,
) -> Float[Tensor, "continuations batch prompt dim"]:
    """Compute the final hidden states of several suffixes after every cached text, as `forward_suffix` for each.

    The suffixes share one pass under a block-diagonal mask, and the keys and values of the texts are not copied.
    Where a sliding window would count other suffixes, they run one by one.

    Args:
        additions: As in `forward_suffix`.
    """
    additions = additions or {}
    together = max(_QUERIES // embeddings.shape[1], 1)
    if _window(decoder) < states.mask.shape[1] + embeddings.shape[1]:
        together = 1
    parts = []
    for start in range(0, len(embeddings), together):
        rows = slice(start, start + together)
        own = {layer: addition[rows] for layer, addition in additions.items()}
        parts.append(_forward_side_by_side(decoder, states, embeddings[rows], own))
    return torch.cat(parts)


def _window(decoder: PreTrainedModel) -> float:
    """Return the smallest attention window of all layers, in tokens."""
    windows = (getattr(decoder.config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return min((window for window in windows if window is not None), default=float("inf"))


def _forward_side_by_side(
    decoder: PreTrainedModel,
    states: TextCache,
    embeddings: Float[Tensor, "continuations prompt dim"],
    additions: Mapping[int, Float[Tensor, "continuations prompt dim"]],
) -> Float[Tensor, "continuations batch prompt dim"]:
    count, prompt, dim = embeddings.shape
    batch = len(states.mask)
    if count == 1:
        alike = {layer: addition.expand(batch, -1, -1) for layer, addition in additions.items()}
        return forward_suffix(decoder, states, embeddings.expand(batch, -1, -1), alike).unsqueeze(0)
    cache = DynamicCache(zip(states.keys, states.values, strict=True)) if states.keys else DynamicCache()
    place = torch.arange(count * prompt, device=embeddings.device)
    own, step = place // prompt, place % prompt
    among = (own.unsqueeze(1) == own) & (step.unsqueeze(1) >= step)  # earlier tokens of the same suffix
    text = states.mask.bool()[:, None, None, :].expand(-1, 1, len(place), -1)
    with add_to_layer_inputs(decoder, {layer: addition.reshape(1, -1, dim) for layer, addition in additions.items()}):
        output = decoder(
            inputs_embeds=embeddings.reshape(1, -1, dim).expand(batch, -1, -1).to(decoder.dtype),
            attention_mask=torch.cat([text, among.expand(batch, 1, -1, -1)], dim=-1),
            position_ids=states.mask.sum(dim=1, keepdim=True) + step,
            past_key_values=cache,
            use_cache=True,
        )
    return output.last_hidden_state.reshape(batch, count, prompt, dim).transpose(0, 1)


def forward_embeddings(
    decoder: PreTrainedModel, embeddings: Float[Tensor, "batch seq dim"], mask: Int[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq dim"]:
    """Compute the final hidden states of input embeddings in one full pass, with gradient and padding on any side."""
    output = decoder(
        inputs_embeds=embeddings.to(decoder.dtype),
        attention_mask=mask,
        position_ids=text_positions(mask),
        use_cache=False,
    )
    return output.last_hidden_state


def forward_tokens(
    decoder: PreTrainedModel, ids: Int[Tensor, "batch seq"], mask: Int[Tensor, "batch seq"], *, bidirectional: bool
) -> Float[Tensor, "batch seq dim"]:
    """Compute the final hidden states of left-padded tokens in one full pass, with gradient to trainable weights.

    Args:
        bidirectional: Let every token attend to all tokens of its text.
    """
    if ids.shape[1] == 0:  # all texts are empty
        return torch.zeros(ids.shape[0], 0, decoder.config.hidden_size, device=ids.device)
    attention = {"is_causal": False} if bidirectional else {}
    output = decoder(
        input_ids=ids, attention_mask=mask, position_ids=text_positions(mask), use_cache=False, **attention
    )
    return output.last_hidden_state
