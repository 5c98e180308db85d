"""Export folder for engines that only map input embeddings to final hidden states: soft tokens and a script."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from promptembedder.backbone import Backbone, find_source
from promptembedder.data import clean_text
from promptembedder.errors import ConfigError, DataError
from promptembedder.export import reference
from promptembedder.method import SoftTokenEncoder
from promptembedder.model import SELF_TEST_TEXT, PromptEmbedder
from promptembedder.storage import atomic_directory, versions, write_json
from promptembedder.storage.tensors import save_tensors
from promptembedder.types import Float, Tensor

__all__ = [
    "ExportedFolder",
    "check_exportable",
    "export_config",
    "export_soft_tokens",
    "file_sizes",
    "require_new",
    "require_plain_weights",
    "select_instructions",
]

BACKBONE_FOLDER = "backbone"
_LOADABLE_BY_NAME = ("hub", "folder")


@dataclass(frozen=True, kw_only=True)
class ExportedFolder:
    """Result of an export.

    Attributes:
        reproduces: Description of the part of the embedding that the other engine computes.
        bytes: Size of each file.
        max_difference: Largest absolute difference between embeddings of the model and of the export. None if not
            compared.
    """

    folder: Path
    instructions: list[str]
    reproduces: str
    bytes: dict[str, int]
    max_difference: float | None = None


def export_soft_tokens(
    model: PromptEmbedder,
    folder: Path,
    *,
    instructions: Sequence[str],
    leave_out_text: bool = False,
    with_backbone: bool | None = None,
) -> ExportedFolder:
    """Write soft tokens, `export.json` and `reference.py` into the new `folder`.

    Args:
        instructions: Compiled instructions, or any if the model has its prompter.
        leave_out_text: See `check_exportable`.
        with_backbone: Also save the reader. If None, only if no engine could load it by name.

    Raises:
        ConfigError: If an engine without hooks cannot compute the embedding.
        DataError: If `folder` exists.
    """
    encoder = model.encoder.eval()
    require_new(folder)
    check_exportable(encoder, leave_out_text=leave_out_text)
    with torch.inference_mode():
        soft = encoder.soft_tokens(instructions).float().cpu()
        vectors = [_embed_without_text_pooling(encoder, one) for one in instructions]
    if with_backbone is None:  # no engine could load a GGUF, installed, random or shortened reader by its name
        kind = find_source(encoder.reader.identity.source).kind
        with_backbone = encoder.config.reader.layers is not None or kind not in _LOADABLE_BY_NAME
    config = export_config(encoder, instructions, vectors, kind="soft-tokens", leaves_out=leave_out_text)
    config["backbone"]["folder"] = BACKBONE_FOLDER if with_backbone else None
    tensors = {f"soft_tokens.{index}": one for index, one in enumerate(soft)}
    for entry, (name, tensor) in zip(config["instructions"], tensors.items(), strict=True):
        entry |= {"tensor": name, "sha256": hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()}
    with atomic_directory(folder) as scratch:
        save_tensors(scratch / "soft_tokens.safetensors", tensors)
        shutil.copyfile(reference.__file__, scratch / "reference.py")
        if with_backbone:
            encoder.reader.model.save_pretrained(scratch / BACKBONE_FOLDER)
            encoder.tokenizer.save_pretrained(scratch / BACKBONE_FOLDER)
        write_json(scratch / "export.json", config)
    return ExportedFolder(
        folder=folder, instructions=list(instructions), reproduces=config["reproduces"], bytes=file_sizes(folder)
    )


def export_config(
    encoder: SoftTokenEncoder,
    instructions: Sequence[str],
    vectors: Sequence[Float[Tensor, " dim"]],
    *,
    kind: str,
    leaves_out: bool = False,
) -> dict[str, Any]:
    """Build the content of `export.json`: everything that another engine needs to compute embeddings.

    Args:
        vectors: Embedding of `SELF_TEST_TEXT` under each instruction, for comparison by the other engine.
        leaves_out: Text pooling is part of the model's embedding and not of `vectors`.
    """
    config, reader = encoder.config, encoder.reader
    whole = "the model's vector, whole"
    part = (
        f"the model's vector without the text's own states (text_pooling_weight {config.text_pooling_weight:g}): "
        "that of the same model with text_pooling_weight 0"
    )
    tests = [{"text": SELF_TEST_TEXT, "vector": [round(number, 7) for number in one.tolist()]} for one in vectors]
    return {
        "format": 1,
        "kind": kind,
        "reproduces": part if leaves_out and config.text_pooling_weight else whole,
        "backbone": {**asdict(reader.identity), "folder": None},
        "input": {"table": _table_name(encoder), "scale": reader.quirks.expected_scale(reader.model.config)},
        "text": {
            "begins_with": reader.tokenizer.prefix,
            "max_tokens": encoder.max_seq_length,
            "special_strings": "read as plain text",
            "adds_special_tokens": False,
        },
        "placement": config.placement,
        "soft_tokens": config.num_soft_tokens,
        "dim": reader.dim,
        "pooling": config.pooling,
        "normalize": True,
        "instructions": [
            {"instruction": text, "self_test": test} for text, test in zip(instructions, tests, strict=True)
        ],
        "versions": versions(),
    }


def require_new(folder: Path) -> None:
    """Check that a folder does not exist.

    Raises:
        DataError: If the folder exists.
    """
    if folder.exists():
        raise DataError(f"{folder} exists. Name a new folder.")


def file_sizes(folder: Path) -> dict[str, int]:
    """Return the size in bytes of each file, by its path relative to the folder."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}


