"""Baselines on the same reader: LoRA, full fine-tuning, static soft tokens and the frozen LLM."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from sentence_transformers import SentenceTransformer
from torch import nn
from torch.nn import functional as F

from promptembedder.backbone import (
    Backbone,
    BackboneConfig,
    decoder_layers,
    forward_tokens,
    left_pad,
    load_backbone,
    prefill,
)
from promptembedder.data import clean_instruction
from promptembedder.errors import ConfigError, ModelFormatError, check_choice
from promptembedder.method import (
    MAX_TEMPLATE_TOKENS,
    POOLINGS,
    ModelConfig,
    RowInstructions,
    SoftTokenEncoder,
    TextEncoder,
    add_lora,
    backbone_identity,
    build_text_pooling,
    l2_normalize,
    load_verified_backbone,
    model_config,
    num_prompt_layers,
    pool,
    query_width,
    restore_tensors,
    saved_folder,
    saved_state,
)
from promptembedder.model.embedder import PromptedSentenceTransformer
from promptembedder.storage import Manifest, from_mapping, read_manifest, to_mapping, versions, write_manifest
from promptembedder.storage.tensors import save_tensors
from promptembedder.types import Float, Tensor

__all__ = [
    "BASELINE_KIND",
    "BaselineConfig",
    "BaselineEmbedder",
    "PooledEncoder",
    "StaticEncoder",
    "frozen_pooling",
    "load_baseline",
    "save_baseline",
]

BASELINE_KIND = "baseline"
BASELINES = ("static", "lora", "full", "frozen")
FALLBACKS = ("nearest", "default", "shared")
TEMPLATES = ("instruct", "plain", "prompteol")
ATTENTIONS = ("causal", "bidirectional")

Encoder = TypeVar("Encoder", bound=TextEncoder)

WEIGHTS_FILE = "baseline.safetensors"


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
        check_choice("baseline.kind", self.kind, BASELINES)
        check_choice("baseline.template", self.template, TEMPLATES)
        check_choice("baseline.attention", self.attention, ATTENTIONS)
        check_choice("baseline.fallback", self.fallback, FALLBACKS)
        if self.lora_rank < 1:
            raise ConfigError(f"baseline.lora_rank must be at least 1, got {self.lora_rank}. Try 16.")


def save_baseline(folder: Path, encoder: TextEncoder, config: ModelConfig, baseline: BaselineConfig) -> None:
    """Write the trained and fitted tensors of the encoder into `folder`, the manifest last."""
    folder.mkdir(parents=True, exist_ok=True)
    state = saved_state(encoder)
    if state:
        save_tensors(folder / WEIGHTS_FILE, state)
    manifest = Manifest(
        kind=BASELINE_KIND,
        config={"model": to_mapping(config), "baseline": to_mapping(baseline)},
        backbones={"reader": backbone_identity(encoder.reader)},
        files={WEIGHTS_FILE: ""} if state else {},
        provenance=dict(versions()),
    )
    write_manifest(folder, manifest)


def load_baseline(
    folder: Path, make: Callable[[ModelConfig, BaselineConfig, Backbone], Encoder], *, cache_folder: Path | None = None
) -> Encoder:
    """Load the encoder that `save_baseline` wrote.

    Args:
        make: Builds the untrained encoder.

    Raises:
        ModelFormatError: If the folder is incomplete or contains no baseline, or if the backbone's weights have
            changed.
        BackboneError: If the backbone is missing.
    """
    manifest = read_manifest(folder)
    if manifest.kind != BASELINE_KIND or not {"model", "baseline"} <= manifest.config.keys():
        raise ModelFormatError(f"{folder} holds a {manifest.kind}, not a baseline. Open it with load_encoder.")
    config = model_config(manifest)
    reader = load_verified_backbone(config.reader, manifest, "reader", head=False, cache_folder=cache_folder)
    encoder = make(config, from_mapping(BaselineConfig, manifest.config["baseline"]), reader)
    encoder.restore(folder)
    return encoder


class _SavedBaseline(TextEncoder):
    """Saving and loading of a baseline: its trained weights and a manifest, but never the backbone."""

    config: ModelConfig
    baseline: BaselineConfig

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Write the trained weights and the manifest."""
        save_baseline(Path(output_path), self, self.config, self.baseline)

    @classmethod
    def from_folder(cls, folder: Path, *, cache_folder: Path | None = None) -> "TextEncoder":
        """Load the module that `save` wrote."""
        return load_baseline(folder, cls, cache_folder=cache_folder)

    def restore(self, folder: Path) -> None:
        """Copy the trained weights of a saved model into this module in place."""
        read_manifest(folder)
        state = saved_state(self)
        if state:
            restore_tensors(state, folder / WEIGHTS_FILE)


# (prefix without an instruction, prefix with an instruction, suffix)
_TEMPLATES = {
    "plain": ("", "", ""),
    "instruct": ("", "Instruct: {instruction}\nQuery: ", ""),
    "prompteol": ('This text: "', 'Task: {instruction}\nThis text: "', '" means in one word: "'),
}


