"""Embedding of texts from the command line or standard input, printed as JSON lines."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from promptembedder.cli.console import Report, gc_paused
from promptembedder.errors import ConfigError, DataError
from promptembedder.storage import MANIFEST_NAME, read_manifest

if TYPE_CHECKING:
    from promptembedder import PromptEmbedder

__all__ = ["STANDARD_INPUT", "print_vectors"]

STANDARD_INPUT = "-"
_BATCH_TEXTS = 256


def print_vectors(
    report: Report,
    model: str,
    texts: Sequence[str],
    *,
    instructions: Sequence[str],
    reader: str | None = None,
    quantization: str | None = None,
    max_batch_tokens: int = 8192,
    dimensions: int | None = None,
    precision: str = "float32",
) -> None:
    """Print one JSON object per text and instruction: text, instruction, embedding.

    Args:
        model: Folder or hub id of a saved model, or a backbone, whose untrained model is used with a warning.
        texts: Texts to embed. If empty, the lines of standard input.
        dimensions: Number of dimensions, as in `VectorFormat`.
        precision: Precision, as in `VectorFormat`.

    Raises:
        DataError: There is no text.
        BackboneError: `model` is neither a model nor a backbone.
    """
    with gc_paused():  # seconds
        from promptembedder.batch import VectorFormat

    vector_format = VectorFormat(dimensions=dimensions, precision=precision)
    embedder = _load_model(model, instructions, reader=reader, quantization=quantization)
    vector_format.check(embedder.encoder.reader.dim)
    embedder.max_batch_tokens = max_batch_tokens
    resolved = [embedder.encoder.instruction_of(name) for name in instructions or ("",)]
    count = 0
    for batch in _batches(texts or _lines()):
        vectors = vector_format.reduce(embedder.encode_instructions(batch, resolved))
        for row, text in enumerate(batch):
            for name, rows in zip(resolved, vectors, strict=True):
                content = {"text": text, "instruction": name, "embedding": rows[row].tolist()}
                print(json.dumps(content, ensure_ascii=False))
        count += len(batch)
    if count == 0:
        raise DataError("no text on standard input. Write one text per line.")
    report.result({"texts": count, "instructions": resolved, "dim": dimensions or embedder.encoder.reader.dim})


def _load_model(
    model: str, instructions: Sequence[str], *, reader: str | None, quantization: str | None
) -> "PromptEmbedder":
    with gc_paused():  # seconds
        from promptembedder import PromptEmbedder
        from promptembedder.data import clean_instruction
        from promptembedder.model import is_hub_id, manifest_on, model_config, saved_folder

    if (Path(model) / MANIFEST_NAME).is_file() or is_hub_id(model):
        folder = saved_folder(model)
        manifest = manifest_on(read_manifest(folder), reader, folder)
        default = model_config(manifest).default_instruction
        compiled = {clean_instruction(name) or default for name in instructions or ("",)} <= set(manifest.instructions)
        return PromptEmbedder.from_pretrained(
            folder, reader=reader, quantization=quantization, with_prompter=not compiled
        )
    if reader is not None or quantization is not None:
        raise ConfigError(f"{model} is not a saved model. Omit --reader and --quantization.")
    embedder = PromptEmbedder.create(prompter=model)
    sys.stderr.write(f"{model} is a backbone: the vectors come from an untrained model\n")
    return embedder


def _lines() -> Iterator[str]:
    """Yield the lines of standard input as texts. Empty lines are skipped, as in text files."""
    for line in sys.stdin:
        if line.strip():
            yield line.rstrip("\r\n")


def _batches(texts: Sequence[str] | Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH_TEXTS:
            yield batch
            batch = []
    if batch:
        yield batch
