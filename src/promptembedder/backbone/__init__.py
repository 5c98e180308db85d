"""LLM backbones: loading, tokenizing, prefilling and running suffixes, whatever the architecture."""

from promptembedder.backbone.batching import MAX_BATCH_TOKENS, ReadingCounts, TextReading, TokenRow, few_widths, in_order, like_length_batches, packed_batches, token_rows
from promptembedder.backbone.forward import TextStates, gathered_states, left_padded, left_padded_rows, packs, read_after, read_each_after, read_embeddings, read_hidden, read_text, read_text_and_after, read_tokens, text_positions
from promptembedder.backbone.gguf import check_gguf, converted_gguf
from promptembedder.backbone.layers import decoder_layers
from promptembedder.backbone.load import Backbone, BackboneConfig, BackboneRef, load_backbone, quirks_of, resolved_dtype
from promptembedder.backbone.random_models import RANDOM_MODELS, random_model, random_tokenizer
from promptembedder.backbone.sharding import shard_layers
from promptembedder.backbone.sources import BackboneSource, INSTALLED_MODELS, default_cache_folder, find_source, hub_refusal, quiet_transformers
from promptembedder.backbone.text_cache import TextStateStore, TextStatesConfig
from promptembedder.backbone.tokenizer import TextTokenizer
from promptembedder.backbone.vocabulary import shared_token_ids

__all__ = ['Backbone', 'BackboneConfig', 'BackboneRef', 'BackboneSource', 'INSTALLED_MODELS', 'MAX_BATCH_TOKENS', 'RANDOM_MODELS', 'ReadingCounts', 'TextReading', 'TextStateStore', 'TextStates', 'TextStatesConfig', 'TextTokenizer', 'TokenRow', 'check_gguf', 'converted_gguf', 'decoder_layers', 'default_cache_folder', 'few_widths', 'find_source', 'gathered_states', 'hub_refusal', 'in_order', 'left_padded', 'left_padded_rows', 'like_length_batches', 'load_backbone', 'packed_batches', 'packs', 'quiet_transformers', 'quirks_of', 'random_model', 'random_tokenizer', 'read_after', 'read_each_after', 'read_embeddings', 'read_hidden', 'read_text', 'read_text_and_after', 'read_tokens', 'resolved_dtype', 'shard_layers', 'shared_token_ids', 'text_positions', 'token_rows']
