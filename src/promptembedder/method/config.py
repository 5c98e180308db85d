"""Configuration of a PromptEmbedder: nested frozen dataclasses, validated when they are created."""

from dataclasses import dataclass, field, replace
from typing import Any

from promptembedder.backbone import BackboneConfig
from promptembedder.errors import ConfigError, short_repr
from promptembedder.method.alignment import AlignmentConfig
from promptembedder.method.pooling import POOLINGS
from promptembedder.method.relaxation import RelaxationConfig

__all__ = ["BaselineConfig", "ModelConfig", "PrompterConfig"]

PROMPTER_OUTPUTS = ("token", "state")
TUNINGS = ("lora", "full", "frozen")
PLACEMENTS = ("suffix", "prefix")
BASELINES = ("static", "lora", "full", "frozen")
FALLBACKS = ("nearest", "default", "shared")
TEMPLATES = ("instruct", "plain", "prompteol")
ATTENTIONS = ("causal", "bidirectional")


@dataclass(frozen=True, kw_only=True)
class PrompterConfig:
    """Prompting LLM and its trained weights.

    Attributes:
        backbone: Identifier and dtype of the LLM.
        tuning: `lora`: low-rank adapters on all linear layers; `full`: all weights; `frozen`: none.
        lora_rank: Rank of the adapters.
        lora_alpha: Numerator of the adapters' scale, `lora_alpha / lora_rank`.
        template: Prompt, in which `{instruction}` is replaced, and `{text}` if there is one. The next tokens become the
            soft tokens. With `{text}` they depend on the text, otherwise on the instruction alone.
        output: Vector that the alignment maps: `token`, the relaxed token, or `state`, the standardised hidden state
            that it was computed from.
        init_text: Phrase whose last tokens initialise the soft prompt. If empty, the soft prompt starts at zero.
    """

    # float32: rounding accumulates over K recurrent steps, and an instruction is short
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig(dtype="float32"))
    tuning: str = "lora"
    lora_rank: int = 16
    lora_alpha: int = 32
    template: str = "Task: {instruction}\nThe text in a few words:"
    output: str = "token"
    init_text: str = " This text in one word:"

    def __post_init__(self) -> None:
        _choose("prompter.tuning", self.tuning, TUNINGS)
        _choose("prompter.output", self.output, PROMPTER_OUTPUTS)
        if self.lora_rank < 1:
            raise ConfigError(f"prompter.lora_rank must be at least 1, got {self.lora_rank}. Try 16.")
        if "{instruction}" not in self.template:
            raise ConfigError(f"prompter.template must contain {{instruction}}, got {short_repr(self.template)}.")
        if self.template.count("{text}") > 1:
            raise ConfigError(f"prompter.template must contain {{text}} at most once, got {short_repr(self.template)}.")
        if self.backbone.quantization is not None:
            raise ConfigError("prompter.backbone.quantization is for frozen weights only. Quantise the reader instead.")

    @property
    def depends_on_text(self) -> bool:
        """True if the soft tokens depend on the text: `template` contains `{text}`."""
        return "{text}" in self.template


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
            through
            all layers. In the deeper ones they attend to the text's states at the exit layer.
        text_pooling_weight: Weight of the mean frozen text state, which is added to the pooled soft-token state in
            evaluation, both at length 1. 0 disables text pooling.
        text_pooling_layer: Number of reader layers before the pooled text states. If None, 30 % of the layers.
        whitening_rank: Number of directions of largest variance that whitening of the text states shrinks. 0: none.
        gate_rank: Number of trained directions of the text states that the instruction scales. 0: the text states are
            the same under every instruction. Needs text pooling.
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
    gate_rank: int = 0
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
            "gate_rank": 0,
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
        _choose("placement", self.placement, PLACEMENTS)
        _choose("pooling", self.pooling, POOLINGS)
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
        if self.alignment.kind == "vocabulary" and self.relaxation.kind == "hidden":
            raise ConfigError(
                "alignment 'vocabulary' needs vocabulary weights, relaxation 'hidden' has none. Use linear."
            )
        if not self.default_instruction.strip():
            raise ConfigError("default_instruction is empty. Describe the task of texts without an instruction.")

    def _check_text_pooling(self) -> None:
        if not 0 <= self.text_pooling_weight < float("inf"):
            raise ConfigError(
                f"text_pooling_weight must not be negative, got {self.text_pooling_weight}. Try 1, or 0 for none."
            )
        if self.gate_rank and not self.text_pooling_weight:
            raise ConfigError("gate_rank needs text pooling. Raise text_pooling_weight, or set gate_rank to 0.")
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


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """Configuration of a baseline on the same reader.

    The baseline replaces the prompter. Reader, length and pooling come from a `ModelConfig`.

    Attributes:
        kind: `static`: free soft tokens for each task; `lora`: adapters on all matrices of the reader; `full`: all its
            weights; `frozen`: nothing is trained.
        lora_rank: Rank of the adapters.
        lora_alpha: Numerator of the adapters' scale, `lora_alpha / lora_rank`.
        template: Prompt format of a text and its instruction (not `static`): `instruct`:
            "Instruct: ... Query: ..."; `plain`: the text alone; `prompteol`: asks for the text in one word (Jiang et
            al. 2023, arXiv:2307.16645).
        attention: `causal`, or `bidirectional` (not `static`).
        gradient_checkpointing: Recompute activations in the backward pass instead of storing them (`lora`, `full`).
        fallback: Vectors that `static` uses for an instruction unseen in training. `nearest`: those of the seen
            instruction with the highest cosine under the frozen reader. `default`: those of the default instruction.
            `shared`: a single set for all instructions.
        instruction_variants: Seen instructions of `static`. Those of one entry share their vectors. Filled from the
            data.
    """

    kind: str = "lora"
    lora_rank: int = 16
    lora_alpha: int = 32
    template: str = "instruct"
    attention: str = "causal"
    gradient_checkpointing: bool = False
    fallback: str = "nearest"
    instruction_variants: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        _choose("baseline.kind", self.kind, BASELINES)
        _choose("baseline.template", self.template, TEMPLATES)
        _choose("baseline.attention", self.attention, ATTENTIONS)
        _choose("baseline.fallback", self.fallback, FALLBACKS)
        if self.lora_rank < 1:
            raise ConfigError(f"baseline.lora_rank must be at least 1, got {self.lora_rank}. Try 16.")


def _choose(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"unknown {name} {short_repr(value)}. Use one of: {', '.join(known)}.")
