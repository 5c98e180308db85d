"""Load a frozen or trainable LLM backbone: dtype, architecture quirks, weights and tokenizer."""

import logging
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel

from promptembedder import extras
from promptembedder.backbone.gguf import convert_gguf
from promptembedder.backbone.packing import ATTENTION
from promptembedder.backbone.random_models import random_model, random_tokenizer, shortened
from promptembedder.backbone.sources import (
    INSTEAD,
    BackboneSource,
    default_cache_folder,
    find_source,
    hub_reachable,
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

QUANTIZATIONS = ("int8",)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_dtype(name: str, *, device: torch.device | str = "cpu") -> torch.dtype:
    """Return the dtype called `name`. `auto` is bfloat16 where it makes matrix products much faster, else float32.

    Raises:
        ConfigError: If `name` is unknown.
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
    """Return the instruction sets of the CPU by their Linux names. Empty on other systems.

    Only matrix units make bfloat16 much faster on a CPU: 10 times in measurements, where plain vector units gain
    nothing or lose. Timing a small product instead gave different results from run to run on a busy machine.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


@dataclass(frozen=True, kw_only=True)
class ArchitectureQuirks:
    """Differences of a model family from the plain case (Llama, Qwen, Mistral, SmolLM: all defaults).

    Attributes:
        table_scale: Factor that the embedding module applies to its rows: `none` or `sqrt_dim`. Inputs given as vectors
            must include this factor. Families that multiply inside the forward pass have `none`.
        needs_bos: The model degrades without its begin-of-sequence token, regardless of the tokenizer's files.
        learned_positions: Positions are a learned table, so its size is a hard length limit.
    """

    table_scale: str = "none"
    needs_bos: bool = False
    learned_positions: bool = False

    def expected_scale(self, config: PretrainedConfig) -> float:
        """Return the factor between a row of the embedding weights and the model's input vector for that token."""
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
        dtype: `auto`, `float32`, `bfloat16` or `float16`. `auto` is bfloat16 on devices where it is much faster.
        layers: Number of layers to keep, from the first. If None, all layers.
        text_start: Text before every text if the tokenizer adds no BOS. If empty, nothing is added. The first token of
            a sequence is an attention sink of decoders (Xiao et al. 2024, arXiv:2309.17453) and loses its own meaning,
            so it should not be a word of the text.
        quantization: `int8` stores the weights of a frozen LLM in a quarter of the memory of float32. If None, the
            weights are not quantized.
    """

    source: str = "smollm2-135m"
    revision: str | None = None
    dtype: str = "auto"
    layers: int | None = None
    text_start: str = "\n"
    quantization: str | None = None

    def __post_init__(self) -> None:
        if self.quantization not in (None, *QUANTIZATIONS):
            raise ConfigError(
                f"unknown quantization {short_repr(self.quantization)}. Use {', '.join(QUANTIZATIONS)}, or leave it "
                "out."
            )


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
    """Frozen decoder with its tokenizer, input embeddings and quirks."""

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
        """Stack of layers without the language-model head."""
        return self.model.base_model

    @property
    def input_embeddings(self) -> Float[Tensor, "vocab dim"]:
        """Input embedding weights. Multiplied by `embedding_scale`, they are the inputs of the first layer."""
        return self.model.get_input_embeddings().weight

    @property
    def dim(self) -> int:
        """Dimension of the input space."""
        return self.input_embeddings.shape[1]

    @property
    def max_positions(self) -> int | None:
        """Hard limit on the number of text and soft tokens if positions are a learned table, else None."""
        return int(self.model.config.max_position_embeddings) if self.quirks.learned_positions else None

    @torch.no_grad()
    def init_embeddings(self, phrase: str, count: int) -> Float[Tensor, "prompt dim"]:
        """Return the input vectors of the last `count` tokens of `phrase`, repeated if shorter. Zeros if empty."""
        if not phrase:
            return torch.zeros(count, self.dim)
        ids = self.tokenizer.hf(phrase, add_special_tokens=False)["input_ids"]
        ids = (ids * count)[-count:]
        return self.embedding_scale * self.input_embeddings[ids].float()

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in evaluation mode: a frozen model needs neither dropout nor training paths without a KV cache."""
        # recursing into all modules of an LLM takes milliseconds in every `encode`
        return super().train(False) if self.training else self


def load_backbone(config: BackboneConfig, *, head: bool, cache_folder: Path | None = None) -> Backbone:
    """Load the frozen LLM of `config` on the CPU.

    Args:
        head: Keep the language-model head, which the prompter needs and the reader does not.
        cache_folder: Folder for converted GGUF files. If None, `default_cache_folder()`.

    Raises:
        BackboneError: If the LLM is missing or damaged, or if it scales its inputs by an unknown factor.
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
        _quantize(model, config.quantization)
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
    """Load model, tokenizer and fingerprint from a GGUF, a folder or the hub."""
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
    origin = {"revision": config.revision, "local_files_only": source.kind == "hub" and not hub_reachable()}
    try:
        with quiet_transformers():
            hf_config = shortened(AutoConfig.from_pretrained(location, **origin), config.layers)
            model, report = auto.from_pretrained(
                location,
                config=hf_config,
                **origin,
                dtype=dtype,
                attn_implementation=ATTENTION,
                use_safetensors=True,  # never a pickle
                output_loading_info=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(location, **origin)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        refusal = hub_refusal(source.name, error, instead=INSTEAD) if source.kind == "hub" else None
        reason = refusal or str(error).strip().splitlines()[0]
        raise BackboneError(f"cannot load backbone {source.name!r}: {reason}") from error
    if report["missing_keys"]:  # transformers initializes missing weights at random
        missing = sorted(report["missing_keys"])
        raise BackboneError(f"backbone {source.name!r} lacks {len(missing)} weights, {missing[0]} first. Get it again.")
    if source.kind == "hub":
        fingerprint = f"commit:{getattr(hf_config, '_commit_hash', None)}"
    return model, tokenizer, fingerprint


def _check_table(model: PreTrainedModel, name: str) -> None:
    """Raise BackboneError if the model has no input embeddings, or if they are not finite."""
    kind = model.config.model_type
    no_table = f"backbone {name!r} ({kind}) has no table of input embeddings. Choose a text decoder."
    try:
        table = model.get_input_embeddings()
    except NotImplementedError as error:  # transformers found no input embeddings
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


def _quantize(model: PreTrainedModel, name: str) -> None:
    """Quantize the weights of all linear layers in place. Hidden states stay in the model's dtype.

    Raises:
        ImportError: If torchao is not installed. The message contains the install command.
        BackboneError: If the model has no torch.nn.Linear layers (GPT-2 uses another class).
    """
    if not any(isinstance(module, nn.Linear) for module in model.modules()):
        kind = model.config.model_type
        raise BackboneError(f"{kind} has no torch.nn.Linear layers, so {name} does nothing. Leave quantization out.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation warnings of torchao
        logging.getLogger("torchao").setLevel(logging.ERROR)  # warnings about kernels of missing GPUs
        torchao = extras.require("torchao.quantization", extra="quant")
        torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
