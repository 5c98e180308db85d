"""Export folder for other engines: soft tokens, settings and a reference script."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from promptembedder.errors import DataError
from promptembedder.export import reference
from promptembedder.export.stock import check_exportable, needs_own_backbone
from promptembedder.method import SoftTokenEncoder
from promptembedder.model import SELF_TEST_TEXT, PromptEmbedder
from promptembedder.storage import atomic_directory, versions, write_json
from promptembedder.storage.tensors import save_tensors
from promptembedder.types import Float, Tensor

__all__ = ["ExportedFolder", "export_config", "export_soft_tokens", "file_sizes", "require_new"]

BACKBONE_FOLDER = "backbone"


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
    has_backbone = needs_own_backbone(encoder) if with_backbone is None else with_backbone
    config = export_config(encoder, instructions, vectors, kind="soft-tokens", leaves_out=leave_out_text)
    config["backbone"]["folder"] = BACKBONE_FOLDER if has_backbone else None
    tensors = {f"soft_tokens.{index}": one for index, one in enumerate(soft)}
    for entry, (name, tensor) in zip(config["instructions"], tensors.items(), strict=True):
        entry |= {"tensor": name, "sha256": hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()}
    with atomic_directory(folder) as scratch:
        save_tensors(scratch / "soft_tokens.safetensors", tensors)
        shutil.copyfile(reference.__file__, scratch / "reference.py")
        if has_backbone:
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