def _embed_without_text_pooling(encoder: SoftTokenEncoder, instruction: str) -> Float[Tensor, " dim_r"]:
    """Embed the self-test text under an instruction, without text pooling."""
    text_pooling, encoder.text_pooling = encoder.text_pooling, None
    try:
        vector: Tensor = encoder(encoder.instructed_features([SELF_TEST_TEXT], instruction))["sentence_embedding"]
    finally:
        encoder.text_pooling = text_pooling
    return vector[0].float().cpu()


def _table_name(encoder: SoftTokenEncoder) -> str:
    table = encoder.reader.input_embeddings
    return next(name for name, weight in encoder.reader.decoder.named_parameters() if weight is table)


def check_exportable(encoder: SoftTokenEncoder, *, leave_out_text: bool = False) -> None:
    """Check that an engine without hooks can compute the embedding.

    Args:
        leave_out_text: Export the embedding without text pooling, as with text_pooling_weight 0.

    Raises:
        ConfigError: If the model has deep prompts, early exit or text pooling, its soft tokens depend on the text, or
            the reader is quantised.
    """
    config = encoder.config
    gaps, fixes = [], []
    if config.prompter.depends_on_text:
        gaps.append("prompter.template contains {text}, which generates soft tokens for each text")
        fixes.append("a prompter.template without {text}")
    if config.deep_prompt_interval:
        gaps.append(f"deep_prompt_interval {config.deep_prompt_interval} adds soft tokens at deeper layers")
        fixes.append("deep_prompt_interval: 0")
    if config.early_exit_fraction < 1:
        gaps.append(f"early_exit_fraction {config.early_exit_fraction:g} stops texts before the last layer")
        fixes.append("early_exit_fraction: 1")
    leave_out = ""
    if config.text_pooling_weight and not leave_out_text:
        gaps.append(f"text_pooling_weight {config.text_pooling_weight:g} adds hidden states of a middle layer")
        fixes.append("text_pooling_weight: 0")
        if not config.deep_prompt_interval:
            leave_out = " or --leave-out-text"
    if gaps:
        whole = ", or export the complete model with --format onnx" if not config.prompter.depends_on_text else ""
        raise ConfigError(
            f"an engine that takes input vectors cannot compute this model: {'; '.join(gaps)}. "
            f"Train with {', '.join(fixes)}{leave_out}{whole}."
        )
    require_plain_weights(encoder.reader)


def require_plain_weights(reader: Backbone) -> None:
    """Check that the reader is not quantised.

    Raises:
        ConfigError: If the reader is quantised.
    """
    if reader.identity.quantization is not None:
        raise ConfigError(
            f"the reader is quantised ({reader.identity.quantization}), which no other engine reproduces exactly. "
            "Transfer the model to the same LLM without quantization, then export it."
        )


def select_instructions(compiled: Sequence[str], requested: Sequence[str], model: str) -> list[str]:
    """Return the requested compiled instructions without duplicates, or all compiled ones if none is requested.

    Raises:
        ConfigError: If a requested instruction is not compiled, or the model has no compiled instruction.
    """
    wanted = list(dict.fromkeys(clean_text(text).strip() for text in requested)) or list(compiled)
    missing = [text for text in wanted if text not in compiled]
    if missing:
        raise ConfigError(
            f"instruction {missing[0]!r} is not compiled. Run: promptembedder compile {model} --instruction "
            f'"{missing[0]}"'
        )
    if not wanted:
        raise ConfigError(
            f'{model} has no compiled instruction. Run: promptembedder compile {model} --instruction "..." first.'
        )
    return wanted
