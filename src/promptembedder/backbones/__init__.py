"""What we need of a foreign LLM: its weights, input table, text states and quirks."""

from promptembedder.backbones.backbone import Backbone, BackboneConfig, BackboneRef, load_backbone
from promptembedder.backbones.batching import few_widths, like_length_batches, packed_batches
from promptembedder.backbones.gguf import converted_gguf
from promptembedder.backbones.hub import hub_refusal
from promptembedder.backbones.layers import decoder_layers
from promptembedder.backbones.one_pass import packs, read_text_and_after
from promptembedder.backbones.precision import resolved_dtype
from promptembedder.backbones.quiet import quiet_transformers
from promptembedder.backbones.quirks import Quirks, quirks_of
from promptembedder.backbones.random_models import RANDOM_MODELS
from promptembedder.backbones.sharding import shard_layers
from promptembedder.backbones.shared_strings import shared_token_ids
from promptembedder.backbones.sources import INSTALLED_MODELS, BackboneSource, default_cache_folder, find_source
from promptembedder.backbones.states import (
    TextStates,
    gathered_states,
    read_after,
    read_each_after,
    read_embeddings,
    read_hidden,
    read_text,
    read_tokens,
)
from promptembedder.backbones.tokens import TextTokenizer, TokenBatch

__all__ = [
    "INSTALLED_MODELS",
    "RANDOM_MODELS",
    "Backbone",
    "BackboneConfig",
    "BackboneRef",
    "BackboneSource",
    "Quirks",
    "TextStates",
    "TextTokenizer",
    "TokenBatch",
    "converted_gguf",
    "decoder_layers",
    "default_cache_folder",
    "few_widths",
    "find_source",
    "gathered_states",
    "hub_refusal",
    "like_length_batches",
    "load_backbone",
    "packed_batches",
    "packs",
    "quiet_transformers",
    "quirks_of",
    "read_after",
    "read_each_after",
    "read_embeddings",
    "read_hidden",
    "read_text",
    "read_text_and_after",
    "read_tokens",
    "resolved_dtype",
    "shard_layers",
    "shared_token_ids",
]
