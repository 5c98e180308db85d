"""Configuration of a PromptEmbedder, and the numbers of layers and dimensions that follow from it for a reader."""

from dataclasses import dataclass, field, replace
from typing import Any

from promptembedder.backbone import Backbone, BackboneConfig
from promptembedder.errors import ConfigError, check_choice
from promptembedder.method.alignment import AlignmentConfig
from promptembedder.method.pooling import POOLINGS
from promptembedder.method.prompter import PrompterConfig
from promptembedder.method.relaxation import RelaxationConfig

__all__ = ["ModelConfig", "early_exit_layer", "num_prompt_layers", "text_pooling_layer"]

PLACEMENTS = ("suffix", "prefix")
_DEPTH = 0.3  # of the reader's layers; chosen on development tasks, see docs/results.md


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Configuration of a PromptEmbedder.

    Attributes:
        reader: The frozen Embedding LLM.
        num_soft_tokens: K, soft tokens per instruction.
        placement: `suffix`: soft tokens after the text, whose prefill needs no gradient. `prefix`: before it, an
            ablation.
        deep_prompt_interval: Soft tokens also enter every layer of the reader whose index is a multiple of this, each
            through a separate alignment. 0: the input alone.
        deep_prompt_rank: Rank of the alignments of the deeper layers.
        early_exit_fraction: Fraction of the reader's layers that a text is run through, in (0, 1]. Soft tokens run
            through all layers. In the deeper ones they attend to the text's states at the exit layer.
        text_pooling_weight: Weight of the mean frozen text state, which is added to the pooled soft-token state in
            evaluation, both at length 1. 0 disables text pooling.
        text_pooling_layer: Number of reader layers before the pooled text states. If None, 30 % of the layers.
        whitening_rank: Number of directions of largest variance that whitening of the text states shrinks. 0: none.
        instruction_heads: Attention heads with which an instruction pools the text states. 0: the text states are the
            same under every instruction. Needs text pooling.
        pooling: `mean` or `last`, over the states at the soft tokens (placement `prefix`: at the text).
        max_seq_length: Maximum number of tokens of a text. Longer texts are truncated and counted.
        default_instruction: Instruction for texts that are given none.
    """

    prompter: PrompterConfig = field(default_factory=PrompterConfig)
    reader: BackboneConfig = field(default_factory=BackboneConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    relaxation: RelaxationConfig = field(default_factory=RelaxationConfig)
    num_soft_tokens: int = 5
    placement: str = "suffix"
    deep_prompt_interval: int = 1
    deep_prompt_rank: int = 64
    early_exit_fraction: float = 1.0
    text_pooling_weight: float = 1.0
    text_pooling_layer: int | None = None
    whitening_rank: int = 128
    instruction_heads: int = 0
    pooling: str = "mean"
    max_seq_length: int = 512
    default_instruction: str = "Represent the text for retrieval"

    def __post_init__(self) -> None:
        least_values = {
            "num_soft_tokens": 1,
            "max_seq_length": 1,
            "deep_prompt_rank": 1,
            "deep_prompt_interval": 0,
            "whitening_rank": 0,
            "instruction_heads": 0,
        }
        for name, least in least_values.items():
            if getattr(self, name) < least:
                usual = getattr(type(self), name)
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}. Try {usual}.")
        self._check_text_pooling()
        if not 0 < self.early_exit_fraction <= 1:
            raise ConfigError(
                f"early_exit_fraction must be above 0 and at most 1, got {self.early_exit_fraction}. Try 0.7."
            )
        check_choice("placement", self.placement, PLACEMENTS)
        check_choice("pooling", self.pooling, POOLINGS)
        suffix_only = {
            "deep_prompt_interval": self.deep_prompt_interval,
            "text_pooling_weight": self.text_pooling_weight,
            "early_exit_fraction": self.early_exit_fraction < 1,
        }
        for name, enabled in suffix_only.items():
            if enabled and self.placement != "suffix":
                raise ConfigError(
                    f"{name} needs placement 'suffix': only there the text's states are independent of the soft tokens."
                )
        if self.alignment.module.needs_weights and not self.relaxation.has_weights:
            raise ConfigError(
                f"alignment {self.alignment.kind!r} needs vocabulary weights, relaxation {self.relaxation.kind!r} has "
                "none. Use linear."
            )
        if not self.default_instruction.strip():
            raise ConfigError("default_instruction is empty. Describe the task of texts without an instruction.")

    def _check_text_pooling(self) -> None:
        if not 0 <= self.text_pooling_weight < float("inf"):
            raise ConfigError(
                f"text_pooling_weight must not be negative, got {self.text_pooling_weight}. Try 1, or 0 for none."
            )
        if self.instruction_heads and not self.text_pooling_weight:
            raise ConfigError(
                "instruction_heads needs text pooling. Raise text_pooling_weight, or set instruction_heads to 0."
            )
        if self.text_pooling_layer is not None and self.text_pooling_layer < 1:
            raise ConfigError(
                f"text_pooling_layer must be at least 1, got {self.text_pooling_layer}. Leave it out for 30 %."
            )

    @classmethod
    def paper(cls, *, placement: str = "suffix", **changes: Any) -> "ModelConfig":
        """Return the plain method of the paper: soft tokens at the input alone, no text pooling, no initial text.

        Args:
            placement: `suffix` or `prefix`.
            changes: Further fields of the configuration. Its `prompter`, if given, is used without initial text.

        Raises:
            ConfigError: If a value is unknown or out of range.
        """
        plain: dict[str, Any] = {
            "placement": placement,
            "deep_prompt_interval": 0,
            "text_pooling_weight": 0.0,
        } | changes
        plain["prompter"] = replace(plain.get("prompter", PrompterConfig()), init_text="")
        return cls(**plain)


def num_prompt_layers(config: ModelConfig, reader: Backbone) -> int:
    """Count where soft tokens enter the reader: the input, and each `deep_prompt_interval`-th layer."""
    every = config.deep_prompt_interval
    return 1 + (len(range(every, reader.identity.layers, every)) if every else 0)


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
