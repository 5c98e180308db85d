"""Reading a text once and going on from there: the states that no instruction and no training step changes.

In a causal LLM the states of a text do not depend on what follows it. So the text is read without gradient, and soft
tokens after it attend to its keys and values as constants: the gradients for the soft tokens are exact.
"""

from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel

from promptembedder.nn import text_positions
from promptembedder.shapes import Float, Int, Tensor

__all__ = ["TextStates", "read_after", "read_embeddings", "read_text"]


@dataclass(frozen=True)
class TextStates:
    """What a decoder remembers of a batch of left-padded texts.

    Attributes:
        keys: One a layer, [batch heads seq head_dim]; empty where no text has a token.
        values: As `keys`.
        mask: [batch seq], 1 for a token.
        last_hidden: [batch seq dim], the final states; what frozen pooling uses.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Int[Tensor, "batch seq"]
    last_hidden: Float[Tensor, "batch seq dim"]


@torch.no_grad()
def read_text(decoder: PreTrainedModel, ids: Int[Tensor, "batch seq"], mask: Int[Tensor, "batch seq"]) -> TextStates:
    """The states of left-padded texts; no gradient, whatever the caller's mode."""
    if ids.shape[1] == 0:  # nothing but empty texts
        width = decoder.config.hidden_size
        return TextStates((), (), mask, torch.zeros(ids.shape[0], 0, width, device=ids.device))
    # A plain cache keeps every position in every layer; sliding windows are then a matter of the mask alone. The
    # per-layer window caches drop positions by column, padding included.
    cache = DynamicCache()
    output = decoder(
        input_ids=ids,
        attention_mask=mask,
        position_ids=text_positions(mask),
        past_key_values=cache,
        use_cache=True,
    )
    keys = tuple(layer.keys for layer in cache.layers)
    values = tuple(layer.values for layer in cache.layers)
    return TextStates(keys, values, mask, output.last_hidden_state)


def read_after(
    decoder: PreTrainedModel, states: TextStates, embeddings: Float[Tensor, "batch prompt dim"]
) -> Float[Tensor, "batch prompt dim"]:
    """Final states of `embeddings` placed right after the texts of `states`, with gradient to the embeddings.

    `states` is left as it was, so any number of continuations can follow.
    """
    batch, prompt = embeddings.shape[:2]
    # the cache is changed by the forward pass, the tensors in it are not
    cache = DynamicCache(zip(states.keys, states.values, strict=True)) if states.keys else DynamicCache()
    lengths = states.mask.sum(dim=1, keepdim=True)  # [batch 1]
    own = torch.ones(batch, prompt, dtype=states.mask.dtype, device=states.mask.device)
    output = decoder(
        inputs_embeds=embeddings.to(decoder.dtype),
        attention_mask=torch.cat([states.mask, own], dim=1),
        position_ids=lengths + torch.arange(prompt, device=lengths.device),
        past_key_values=cache,
        use_cache=True,
    )
    return output.last_hidden_state


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
