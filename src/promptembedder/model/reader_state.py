"""Reader-specific part of a saved model: one record for each LLM that the model was transferred to."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from promptembedder.errors import ModelFormatError, first_line, short_repr
from promptembedder.method import ModelConfig, ReaderState
from promptembedder.storage import Manifest, to_mapping
from promptembedder.storage.tensors import load_tensors, save_tensors
from promptembedder.types import Tensor

__all__ = ["ReaderRecord", "find_reader", "load_reader_state", "reader_records", "save_reader_state"]


@dataclass(frozen=True, kw_only=True)
class ReaderRecord:
    """Manifest entry of a reader: configuration and file names without tensors."""

    config: dict[str, Any]
    backbone: dict[str, Any]
    alignment_file: str = "alignment.safetensors"
    soft_tokens_file: str = "soft_tokens.safetensors"
    instructions: list[str] = field(default_factory=list)

    @property
    def source(self) -> str:
        """Backbone string of the reader."""
        return str(self.backbone.get("source"))

    @property
    def files(self) -> list[str]:
        """Names of the files of this entry."""
        return [self.alignment_file, *([self.soft_tokens_file] if self.instructions else [])]


def reader_records(manifest: Manifest) -> list[ReaderRecord]:
    """Return the readers of a saved model, the one that it was saved with first.

    Raises:
        ModelFormatError: If the manifest's list of readers is damaged, or contains files that the manifest does not
            list.
    """
    first = ReaderRecord(
        config=manifest.config, backbone=manifest.backbones.get("reader", {}), instructions=manifest.instructions
    )
    entries = [first, *(_entry(one) for one in manifest.readers)]
    unknown = [name for entry in entries for name in entry.files if name not in manifest.files]
    if unknown:
        raise ModelFormatError(
            f"the manifest names {short_repr(unknown[0])} without its hash. Save or download the model again."
        )
    return entries


def _entry(saved: Any) -> ReaderRecord:
    try:
        entry = ReaderRecord(**saved)
    except TypeError as error:
        raise ModelFormatError(
            f"the manifest's list of readers is damaged: {first_line(error)}. Save the model again."
        ) from error
    texts = entry.instructions
    fits = {
        "config": isinstance(entry.config, dict),
        "backbone": isinstance(entry.backbone, dict),
        "alignment_file": isinstance(entry.alignment_file, str),
        "soft_tokens_file": isinstance(entry.soft_tokens_file, str),
        "instructions": isinstance(texts, list) and all(isinstance(text, str) for text in texts),
    }
    wrong = [name for name, fine in fits.items() if not fine]
    if wrong:
        raise ModelFormatError(f"the manifest's list of readers is damaged: cannot use {wrong[0]}. Save it again.")
    return entry


def find_reader(manifest: Manifest, reader: str | None, folder: Path) -> ReaderRecord:
    """Return the entry of `reader`. If `reader` is None, the first entry.

    Raises:
        ModelFormatError: If the model has no alignment to this reader.
    """
    entries = reader_records(manifest)
    for entry in entries:
        if reader is None or entry.source == reader:
            return entry
    known = ", ".join(entry.source for entry in entries)
    raise ModelFormatError(
        f"{folder} has alignments for {known}, none for {reader!r}. "
        f"Make one: promptembedder transfer {folder} --to {reader}"
    )


def save_reader_state(folder: Path, side: ReaderState, index: int) -> ReaderRecord:
    """Write the tensors of the reader at index `index`. Index 0 is the reader that the model is loaded with."""
    number = f".{index}" if index else ""
    entry = ReaderRecord(
        config=to_mapping(side.config),
        backbone=dict(side.identity),
        alignment_file=f"alignment{number}.safetensors",
        soft_tokens_file=f"soft_tokens{number}.safetensors",
        instructions=list(side.compiled),
    )
    save_tensors(folder / entry.alignment_file, {name: _narrow(tensor) for name, tensor in side.state.items()})
    if side.compiled:
        save_tensors(folder / entry.soft_tokens_file, {"soft_tokens": torch.stack(list(side.compiled.values()))})
    return entry


def _narrow(tensor: Tensor) -> Tensor:
    """Convert a tensor to bfloat16 if the conversion is exact."""
    if tensor.dtype != torch.float32 or not torch.equal(tensor.bfloat16().float(), tensor):
        return tensor
    return tensor.bfloat16()


def load_reader_state(folder: Path, entry: ReaderRecord, config: ModelConfig) -> ReaderState:
    """Load the tensors of an entry."""
    return ReaderState(
        config=config,
        identity=entry.backbone,
        state=load_tensors(folder / entry.alignment_file),
        compiled=_compiled(folder, entry),
    )


def _compiled(folder: Path, entry: ReaderRecord) -> dict[str, Tensor]:
    if not entry.instructions:
        return {}
    path = folder / entry.soft_tokens_file
    rows = load_tensors(path).get("soft_tokens", torch.zeros(0))
    if len(rows) != len(entry.instructions):
        raise ModelFormatError(f"{path} holds {len(rows)} sets of vectors, expected {len(entry.instructions)}.")
    return dict(zip(entry.instructions, rows, strict=True))