class PooledEncoder(_SavedBaseline):
    """Reader with pooled text states: their mean, or the state at the last position."""

    def __init__(self, config: ModelConfig, baseline: BaselineConfig, reader: Backbone, *, seed: int = 0) -> None:
        """Prepare `reader` for the baseline: add LoRA adapters, or unfreeze its weights, in place.

        Args:
            seed: Seed of the adapter initialization.
        """
        super().__init__(reader, max_seq_length=config.max_seq_length)
        self.config, self.baseline = config, baseline
        if baseline.kind == "lora":
            add_lora(reader.model, rank=baseline.lora_rank, alpha=baseline.lora_alpha, seed=seed)
        elif baseline.kind == "full":
            reader.float().requires_grad_(True)  # an optimiser's steps are too small for bf16 weights
        if baseline.gradient_checkpointing:
            # renamed in transformers 5.23, where the old name warns
            enable = getattr(reader.model, "activation_checkpointing_enable", None)
            (enable or reader.model.gradient_checkpointing_enable)({"use_reentrant": False})

    def preprocess(
        self, inputs: Sequence[str], prompt: str | RowInstructions | None = None, **_: Any
    ) -> dict[str, Any]:
        """Tokenize the texts within their template.

        Args:
            prompt: Instruction of all texts, or one of each text. If None, the template has no instruction.
        """
        bare, instructed, tail = _TEMPLATES[self.baseline.template]
        each = prompt if isinstance(prompt, RowInstructions) else [prompt] * len(inputs)
        named = [clean_instruction(one) for one in each]
        heads = [instructed.replace("{instruction}", one) if one else bare for one in named]
        return dict(self.token_features(inputs, prefixes=heads, suffixes=[tail] * len(inputs)))

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add `sentence_embedding`, [batch dim_r], float32.

        Embeddings have unit length, or length 0 for an empty text of which no position is pooled.

        Raises:
            WeightsError: If a weight or state is not finite, in evaluation mode.
        """
        ids, mask = left_pad(features["input_ids"], features["attention_mask"])
        over = mask
        if POOLINGS[self.config.pooling].content_only:  # over the text only, shifted like its tokens
            over = left_pad(features["text_mask"], features["attention_mask"])[0]
        trains = self.training and torch.is_grad_enabled() and self.baseline.kind != "frozen"
        bidirectional = self.baseline.attention == "bidirectional"
        with torch.set_grad_enabled(trains):
            states = forward_tokens(self.reader.decoder, ids, mask, bidirectional=bidirectional)
        vectors = l2_normalize(pool(states, over, pooling=self.config.pooling))
        return {**features, "sentence_embedding": self.check_finite(vectors)}

    def embed_columns(self, columns: Sequence[dict[str, Any]]) -> None:
        """Add `sentence_embedding` to the features of each column of a batch, one column at a time."""
        for features in columns:
            features |= self.forward(features)

    def train(self, mode: bool = True) -> "PooledEncoder":
        """Set the mode, also of the reader's layers with gradient checkpointing, which works in training mode only."""
        super().train(mode)
        if self.baseline.gradient_checkpointing:
            for layer in decoder_layers(self.reader.decoder):
                layer.training = mode  # not its submodules: GPT-2 has dropout there
        return self


