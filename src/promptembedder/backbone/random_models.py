"""Architectures with random weights: tiny ones for tests, real shapes for measuring speed without a download."""

from collections.abc import Callable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from promptembedder.backbone.packing import ATTENTION
from promptembedder.errors import BackboneError

__all__ = ["RANDOM_MODELS", "random_model", "random_tokenizer"]

_TINY_VOCAB = 260  # 256 bytes and four special tokens
_TINY = {"vocab_size": _TINY_VOCAB, "num_hidden_layers": 3, "bos_token_id": 256, "eos_token_id": 257}
_TINY_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


def _tiny_llama() -> PretrainedConfig:
    return LlamaConfig(hidden_size=32, intermediate_size=64, tie_word_embeddings=True, **_TINY, **_TINY_HEADS)


def _tiny_qwen3() -> PretrainedConfig:
    return Qwen3Config(hidden_size=40, intermediate_size=64, tie_word_embeddings=True, **_TINY, **_TINY_HEADS)


def _tiny_gemma3() -> PretrainedConfig:
    return Gemma3TextConfig(
        hidden_size=48,
        intermediate_size=64,
        sliding_window=8,  # shorter than the texts of the tests, so that the window has an effect
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        **_TINY,
        **_TINY_HEADS,
    )


def _tiny_gpt2() -> PretrainedConfig:
    return GPT2Config(
        vocab_size=_TINY_VOCAB,
        n_positions=96,
        n_embd=32,
        n_layer=3,
        n_head=4,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=None,
    )


def _tiny_phi3() -> PretrainedConfig:
    return Phi3Config(
        hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, **_TINY
    )


def _smollm2_135m() -> PretrainedConfig:
    return LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )


def _qwen25_05b() -> PretrainedConfig:
    """Return the configuration of Qwen2.5 0.5B."""
    return Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    )


def _llama_1b() -> PretrainedConfig:
    """Return the configuration of Llama 3.2 1B."""
    return LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131072,
        tie_word_embeddings=True,
    )


def _llama_7b() -> PretrainedConfig:
    return LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)


def _qwen3_8b() -> PretrainedConfig:
    return Qwen3Config(
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        tie_word_embeddings=False,
    )


RANDOM_MODELS: dict[str, Callable[[], PretrainedConfig]] = {
    "tiny-llama": _tiny_llama,
    "tiny-qwen3": _tiny_qwen3,
    "tiny-gemma3": _tiny_gemma3,
    "tiny-gpt2": _tiny_gpt2,
    "tiny-phi3": _tiny_phi3,
    "smollm2-135m": _smollm2_135m,
    "qwen2.5-0.5b": _qwen25_05b,
    "llama-1b": _llama_1b,
    "llama-7b": _llama_7b,
    "qwen3-8b": _qwen3_8b,
}


def random_model(name: str, *, layers: int | None, dtype: torch.dtype, seed: int = 0) -> PreTrainedModel:
    """Build a causal LM of the shape `name` with weights drawn from `seed`, without changing the caller's random state.

    Inside `with torch.device(...)`, the weights are created on that device in `dtype`, so a large shape uses no CPU
    memory.

    Raises:
        BackboneError: If no shape has this name.
    """
    if name not in RANDOM_MODELS:
        raise BackboneError(f"no random model is named {name!r}. Use one of: {', '.join(RANDOM_MODELS)}.")
    config = shortened(RANDOM_MODELS[name](), layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION)


def shortened(config: PretrainedConfig, layers: int | None) -> PretrainedConfig:
    """Reduce the configuration to its first `layers` layers in place and return it. If None, keep all layers.

    Raises:
        BackboneError: If `layers` is out of range.
    """
    depth = config.num_hidden_layers
    if layers is None:
        return config
    if not 1 <= layers <= depth:
        raise BackboneError(f"layers must be between 1 and {depth} for this backbone, got {layers}.")
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[:layers]
    return config


def random_tokenizer() -> PreTrainedTokenizerBase:
    """Build a byte-level tokenizer without merges or padding token: each UTF-8 byte of a text is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|start|>", "<|end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|start|>", eos_token="<|end|>")
