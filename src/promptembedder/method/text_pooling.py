"""Layers at which texts exit and are pooled, and the initial centre of the text pooling."""

import torch

from promptembedder.backbone import Backbone, hidden_states_at
from promptembedder.errors import BackboneError, ConfigError
from promptembedder.method.config import ModelConfig
from promptembedder.method.instruction_gate import gate_width
from promptembedder.method.pooling import WhitenedTextPooling, pool
from promptembedder.types import Int, Tensor

__all__ = ["build_text_pooling", "content_mask", "early_exit_layer", "gated_directions", "text_pooling_layer"]

# A dozen suffice: texts of five tasks, at 60 % of SmolLM2's depth, have a mean cosine of 0.89 as they are, 0.17 around
# the mean of these sentences, and 0.57 around the mean of random tokens.
_SENTENCES = (
    "The cat sat on the warm stone and looked at the river.",
    "How do I reset my password?",
    "def add(a, b): return a + b",
    "Scientists found that the drug lowers blood pressure in mice.",
    "Prices rose by three percent last year.",
    "I am so happy that you came!",
    "What is the capital of Australia?",
    "Der Zug kommt um acht Uhr an.",
    "Buy two tickets for the concert on Friday.",
    "The treaty was signed in 1648 after long negotiations.",
    "My card was charged twice, please help.",
    "We propose a new method for training neural networks.",
)
_DEPTH = 0.3  # of the reader's layers; chosen on development tasks, see docs/results.md


def build_text_pooling(config: ModelConfig, reader: Backbone, *, centred: bool = True) -> WhitenedTextPooling | None:
    """Build the text pooling of a configuration, or return None if its weight is 0.

    Args:
        centred: Compute the initial centre. If False, it is zero, to be restored from saved weights.

    Raises:
        BackboneError: If the reader has fewer layers than `text_pooling_layer`.
    """
    layers = text_pooling_layer(config, reader)
    if layers is None:
        return None
    if layers > reader.identity.layers:
        raise BackboneError(
            f"text_pooling_layer is {layers}, but the reader has {reader.identity.layers} layers. Lower it."
        )
    centre = torch.zeros(reader.dim)
    if centred:
        batch = reader.tokenizer.tokenize(_SENTENCES, max_length=reader.max_positions or 64)
        ids, mask, own = (one.to(reader.input_embeddings.device) for one in (batch.ids, batch.mask, batch.text_mask))
        hidden = hidden_states_at(reader.decoder, ids, mask, layers=layers)
        centre = pool(hidden, own, pooling="mean").mean(dim=0)
    return WhitenedTextPooling(
        centre,
        weight=config.text_pooling_weight,
        rank=config.whitening_rank,
        gate_rank=gated_directions(config, reader),
    )


def gated_directions(config: ModelConfig, reader: Backbone) -> int:
    """Return the number of directions that an instruction scales: a multiple of the soft tokens, up to the width."""
    prompt = config.num_soft_tokens
    return prompt * min(gate_width(config.gate_rank, prompt=prompt), reader.dim // prompt)


def text_pooling_layer(config: ModelConfig, reader: Backbone) -> int | None:
    """Return the number of reader layers below the text pooling, or None without text pooling."""
    if config.text_pooling_weight == 0:
        return None
    return config.text_pooling_layer or max(round(_DEPTH * reader.identity.layers), 1)


def early_exit_layer(config: ModelConfig, reader: Backbone) -> int:
    """Return the number of layers that texts go through; the last layer only computes their keys and values.

    Raises:
        ConfigError: If text pooling needs more layers.
    """
    layers, taken = reader.identity.layers, text_pooling_layer(config, reader) or 1
    depth = max(round(config.early_exit_fraction * layers), 1)
    if taken > depth:
        raise ConfigError(
            f"early_exit_fraction {config.early_exit_fraction} is {depth} layers, but text pooling needs {taken}. "
            "Raise it, or lower text_pooling_layer."
        )
    return min(depth, max(layers - 1, taken))


def content_mask(mask: Int[Tensor, "batch seq"], reader: Backbone) -> Int[Tensor, "batch seq"]:
    """Return `mask` with zeros at the tokens that start every text."""
    return mask * (mask.cumsum(dim=1) > len(reader.tokenizer.prefix))
