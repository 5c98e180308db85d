"""Load a frozen or trainable LLM backbone: dtype, architecture quirks, weights and tokenizer."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel

from promptembedder.backbone.gguf import convert_gguf
from promptembedder.backbone.packing import ATTENTION
from promptembedder.backbone.quantization import quantize, require_quantization
from promptembedder.backbone.random_models import random_model, random_tokenizer, shortened
from promptembedder.backbone.sources import (
    INSTEAD,
    BackboneSource,
    default_cache_folder,
    find_source,
    hub_refusal,
    quiet_transformers,
    sha256_of,
)
from promptembedder.backbone.tokenizer import TextTokenizer
from promptembedder.errors import BackboneError, ConfigError, short_repr
from promptembedder.types import Float, Tensor

__all__ = [
    "DTYPES",
    "ArchitectureQuirks",
    "Backbone",
    "BackboneConfig",
    "BackboneIdentity",
    "architecture_quirks",
    "load_backbone",
    "resolve_dtype",
]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_dtype(name: str, *, device: torch.device | str = "cpu") -> torch.dtype:
    """The dtype that `name` stands for; `auto` is bfloat16 where the device multiplies it much faster, else float32.

    Raises:
        ConfigError: `name` is unknown.
    """
    if name == "auto":
        return torch.bfloat16 if _is_fast_in_bfloat16(torch.device(device).type) else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"unknown dtype {short_repr(name)}. Use one of: auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


@cache
def _is_fast_in_bfloat16(device_type: str) -> bool:
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device_type == "cpu" and "amx_bf16" in _cpu_flags()


def _cpu_flags() -> set[str]:
    """Instruction sets as Linux names them; empty elsewhere.

    Only matrix units make bf16 much faster on a CPU (10x here, where plain vector units gain nothing or lose). Timing a
    small product instead was tried: on a busy machine it gave different answers from run to run.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


@dataclass(frozen=True, kw_only=True)
class ArchitectureQuirks:
    """How a family departs from the plain case (Llama, Qwen, Mistral, SmolLM: all defaults).

    Attributes:
        table_scale: What the embedding module multiplies its rows by: `none` or `sqrt_dim`. Inputs given as vectors
            must carry that factor themselves. Families that multiply inside the forward pass count as `none`.
        needs_bos: Reads badly without its begin-of-sequence token, whatever the tokenizer's files say.
        learned_positions: Positions past the table do not exist: the length limit is hard.
    """

    table_scale: str = "none"
    needs_bos: bool = False
    learned_positions: bool = False

    def expected_scale(self, config: PretrainedConfig) -> float:
        """Factor between a row of the embedding weights and the input vector that the model makes of it."""
        return float(config.hidden_size) ** 0.5 if self.table_scale == "sqrt_dim" else 1.0


_GEMMA = ArchitectureQuirks(table_scale="sqrt_dim", needs_bos=True)
_BY_MODEL_TYPE = {
    "gemma": _GEMMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gpt2": ArchitectureQuirks(learned_positions=True),
    "opt": ArchitectureQuirks(learned_positions=True),
}


def architecture_quirks(config: PretrainedConfig) -> ArchitectureQuirks:
    """Return the quirks of the model family, by default none."""
    return _BY_MODEL_TYPE.get(config.model_type, ArchitectureQuirks())


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Source, precision and depth of an LLM.

    Attributes:
        source: Installed name, hub id, folder, `.gguf` file or `random:NAME`.
        revision: Branch, tag or commit of a hub id.
        dtype: `auto`, `float32`, `bfloat16` or `float16`; auto is bfloat16 where the device is much faster in it.
        layers: Keep the first N layers only; None keeps all.
        text_start: What every text begins with where the tokenizer puts no BOS before it; empty for nothing. The first
            token of all serves a decoder as attention sink (Xiao et al. 2024, arXiv:2309.17453) and its own meaning
            is lost, so it should not be a word of the text.
        quantization: `int8` keeps the weights of a frozen LLM in a quarter of float32's memory; None as they are.
    """

    source: str = "smollm2-135m"
    revision: str | None = None
    dtype: str = "auto"
    layers: int | None = None
    text_start: str = "\n"
    quantization: str | None = None

    def __post_init__(self) -> None:
        require_quantization(self.quantization)


@dataclass(frozen=True, kw_only=True)
class BackboneIdentity:
    """Reference to a backbone that a saved model contains instead of its weights.

    Attributes:
        fingerprint: `sha256:...` of local weights, `commit:...` of a hub id, `random:...` of a random model.
    """

    source: str
    revision: str | None
    dtype: str
    layers: int
    fingerprint: str
    quantization: str | None = None


class Backbone(nn.Module):
    """A frozen decoder with its tokenizer, input table and quirks."""

    def __init__(self, model: PreTrainedModel, tokenizer: TextTokenizer, ref: BackboneIdentity) -> None:
        """Freeze `model` (with or without a language-model head) in evaluation mode."""
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.identity = ref
        _check_table(model, ref.source)
        self.quirks: ArchitectureQuirks = architecture_quirks(model.config)
        self.embedding_scale = _measured_scale(model, self.quirks, ref.source)
        self.mean_embedding_norm = self.embedding_scale * float(self.input_embeddings.float().norm(dim=-1).mean())

    @property
    def decoder(self) -> PreTrainedModel:
        """The stack of layers, without a head."""
        return self.model.base_model

    @property
    def input_embeddings(self) -> Float[Tensor, "vocab dim"]:
        """Input embedding weights; times `embedding_scale` they are what the first layer reads."""
        return self.model.get_input_embeddings().weight

    @property
    def dim(self) -> int:
        """Width of the input space."""
        return self.input_embeddings.shape[1]

    @property
    def max_positions(self) -> int | None:
        """Hard limit on text plus soft tokens, where positions are a learned table; None elsewhere."""
        return int(self.model.config.max_position_embeddings) if self.quirks.learned_positions else None

    @torch.no_grad()
    def init_embeddings(self, phrase: str, count: int) -> Float[Tensor, "prompt dim"]:
        """Input vectors of the last `count` tokens of `phrase`, repeated if it is shorter; zeros for no phrase."""
        if not phrase:
            return torch.zeros(count, self.dim)
        ids = self.tokenizer.hf(phrase, add_special_tokens=False)["input_ids"]
        ids = (ids * count)[-count:]
        return self.embedding_scale * self.input_embeddings[ids].float()

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in evaluation mode: dropout and cache-less training paths are not for a frozen model."""
        # going through all modules of an LLM takes milliseconds, and every `encode` asks for it
        return super().train(False) if self.training else self


