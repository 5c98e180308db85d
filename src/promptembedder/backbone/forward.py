"""Forward passes of a frozen decoder: prefill a text's KV cache, run soft tokens on top of it, or both at once."""

from collections.abc import Sequence
import torch
from promptembedder.types import Bool, Int, Tensor
from collections.abc import Mapping
from dataclasses import dataclass
from transformers import PreTrainedModel
from promptembedder.backbone.packing import ATTENTION
from promptembedder.backbone.layers import added_states, cache_with_exit, handed_on
from promptembedder.backbone.packing import Packing, has_varlen, packing_texts
from promptembedder.backbone.sharding import is_sharded
from promptembedder.types import Float, Int, Tensor
from collections.abc import Mapping, Sequence
from contextlib import suppress
from transformers import DynamicCache, PreTrainedModel
from promptembedder.backbone.layers import EnoughError, added_states, cache_with_exit, handed_on
from promptembedder.backbone.packing import Packing, packing_texts

__all__ = ['TextStates', 'gathered_states', 'left_padded', 'left_padded_rows', 'packs', 'read_after', 'read_each_after', 'read_embeddings', 'read_hidden', 'read_text', 'read_text_and_after', 'read_tokens', 'text_positions']

def left_padded(
    ids: Int[Tensor, "batch seq"], mask: Int[Tensor, "batch seq"] | Bool[Tensor, "batch seq"]
) -> tuple[Int[Tensor, "batch kept"], Int[Tensor, "batch kept"]]:
    """The same tokens with all padding moved to the left, whatever side (or sides) it was on, as narrow as they allow.

    With the text at the end of each row, soft tokens follow it directly: sliding windows, which count columns, then
    see the same distances as in an unpadded text.
    """
    mask = mask.long()
    order = mask.argsort(dim=1, stable=True)  # padding (0) first, tokens (1) in their order
    width = max(int(mask.sum(dim=1).max()), 0) if mask.numel() else 0
    first = mask.shape[1] - width  # columns that are padding in every row
    return ids.gather(1, order)[:, first:], mask.gather(1, order)[:, first:]


def left_padded_rows(
    rows: Sequence[Sequence[int]], *, device: torch.device | None = None, width: int | None = None
) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """Ids and mask of rows of ids, padded with zeros on the left to `width`, by default the longest one's."""
    if width is None:
        width = max(map(len, rows), default=0)
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], dtype=torch.long)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], dtype=torch.long)
    return ids.reshape(len(rows), width).to(device), mask.reshape(len(rows), width).to(device)