class StaticEncoder(_SavedBaseline, SoftTokenEncoder):
    """K free vectors per task, trained as a soft prompt (Lester et al. 2021, arXiv:2104.08691), without a prompter.

    The vectors are initialized with the embeddings of the prompter's `init_text`, as the generated tokens are.
    """

    def __init__(self, config: ModelConfig, baseline: BaselineConfig, reader: Backbone) -> None:
        """Initialize a set of vectors per task and for the default instruction, or one shared set."""
        super().__init__(config, reader, text_pooling=build_text_pooling(config, reader))
        if config.placement != "suffix" or config.prompter.depends_on_text:
            raise ConfigError("static soft tokens need placement 'suffix' and a prompter.template without {text}.")
        self._default = self.instruction_of(config.default_instruction)
        if not any(self._default in map(self.instruction_of, one) for one in baseline.instruction_variants):
            baseline = dataclasses.replace(
                baseline, instruction_variants=(*baseline.instruction_variants, (self._default,))
            )
        self.baseline = baseline
        shared = baseline.fallback == "shared"
        self._set_of = {  # keys as in `preprocess`: wordings in data may have surrounding spaces
            self.instruction_of(wording): 0 if shared else index
            for index, one in enumerate(baseline.instruction_variants)
            for wording in one
        }
        count = 1 if shared else len(baseline.instruction_variants)
        start = reader.init_embeddings(config.prompter.init_text, config.num_soft_tokens)
        deeper = (num_prompt_layers(config, reader) - 1) * reader.dim
        queries = query_width(config.instruction_heads, prompt=config.num_soft_tokens)
        self.vectors = nn.Parameter(F.pad(start, (0, deeper + queries)).repeat(count, 1, 1))

    def preprocess(
        self, inputs: Sequence[str], prompt: str | RowInstructions | None = None, **_: Any
    ) -> dict[str, Any]:
        """Tokenize the texts and add their instruction: `prompt`, the default, or one of each text."""
        return self.instructed_features(inputs, prompt)

    def generate(self, instructions: Sequence[str]) -> Float[Tensor, "instructions prompt width"]:
        """Return the vectors of each instruction, or of its fallback."""
        return self.vectors[[self.set_of(instruction) for instruction in instructions]]

    def generate_for_texts(self, features: dict[str, Any]) -> Float[Tensor, "batch prompt width"]:
        """Raise ConfigError: static tokens do not depend on the text."""
        raise ConfigError("static soft tokens do not depend on the text. Remove {text} from prompter.template.")

    def set_of(self, instruction: str) -> int:
        """Return the index of the set of vectors for `instruction`."""
        known = self._set_of.get(self.instruction_of(instruction))
        if known is not None:
            return known
        if self.baseline.fallback == "nearest":
            return self._set_of[self.nearest(instruction)]
        return 0 if self.baseline.fallback == "shared" else self._set_of[self._default]

    def use_fallback(self, fallback: str) -> None:
        """Change the fallback for unseen instructions between `nearest` and `default`, which share their weights.

        Raises:
            ConfigError: If exactly one of the current and the new fallback is `shared`, which has weights of its own.
        """
        if "shared" in (fallback, self.baseline.fallback) and fallback != self.baseline.fallback:
            raise ConfigError("fallback 'shared' has weights of its own. Train a model with it.")
        self.baseline = dataclasses.replace(self.baseline, fallback=fallback)
        self.store.clear()

    def nearest(self, instruction: str) -> str:
        """Return the seen wording with the mean hidden state most similar to that of `instruction`."""
        seen = list(self._set_of)
        limit = min(MAX_TEMPLATE_TOKENS, self.reader.max_positions or MAX_TEMPLATE_TOKENS)
        batch = self.reader.tokenizer.tokenize([instruction, *seen], max_length=limit)
        states = prefill(self.reader.decoder, batch.ids.to(self.device), batch.mask.to(self.device))
        vectors = l2_normalize(pool(states.hidden, batch.text_mask.to(self.device), pooling="mean"))
        # a decoder's mean states share one large direction, independent of the words
        vectors = l2_normalize(vectors - vectors.mean(dim=0))
        return seen[int((vectors[1:] @ vectors[0]).argmax())]


class BaselineEmbedder(PromptedSentenceTransformer):
    """Baseline with the same reader, meaning of `prompt`, trainer, data and losses as the method."""

    @classmethod
    def create(
        cls,
        config: ModelConfig,
        baseline: BaselineConfig,
        *,
        reader: Backbone | None = None,
        cache_folder: Path | None = None,
        device: str | None = None,
        seed: int = 0,
    ) -> "BaselineEmbedder":
        """Build an untrained baseline.

        Args:
            config: Reader, maximum length, pooling and soft tokens. Other settings are ignored.
            reader: Loaded backbone, modified in place by adapters and full training. If None, load
                `config.reader`.
            seed: Seed of the adapter initialization.

        Raises:
            BackboneError: If the reader cannot be loaded.
            ConfigError: If the configuration does not fit the kind of baseline.
        """
        if reader is None:
            reader = load_backbone(config.reader, head=False, cache_folder=cache_folder)
        return cls(modules=[_new_encoder(config, baseline, reader, seed=seed)], device=device)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, cache_folder: Path | None = None, device: str | None = None
    ) -> "BaselineEmbedder":
        """Load a saved baseline, and its backbone from the backbone's own source.

        Raises:
            ModelFormatError: If the folder is incomplete or contains no baseline, or if the backbone's weights have
                changed.
            BackboneError: If the backbone is missing.
        """
        folder = saved_folder(name)
        model = cls(modules=[load_baseline(folder, _new_encoder, cache_folder=cache_folder)], device=device)
        model.restore_config(folder)
        return model.eval()


def _new_encoder(
    config: ModelConfig, baseline: BaselineConfig, reader: Backbone, *, seed: int = 0
) -> StaticEncoder | PooledEncoder:
    if baseline.kind == "static":
        return StaticEncoder(config, baseline, reader)
    return PooledEncoder(config, baseline, reader, seed=seed)


def frozen_pooling(
    reader: Backbone, *, pooling: str = "mean", template: str = "plain", max_seq_length: int = 512
) -> SentenceTransformer:
    """Build a SentenceTransformer that pools the frozen reader's text states.

    Args:
        pooling: `mean` of the text, or `last` for the state at the last position.
        template: Name of a template, see `BaselineConfig`. `plain` has an empty template for texts without an
            instruction.

    Raises:
        ConfigError: If the pooling or template is unknown.
    """
    config = ModelConfig(reader=_config_of(reader), pooling=pooling, max_seq_length=max_seq_length)
    return BaselineEmbedder.create(config, BaselineConfig(kind="frozen", template=template), reader=reader)


def _config_of(reader: Backbone) -> BackboneConfig:
    ref = reader.identity
    start = reader.tokenizer.text_start
    return BackboneConfig(
        source=ref.source, revision=ref.revision, dtype=ref.dtype, layers=ref.layers, text_start=start
    )
