"""A folder for other engines: soft tokens, what to do with them, and a script that does it."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from promptembedder.errors import DataError
from promptembedder.export import reference
from promptembedder.export.stock import needs_own_backbone, require_stock
from promptembedder.model import PromptEmbedder
from promptembedder.method import SoftTokenEncoder
from promptembedder.model import SELF_TEST_TEXT
from promptembedder.types import Float, Tensor
from promptembedder.storage import versions, whole_folder, write_json
from promptembedder.storage.tensors import save_tensors

__all__ = ["ExportedFolder", "export_settings", "export_soft_tokens", "file_sizes", "require_new"]

BACKBONE_FOLDER = "backbone"


@dataclass(frozen=True, kw_only=True)
class ExportedFolder:
    """What was written.

    Attributes:
        reproduces: In words, what of the model's vector the other engine computes.
        bytes: Of each file.
        max_difference: Largest absolute difference found between this model's vectors and the export's; None where
            nothing was compared.
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
        instructions: Compiled ones, or any if the model has its prompter.
        leave_out_text: See `require_stock`.
        with_backbone: Write the reader beside them, as transformers saves it; None: where no engine could find it.

    Raises:
        ConfigError: A stock engine cannot compute the model's vector.
        DataError: `folder` exists.
    """
    encoder = model.encoder.eval()
    require_new(folder)
    require_stock(encoder, leave_out_text=leave_out_text)
    with torch.inference_mode():
        soft = encoder.soft_tokens(instructions).float().cpu()
        vectors = [_without_text(encoder, one) for one in instructions]
    has_backbone = needs_own_backbone(encoder) if with_backbone is None else with_backbone
    settings = export_settings(encoder, instructions, vectors, kind="soft-tokens", leaves_out=leave_out_text)
    settings["backbone"]["folder"] = BACKBONE_FOLDER if has_backbone else None
    tensors = {f"soft_tokens.{place}": one for place, one in enumerate(soft)}
    for entry, (name, tensor) in zip(settings["instructions"], tensors.items(), strict=True):
        entry |= {"tensor": name, "sha256": hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()}
    if encoder.head is not None:
        tensors |= {f"head.{name}": tensor.float() for name, tensor in encoder.head.state_dict().items()}
    with whole_folder(folder) as scratch:
        save_tensors(scratch / "soft_tokens.safetensors", tensors)
        shutil.copyfile(reference.__file__, scratch / "reference.py")
        if has_backbone:
            encoder.reader.model.save_pretrained(scratch / BACKBONE_FOLDER)
            encoder.tokenizer.save_pretrained(scratch / BACKBONE_FOLDER)
        write_json(scratch / "export.json", settings)
    return ExportedFolder(
        folder=folder, instructions=list(instructions), reproduces=settings["reproduces"], bytes=file_sizes(folder)
    )


def export_settings(
    encoder: SoftTokenEncoder,
    instructions: Sequence[str],
    vectors: Sequence[Float[Tensor, " dim"]],
    *,
    kind: str,
    leaves_out: bool = False,
) -> dict[str, Any]:
    """What `export.json` holds: all that another engine must know to make the vectors.

    Args:
        vectors: Of `SELF_TEST_TEXT` under each instruction, for the other engine to compare its own with.
        leaves_out: The text's own states are part of the model's vector and not of these.
    """
    settings, reader = encoder.settings, encoder.reader
    whole = "the model's vector, whole"
    part = (
        f"the model's vector without the text's own states (text_weight {settings.text_weight:g}): "
        "that of the same model with text_weight 0"
    )
    tests = [{"text": SELF_TEST_TEXT, "vector": [round(number, 7) for number in one.tolist()]} for one in vectors]
    return {
        "format": 1,
        "kind": kind,
        "reproduces": part if leaves_out and settings.text_weight else whole,
        "backbone": {**asdict(reader.ref), "folder": None},
        "input": {"table": _table_name(encoder), "scale": reader.quirks.expected_scale(reader.model.config)},
        "text": {
            "begins_with": reader.tokenizer.prefix,
            "max_tokens": encoder.max_seq_length,
            "special_strings": "read as plain text",
            "adds_special_tokens": False,
        },
        "placement": settings.placement,
        "soft_tokens": settings.num_soft_tokens,
        "dim": reader.dim,
        "pooling": settings.pooling,
        "has_head": encoder.head is not None,
        "normalize": True,
        "instructions": [
            {"instruction": text, "self_test": test} for text, test in zip(instructions, tests, strict=True)
        ],
        "versions": versions(),
    }


def require_new(folder: Path) -> None:
    """Refuse a folder that is there.

    Raises:
        DataError: It exists.
    """
    if folder.exists():
        raise DataError(f"{folder} exists. Name a new folder.")


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file of a folder, by its path in it."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}


def _without_text(encoder: SoftTokenEncoder, instruction: str) -> Float[Tensor, " dim_r"]:
    """The self-test's vector under an instruction, without the text's own states."""
    readout, encoder.readout = encoder.readout, None
    try:
        vector: Tensor = encoder(encoder.instructed_features([SELF_TEST_TEXT], instruction))["sentence_embedding"]
    finally:
        encoder.readout = readout
    return vector[0].float().cpu()


def _table_name(encoder: SoftTokenEncoder) -> str:
    table = encoder.reader.input_table
    return next(name for name, weight in encoder.reader.decoder.named_parameters() if weight is table)