def load_backbone(config: BackboneConfig, *, head: bool, cache_folder: Path | None = None) -> Backbone:
    """Load the frozen LLM of `config` on the CPU.

    Args:
        head: Keep the language-model head; the prompter needs it, the reader does not.
        cache_folder: Where converted GGUF files are kept; None is `default_cache_folder()`.

    Raises:
        BackboneError: It cannot be found, is damaged, or scales its inputs in a way we do not know.
    """
    source = find_source(config.source)
    dtype = resolve_dtype(config.dtype)
    if source.kind == "random":
        model = random_model(source.name.removeprefix("random:"), layers=config.layers, dtype=dtype)
        tokenizer, fingerprint = random_tokenizer(), source.name
        model = model if head else model.base_model
    else:
        model, tokenizer, fingerprint = _load_files(source, config, dtype, head, cache_folder or default_cache_folder())
    if config.quantization is not None:
        quantize(model, config.quantization)
    ref = BackboneIdentity(
        source=config.source,
        revision=config.revision,
        dtype=str(dtype).removeprefix("torch."),
        layers=model.config.num_hidden_layers,
        fingerprint=fingerprint,
        quantization=config.quantization,
    )
    needs_bos = architecture_quirks(model.config).needs_bos
    return Backbone(model, TextTokenizer(tokenizer, needs_bos=needs_bos, text_start=config.text_start), ref)


def _load_files(
    source: BackboneSource, config: BackboneConfig, dtype: torch.dtype, head: bool, cache_folder: Path
) -> tuple[PreTrainedModel, object, str]:
    """Model, tokenizer and fingerprint from a GGUF, a folder or the hub."""
    if source.kind in ("installed", "gguf"):
        folder, digest = convert_gguf(source, cache_folder)
        location, fingerprint = str(folder), f"sha256:{digest}"
    elif source.kind == "folder":
        weights = sorted(source.parts[0].glob("*.safetensors"))
        if not weights:
            raise BackboneError(
                f"folder {source.name!r} holds no .safetensors weights. Save the model with safetensors."
            )
        location, fingerprint = str(source.parts[0]), f"sha256:{sha256_of(weights)}"
    else:
        location, fingerprint = source.name, ""
    auto = AutoModelForCausalLM if head else AutoModel
    try:
        with quiet_transformers():
            hf_config = shortened(AutoConfig.from_pretrained(location, revision=config.revision), config.layers)
            model, report = auto.from_pretrained(
                location,
                config=hf_config,
                revision=config.revision,
                dtype=dtype,
                attn_implementation=ATTENTION,
                use_safetensors=True,  # never a pickle
                output_loading_info=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(location, revision=config.revision)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        refusal = hub_refusal(source.name, error, instead=INSTEAD) if source.kind == "hub" else None
        reason = refusal or str(error).strip().splitlines()[0]
        raise BackboneError(f"cannot load backbone {source.name!r}: {reason}") from error
    if report["missing_keys"]:  # transformers draws them at random and carries on
        missing = sorted(report["missing_keys"])
        raise BackboneError(f"backbone {source.name!r} lacks {len(missing)} weights, {missing[0]} first. Get it again.")
    if source.kind == "hub":
        fingerprint = f"commit:{getattr(hf_config, '_commit_hash', None)}"
    return model, tokenizer, fingerprint


def _check_table(model: PreTrainedModel, name: str) -> None:
    """Refuse what reads no tokens, and a table that would make every embedding NaN."""
    kind = model.config.model_type
    no_table = f"backbone {name!r} ({kind}) has no table of input embeddings. Choose a text decoder."
    try:
        table = model.get_input_embeddings()
    except NotImplementedError as error:  # what transformers raises where it finds none
        raise BackboneError(no_table) from error
    if not isinstance(table, nn.Embedding):
        raise BackboneError(no_table)
    if not bool(torch.isfinite(table.weight).all()):
        raise BackboneError(f"the input table of backbone {name!r} ({kind}) holds NaN or inf. Get its weights again.")


@torch.no_grad()
def _measured_scale(model: PreTrainedModel, quirks: ArchitectureQuirks, name: str) -> float:
    """Measure the factor that the embedding module applies to its rows and check it against the quirks."""
    module = model.get_input_embeddings()
    rows = module.weight[:256].float()
    inputs = module(torch.arange(len(rows), device=rows.device)).float()
    scale = float((inputs * rows).sum() / rows.square().sum())
    expected = quirks.expected_scale(model.config)
    if abs(scale / expected - 1) > 0.02 or not torch.allclose(
        inputs, scale * rows, atol=1e-2 * float(inputs.abs().max())
    ):
        raise BackboneError(
            f"backbone {name!r} ({model.config.model_type}) scales its input table by {scale:.3g}, "
            f"expected {expected:.3g}: its family needs a row in backbone/load.py."
        )
    return scale
