"""How deep texts are read, and where their states lie before they say anything: the start of a readout's centre."""

import torch

from promptembedder.backbone import Backbone, read_hidden
from promptembedder.errors import BackboneError, ConfigError
from promptembedder.method.config import ModelConfig
from promptembedder.method.pooling import TextReadout, pooled
from promptembedder.types import Int, Tensor

__all__ = ["exit_layer", "new_text_readout", "own_tokens", "readout_layers"]

# A dozen different ones are enough: texts of five tasks, at 60 % of SmolLM2's depth, have a mean cosine of 0.89 as they
# are, 0.17 around the mean of these, and 0.57 around that of random tokens.
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


def new_text_readout(config: ModelConfig, reader: Backbone, *, centred: bool = True) -> TextReadout | None:
    """The readout that `config` names; None if it names none.

    Args:
        centred: False leaves the centre at zero, where saved weights are about to be restored.

    Raises:
        BackboneError: The reader has fewer layers than are named.
    """
    layers = readout_layers(config, reader)
    if layers is None:
        return None
    if layers > reader.ref.layers:
        raise BackboneError(f"text_layers is {layers}, and the reader has {reader.ref.layers} layers. Name fewer.")
    centre = torch.zeros(reader.dim)
    if centred:
        batch = reader.tokenizer.tokenize(_SENTENCES, max_length=reader.max_positions or 64)
        ids, mask, own = (one.to(reader.input_table.device) for one in (batch.ids, batch.mask, batch.text_mask))
        hidden = read_hidden(reader.decoder, ids, mask, layers=layers)
        centre = pooled(hidden, own, pooling="mean").mean(dim=0)
    return TextReadout(centre, weight=config.text_weight, rank=config.text_rank)


def readout_layers(config: ModelConfig, reader: Backbone) -> int | None:
    """Layers of the reader after which the readout takes the text's states; None without a readout."""
    if config.text_weight == 0:
        return None
    return config.text_layers or max(round(_DEPTH * reader.ref.layers), 1)


def exit_layer(settings: ModelConfig, reader: Backbone) -> int:
    """Layers of the reader that texts go through. Of the last one keys and values are enough, whatever `exit_depth` is.

    Raises:
        ConfigError: The text's own states are taken after more layers.
    """
    layers, taken = reader.ref.layers, readout_layers(settings, reader) or 1
    depth = max(round(settings.exit_depth * layers), 1)
    if taken > depth:
        raise ConfigError(
            f"exit_depth {settings.exit_depth} is {depth} layers, and the text's own states are taken after {taken}. "
            "Raise it, or lower text_layers."
        )
    return min(depth, max(layers - 1, taken))


def own_tokens(mask: Int[Tensor, "batch seq"], reader: Backbone) -> Int[Tensor, "batch seq"]:
    """`mask` without what every text begins with."""
    return mask * (mask.cumsum(dim=1) > len(reader.tokenizer.prefix))
