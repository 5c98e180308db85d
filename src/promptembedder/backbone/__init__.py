"""LLM backbones: loading, tokenizing, prefilling and running suffixes, whatever the architecture."""

from promptembedder.extras import silence_torchao

with silence_torchao():  # before any other import: transformers imports torchao here
    import transformers.modeling_utils  # noqa: F401

from promptembedder.backbone.batching import (
    MAX_BATCH_TOKENS,
    BatchStats,
    TokenBudgetBatcher,
    TokenIds,
    bucket_width,
    length_bucketed_batches,
    packed_batches,
    restore_order,
    unpad,
)
from promptembedder.backbone.forward import (
    TextCache,
    forward_embeddings,
    forward_suffix,
    forward_suffixes,
    forward_tokens,
    forward_with_suffix,
    gather_text_caches,
    hidden_states_at,
    left_pad,
    left_pad_ids,
    prefill,
    supports_packing,
    text_positions,
)
from promptembedder.backbone.gguf import check_gguf, convert_gguf
from promptembedder.backbone.layers import decoder_layers, shard_layers
from promptembedder.backbone.load import (
    Backbone,
    BackboneConfig,
    BackboneIdentity,
    architecture_quirks,
    load_backbone,
    resolve_dtype,
)
from promptembedder.backbone.random_models import RANDOM_MODELS, random_model, random_tokenizer
from promptembedder.backbone.sources import (
    INSTALLED_MODELS,
    BackboneSource,
    default_cache_folder,
    find_source,
    hub_reachable,
    hub_refusal,
    quiet_transformers,
)
from promptembedder.backbone.text_cache import StoredKV, TextCacheConfig, TextCacheStore
from promptembedder.backbone.tokenizer import TextTokenizer, shared_token_ids

__all__ = [
    "INSTALLED_MODELS",
    "MAX_BATCH_TOKENS",
    "RANDOM_MODELS",
    "Backbone",
    "BackboneConfig",
    "BackboneIdentity",
    "BackboneSource",
    "BatchStats",
    "StoredKV",
    "TextCache",
    "TextCacheConfig",
    "TextCacheStore",
    "TextTokenizer",
    "TokenBudgetBatcher",
    "TokenIds",
    "architecture_quirks",
    "bucket_width",
    "check_gguf",
    "convert_gguf",
    "decoder_layers",
    "default_cache_folder",
    "find_source",
    "forward_embeddings",
    "forward_suffix",
    "forward_suffixes",
    "forward_tokens",
    "forward_with_suffix",
    "gather_text_caches",
    "hidden_states_at",
    "hub_reachable",
    "hub_refusal",
    "left_pad",
    "left_pad_ids",
    "length_bucketed_batches",
    "load_backbone",
    "packed_batches",
    "prefill",
    "quiet_transformers",
    "random_model",
    "random_tokenizer",
    "resolve_dtype",
    "restore_order",
    "shard_layers",
    "shared_token_ids",
    "supports_packing",
    "text_positions",
    "unpad",
]
