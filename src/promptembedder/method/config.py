"""Configuration of a PromptEmbedder: nested, frozen, checked at the door."""

from dataclasses import dataclass, field

from promptembedder.backbone import BackboneConfig
from promptembedder.errors import ConfigError, shown
from promptembedder.method.pooling import POOLINGS
from promptembedder.method.alignment import AlignmentConfig
from promptembedder.method.relaxation import RelaxationConfig

__all__ = ["BaselineConfig", "ModelConfig", "PrompterConfig"]

TUNINGS = ("lora", "full", "frozen")
PLACEMENTS = ("suffix", "prefix")
CONDITIONINGS = ("instruction", "instruction_and_text")
BASELINES = ("static", "lora", "full", "frozen")
FALLBACKS = ("nearest", "default", "shared")
TEMPLATES = ("instruct", "plain", "prompteol")
ATTENTIONS = ("causal", "bidirectional")


@dataclass(frozen=True, kw_only=True)
class PrompterConfig:
    """The Prompting LLM and what of it is trained.

    Attributes:
        backbone: Which LLM.
        tuning: `lora`: low-rank adapters on all linear layers; `full`: all weights; `frozen`: none.
        lora_rank: Rank of the adapters.
        lora_alpha: Their scale is `lora_alpha / lora_rank`.
        template: What it reads; `{instruction}` is replaced. Its next tokens become the soft tokens.
        anchor: Phrase whose last tokens the soft tokens start from; empty starts from the generated tokens alone.
    """

    # float32: K recurrent steps add up rounding, and the prompter reads an instruction, not a corpus
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig(dtype="float32"))
    tuning: str = "lora"
    lora_rank: int = 16
    lora_alpha: int = 32
    template: str = "Task: {instruction}\nThe text in a few words:"
    anchor: str = " This text in one word:"

    def __post_init__(self) -> None:
        _choose("prompter.tuning", self.tuning, TUNINGS)
        if self.lora_rank < 1:
            raise ConfigError(f"prompter.lora_rank must be at least 1, got {self.lora_rank}. Try 16.")
        if "{instruction}" not in self.template:
            raise ConfigError(f"prompter.template must hold {{instruction}}, got {shown(self.template)}.")
        if self.backbone.quantization is not None:
            raise ConfigError("prompter.backbone.quantization is for weights that nothing trains. Quantise the reader.")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole PromptEmbedder.

    Attributes:
        reader: The frozen Embedding LLM.
        num_soft_tokens: K, soft tokens an instruction.
        placement: `suffix`: after the text, which is read without gradient; `prefix`: before it, as ablation.
        conditioning: The prompter reads the `instruction`, or `instruction_and_text`.
        deep_every: Soft tokens also enter each such layer of the reader, through an alignment of its own; 0: the input
            alone.
        deep_rank: Rank of the alignments of the deeper layers.
        exit_depth: Share of the reader's layers that a text goes through, in (0, 1]. Deeper ones, which soft tokens go
            through all the same, see the text as it was there.
        text_weight: With which the mean of the text's own frozen states is added, in evaluation, to what the soft
            tokens made of it, both at length 1; 0: not at all.
        text_layers: Layers of the reader after which those states are taken; None: 30 % of them.
        text_rank: Directions along which all texts vary most, and which are shrunk there, once texts to train on tell
            them; 0: none.
        head: A trained linear map on the pooled state; it starts as the identity.
        pooling: Over the states at the soft tokens (`prefix`: at the text): `mean` or `last`.
        max_seq_length: Tokens of a text that are read; the rest is cut and counted.
        default_instruction: Stands in for a text that comes without one.
    """

    prompter: PrompterConfig = field(default_factory=PrompterConfig)
    reader: BackboneConfig = field(default_factory=BackboneConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    relaxation: RelaxationConfig = field(default_factory=RelaxationConfig)
    num_soft_tokens: int = 5
    placement: str = "suffix"
    conditioning: str = "instruction"
    deep_every: int = 1
    deep_rank: int = 64
    exit_depth: float = 1.0
    text_weight: float = 1.0
    text_layers: int | None = None
    text_rank: int = 128
    head: bool = False
    pooling: str = "mean"
    max_seq_length: int = 512
    default_instruction: str = "Represent the text for retrieval"

    def __post_init__(self) -> None:
        least_values = {"num_soft_tokens": 1, "max_seq_length": 1, "deep_rank": 1, "deep_every": 0, "text_rank": 0}
        for name, least in least_values.items():
            if getattr(self, name) < least:
                usual = getattr(type(self), name)
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}. Try {usual}.")
        if not 0 <= self.text_weight < float("inf"):
            raise ConfigError(f"text_weight must not be negative, got {self.text_weight}. Try 1, or 0 for none.")
        if self.text_layers is not None and self.text_layers < 1:
            raise ConfigError(f"text_layers must be at least 1, got {self.text_layers}. Leave it out for 30 %.")
        if not 0 < self.exit_depth <= 1:
            raise ConfigError(f"exit_depth must be above 0 and at most 1, got {self.exit_depth}. Try 0.7.")
        _choose("placement", self.placement, PLACEMENTS)
        _choose("conditioning", self.conditioning, CONDITIONINGS)
        _choose("pooling", self.pooling, POOLINGS)
        asked = {"deep_every": self.deep_every, "text_weight": self.text_weight, "exit_depth": self.exit_depth < 1}
        for name, is_asked in asked.items():
            if is_asked and self.placement != "suffix":
                raise ConfigError(f"{name} needs placement 'suffix': only there the text's states stay untouched.")
        if self.alignment.kind == "vocabulary" and self.relaxation.kind == "hidden":
            raise ConfigError(
                "alignment 'vocabulary' needs vocabulary weights, relaxation 'hidden' has none. Use linear."
            )
        if not self.default_instruction.strip():
            raise ConfigError("default_instruction is empty. Say in words what texts without an instruction are for.")


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """A cheaper or more usual way to make an embedder of the same reader, to compare with.

    It replaces the prompter; reader, length, pooling and the like come from the `ModelConfig` beside it.

    Attributes:
        kind: `static`: free soft tokens for each task; `lora`: adapters on all matrices of the reader; `full`: all its
            weights; `frozen`: nothing is trained.
        lora_rank: Rank of the adapters.
        lora_alpha: Their scale is `lora_alpha / lora_rank`.
        template: How a text and its instruction are put to the reader (not `static`): `instruct`:
            "Instruct: ... Query: ..."; `plain`: the text alone; `prompteol`: asks for the text in one word (Jiang et
            al. 2023, arXiv:2307.16645).
        attention: `causal`, or `bidirectional` (not `static`).
        gradient_checkpointing: Compute activations twice instead of keeping them (`lora`, `full`).
        fallback: What `static` gives an instruction unseen in training: `nearest`: the vectors of the seen wording that
            the frozen reader finds most like it; `default`: those of the default instruction; `shared`: there is one
            set alone, trained on everything.
        wordings: The seen instructions of `static`: those of one entry share their vectors. Filled from the data.
    """

    kind: str = "lora"
    lora_rank: int = 16
    lora_alpha: int = 32
    template: str = "instruct"
    attention: str = "causal"
    gradient_checkpointing: bool = False
    fallback: str = "nearest"
    wordings: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        _choose("baseline.kind", self.kind, BASELINES)
        _choose("baseline.template", self.template, TEMPLATES)
        _choose("baseline.attention", self.attention, ATTENTIONS)
        _choose("baseline.fallback", self.fallback, FALLBACKS)
        if self.lora_rank < 1:
            raise ConfigError(f"baseline.lora_rank must be at least 1, got {self.lora_rank}. Try 16.")


def _choose(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"unknown {name} {shown(value)}. Use one of: {', '.join(known)}.")
