"""Training methods whose steps are compared, each built as the library builds it."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from promptembedder.backbone import (
    RANDOM_MODELS,
    BackboneConfig,
    TextCacheConfig,
    TextCacheStore,
    convert_gguf,
    default_cache_folder,
    find_source,
    resolve_dtype,
)
from promptembedder.errors import BackboneError, ConfigError
from promptembedder.method import ModelConfig, PrompterConfig
from promptembedder.model import BaselineConfig, BaselineEmbedder, PromptedSentenceTransformer, PromptEmbedder

__all__ = ["INSTRUCTION", "METHODS", "Method", "StepModel", "default_prompter", "prepare_backbone", "require_methods"]

INSTRUCTION = "Retrieve semantically similar text"

_ANY_LENGTH = 1 << 20  # tokens; the benchmark determines the length of its texts
_ALL_IN_MEMORY = TextCacheConfig(memory_gib=1024.0)  # only the process's own limit applies


@dataclass(frozen=True, kw_only=True)
class Method:
    """Training method.

    Attributes:
        deep_prompt_interval: See `ModelConfig`.
        text_pooling_weight: See `ModelConfig`.
        baseline: Name of the baseline. None for the method of this library.
        moved: If True, train only the alignment, as in a transfer, without the prompter in memory.
        held: If True, cache the texts' hidden states in memory, as in a second epoch over the same texts.
    """

    deep_prompt_interval: int = 0
    text_pooling_weight: float = 0.0
    baseline: BaselineConfig | None = None
    moved: bool = False
    held: bool = False


METHODS: dict[str, Method] = {
    "promptembedder": Method(
        deep_prompt_interval=ModelConfig.deep_prompt_interval, text_pooling_weight=ModelConfig.text_pooling_weight
    ),
    "promptembedder-moved": Method(
        deep_prompt_interval=ModelConfig.deep_prompt_interval,
        text_pooling_weight=ModelConfig.text_pooling_weight,
        moved=True,
    ),
    "promptembedder-held": Method(
        deep_prompt_interval=ModelConfig.deep_prompt_interval,
        text_pooling_weight=ModelConfig.text_pooling_weight,
        held=True,
    ),
    "promptembedder-input": Method(),
    "static": Method(baseline=BaselineConfig(kind="static", instruction_variants=((INSTRUCTION,),))),
    "lora": Method(baseline=BaselineConfig(kind="lora", lora_rank=16)),
    "lora-checkpointing": Method(baseline=BaselineConfig(kind="lora", lora_rank=16, gradient_checkpointing=True)),
    "full": Method(baseline=BaselineConfig(kind="full")),
}


@dataclass(frozen=True, kw_only=True)
class StepModel:
    """Model whose training steps are measured.

    Attributes:
        dtype: Number format of the reader, and of its trained weights in `full`. Adapters and the prompter use float32.
    """

    method: str
    reader: str
    prompter: str
    device: str
    dtype: str

    def build(self) -> PromptedSentenceTransformer:
        """Build the untrained model directly on its device.

        Raises:
            BackboneError: If a backbone cannot be loaded.
        """
        method, dtype = METHODS[self.method], str(resolve_dtype(self.dtype, device=self.device))
        config = ModelConfig(
            prompter=PrompterConfig(backbone=BackboneConfig(source=self.prompter, dtype="float32")),
            reader=BackboneConfig(source=self.reader, dtype=dtype.removeprefix("torch.")),
            deep_prompt_interval=method.deep_prompt_interval,
            text_pooling_weight=method.text_pooling_weight,
            max_seq_length=_ANY_LENGTH,
        )
        with torch.device(self.device):
            if method.baseline is None:
                model = PromptEmbedder.create(config=config, device=self.device)
                if method.moved:
                    model.encoder.offload_prompter([INSTRUCTION, config.default_instruction])
                if method.held:
                    model.encoder.text_cache = TextCacheStore(_ALL_IN_MEMORY, model.encoder.reader.identity)
                return model
            return BaselineEmbedder.create(config, method.baseline, device=self.device)


def require_methods(names: Sequence[str]) -> None:
    """Validate the names of methods.

    Raises:
        ConfigError: If a name is unknown or no name is given.
    """
    if not names:
        raise ConfigError(f"no method is named. Use some of: {', '.join(METHODS)}.")
    for name in names:
        if name not in METHODS:
            close = difflib.get_close_matches(name, METHODS, n=1)
            hint = f"Did you mean {close[0]!r}? " if close else ""
            raise ConfigError(f"unknown method {name!r}. {hint}Use some of: {', '.join(METHODS)}.")


def default_prompter(reader: str) -> str:
    """Return the default small prompter of a reader. A random reader has a random prompter."""
    if reader.startswith("random:tiny-"):
        return reader
    return "random:smollm2-135m" if reader.startswith("random:") else "smollm2-135m"


def prepare_backbone(name: str) -> None:
    """Check the name of a backbone, and convert a GGUF file before the measurements.

    Raises:
        BackboneError: If no backbone has this name, or its files are damaged.
    """
    source = find_source(name)
    shape = name.removeprefix("random:")
    if source.kind == "random" and shape not in RANDOM_MODELS:
        raise BackboneError(f"no random model is named {shape!r}. Use one of: {', '.join(RANDOM_MODELS)}.")
    if source.kind in ("installed", "gguf"):
        convert_gguf(source, default_cache_folder())