def text_positions(mask: Int[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"]:
    """Position of each token in its own text, counted from 0; padding gets 0."""
    return (mask.cumsum(dim=1) - 1).clamp_min(0)


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


_QUERIES = 128  # beside each other in one pass; each also meets the others, only to be masked


@dataclass(frozen=True)
class TextStates:
    """What a decoder remembers of a batch of left-padded texts.

    Attributes:
        keys: One a layer, [batch heads seq head_dim]; empty where no text has a token.
        values: As `keys`.
        mask: [batch seq], 1 for a token.
        hidden: [batch seq dim], the final states, or those after fewer layers if the reading asked for them.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Int[Tensor, "batch seq"]
    hidden: Float[Tensor, "batch seq dim"]


@torch.no_grad()
def read_text(
    decoder: PreTrainedModel,
    ids: Int[Tensor, "batch seq"],
    mask: Int[Tensor, "batch seq"],
    *,
    hidden_layers: int | None = None,
    exit_layer: int | None = None,
) -> TextStates:
    """The states of left-padded texts; no gradient, whatever the caller's mode.

    Padding is left out where the decoder `packs`; texts of one length should stand together.

    Args:
        hidden_layers: `TextStates.hidden` is what so many layers make of the texts; None: the final states.
        exit_layer: Layers that the texts go through; the keys and values of deeper ones are made of the states there.
            None: all.
    """
    if ids.shape[1] == 0:  # nothing but empty texts
        width = decoder.config.hidden_size
        return TextStates((), (), mask, torch.zeros(ids.shape[0], 0, width, device=ids.device))
    # A plain cache keeps every position in every layer; sliding windows are then a matter of the mask alone. The
    # per-layer window caches drop positions by column, padding included.
    cache = DynamicCache() if exit_layer is None else cache_with_exit(decoder, exit_layer)
    of_text, positions = mask.bool(), text_positions(mask)
    packing = None
    if not bool(of_text.all()) and packs(decoder):
        packing = Packing(mask.sum(dim=1).tolist(), after=0, device=mask.device)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    if packing is not None:
        inputs = {name: tensor[of_text].unsqueeze(0) for name, tensor in inputs.items()}
    with packing_texts(packing), handed_on(decoder, hidden_layers) as kept:
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
    return TextStates(keys, values, mask, padded(hidden.unsqueeze(1))[:, 0])


@torch.no_grad()
def read_hidden(
    decoder: PreTrainedModel, ids: Int[Tensor, "batch seq"], mask: Int[Tensor, "batch seq"], *, layers: int
) -> Float[Tensor, "batch seq dim"]:
    """The states of left-padded texts after the first layers; the others are not run."""
    if ids.shape[1] == 0:  # nothing but empty texts
        return torch.zeros(ids.shape[0], 0, decoder.config.hidden_size, device=ids.device)
    with handed_on(decoder, layers, is_last=True) as kept, suppress(EnoughError):
        decoder(input_ids=ids, attention_mask=mask, position_ids=text_positions(mask), use_cache=False)
    return kept[0]


def gathered_states(parts: Sequence[TextStates], rows: Sequence[tuple[int, int]]) -> TextStates:
    """The states of texts from several batches as one batch, padded on the left to the longest.

    Args:
        rows: For each text of the result the batch it is in and its place there; a text may come more than once.
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
    return TextStates(
        keys=tuple(gather([part.keys[layer] if part.keys else None for part in parts], 2) for layer in layers),
        values=tuple(gather([part.values[layer] if part.values else None for part in parts], 2) for layer in layers),
        mask=gather([part.mask for part in parts], 1),
        hidden=gather([part.hidden for part in parts], 1),
    )


def read_after(
    decoder: PreTrainedModel,
    states: TextStates,
    embeddings: Float[Tensor, "batch prompt dim"],
    additions: Mapping[int, Float[Tensor, "batch prompt dim"]] | None = None,
) -> Float[Tensor, "batch prompt dim"]:
    """Final states of `embeddings` placed right after the texts of `states`, with gradient to the embeddings.

    `states` is left as it was, so any number of continuations can follow.

    Args:
        additions: By layer: added to the states of the embeddings where they enter it.
    """
    batch, prompt = embeddings.shape[:2]
    # the cache is changed by the forward pass, the tensors in it are not
    cache = DynamicCache(zip(states.keys, states.values, strict=True)) if states.keys else DynamicCache()
    lengths = states.mask.sum(dim=1, keepdim=True)  # [batch 1]
    own = torch.ones(batch, prompt, dtype=states.mask.dtype, device=states.mask.device)
    with added_states(decoder, additions or {}):
        output = decoder(
            inputs_embeds=embeddings.to(decoder.dtype),
            attention_mask=torch.cat([states.mask, own], dim=1),
            position_ids=lengths + torch.arange(prompt, device=lengths.device),
            past_key_values=cache,
            use_cache=True,
        )
    return output.last_hidden_state


def read_each_after(
    decoder: PreTrainedModel,
    states: TextStates,
    embeddings: Float[Tensor, "continuations prompt dim"],
    additions: Mapping[int, Float[Tensor, "continuations prompt dim"]] | None = None,
) -> Float[Tensor, "continuations batch prompt dim"]:
    """Final states of each of several continuations right after every text: `read_after` for one after the other.

    They stand side by side in one pass, none sees another, and the keys and values of the texts are not copied for
    each of them. Where a sliding window would count the others, they are read one by one.

    Args:
        additions: As in `read_after`.
    """
    additions = additions or {}
    together = max(_QUERIES // embeddings.shape[1], 1)
    if _window(decoder) < states.mask.shape[1] + embeddings.shape[1]:
        together = 1
    parts = []
    for start in range(0, len(embeddings), together):
        rows = slice(start, start + together)
        own = {layer: addition[rows] for layer, addition in additions.items()}
        parts.append(_read_side_by_side(decoder, states, embeddings[rows], own))
    return torch.cat(parts)


def _window(decoder: PreTrainedModel) -> float:
    """Tokens that every layer can look back on."""
    windows = (getattr(decoder.config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return min((window for window in windows if window is not None), default=float("inf"))


def _read_side_by_side(
    decoder: PreTrainedModel,
    states: TextStates,
    embeddings: Float[Tensor, "continuations prompt dim"],
    additions: Mapping[int, Float[Tensor, "continuations prompt dim"]],
) -> Float[Tensor, "continuations batch prompt dim"]:
    count, prompt, dim = embeddings.shape
    batch = len(states.mask)
    if count == 1:
        alike = {layer: addition.expand(batch, -1, -1) for layer, addition in additions.items()}
        return read_after(decoder, states, embeddings.expand(batch, -1, -1), alike).unsqueeze(0)
    cache = DynamicCache(zip(states.keys, states.values, strict=True)) if states.keys else DynamicCache()
    place = torch.arange(count * prompt, device=embeddings.device)
    own, step = place // prompt, place % prompt
    among = (own.unsqueeze(1) == own) & (step.unsqueeze(1) >= step)  # its own continuation up to itself
    text = states.mask.bool()[:, None, None, :].expand(-1, 1, len(place), -1)
    with added_states(decoder, {layer: addition.reshape(1, -1, dim) for layer, addition in additions.items()}):
        output = decoder(
            inputs_embeds=embeddings.reshape(1, -1, dim).expand(batch, -1, -1).to(decoder.dtype),
            attention_mask=torch.cat([text, among.expand(batch, 1, -1, -1)], dim=-1),
            position_ids=states.mask.sum(dim=1, keepdim=True) + step,
            past_key_values=cache,
            use_cache=True,
        )
    return output.last_hidden_state.reshape(batch, count, prompt, dim).transpose(0, 1)


def read_embeddings(
    decoder: PreTrainedModel, embeddings: Float[Tensor, "batch seq dim"], mask: Int[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq dim"]:
    """Final states of one plain full pass over input embeddings, with gradient; padding may be anywhere."""
    output = decoder(
        inputs_embeds=embeddings.to(decoder.dtype),
        attention_mask=mask,
        position_ids=text_positions(mask),
        use_cache=False,
    )
    return output.last_hidden_state


def read_tokens(
    decoder: PreTrainedModel, ids: Int[Tensor, "batch seq"], mask: Int[Tensor, "batch seq"], *, bidirectional: bool
) -> Float[Tensor, "batch seq dim"]:
    """Final states of one plain full pass over left-padded tokens, with gradient if the weights want it.

    Args:
        bidirectional: Let every token look at all of its text, later tokens included.
    """
    if ids.shape[1] == 0:  # nothing but empty texts
        return torch.zeros(ids.shape[0], 0, decoder.config.hidden_size, device=ids.device)
    attention = {"is_causal": False} if bidirectional else {}
    output = decoder(
        input_ids=ids, attention_mask=mask, position_ids=text_positions(mask), use_cache=False, **attention
    )
    return output.last_hidden_state
