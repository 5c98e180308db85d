"""Vectors of a few texts, from the command line or standard input, printed as JSON lines."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from promptembedder.cli.console import Report, importing
from promptembedder.errors import ConfigError, DataError
from promptembedder.storage import MANIFEST_NAME, read_manifest

if TYPE_CHECKING:
    from promptembedder import PromptEmbedder

__all__ = ["STANDARD_INPUT", "print_vectors"]

STANDARD_INPUT = "-"
_TEXTS_AT_ONCE = 256


def print_vectors(
    report: Report,
    model: str,
    texts: Sequence[str],
    *,
    instructions: Sequence[str],
    reader: str | None = None,
    quantization: str | None = None,
    max_batch_tokens: int = 8192,
) -> None:
    """One JSON object a text and instruction on stdout: text, instruction, embedding.

    Args:
        model: Folder or hub id of a saved model; or a backbone, whose untrained model is taken, with a word about it.
        texts: None of them: the lines of standard input.

    Raises:
        DataError: There is no text.
        BackboneError: There is neither such a model nor such a backbone.
    """
    embedder = _opened(model, instructions, reader=reader, quantization=quantization)
    embedder.max_batch_tokens = max_batch_tokens
    asked = [embedder.encoder.instruction_of(words) for words in instructions or ("",)]
    count = 0
    for batch in _batches(texts or _lines()):
        vectors = embedder.encode_instructions(batch, asked)
        for place, text in enumerate(batch):
            for words, of_words in zip(asked, vectors, strict=True):
                content = {"text": text, "instruction": words, "embedding": of_words[place].tolist()}
                print(json.dumps(content, ensure_ascii=False))
        count += len(batch)
    if count == 0:
        raise DataError("there is no text on standard input. Write one text a line.")
    report.result({"texts": count, "instructions": asked, "dim": embedder.encoder.reader.dim})


def _opened(
    model: str, instructions: Sequence[str], *, reader: str | None, quantization: str | None
) -> "PromptEmbedder":
    with importing():  # seconds
        from promptembedder import PromptEmbedder
        from promptembedder.data import clean_instruction
        from promptembedder.model import is_hub_id, manifest_on, model_config, saved_folder

    if (Path(model) / MANIFEST_NAME).is_file() or is_hub_id(model):
        folder = saved_folder(model)
        manifest = manifest_on(read_manifest(folder), reader, folder)
        default = model_config(manifest).default_instruction
        compiled = {clean_instruction(words) or default for words in instructions or ("",)} <= set(
            manifest.instructions
        )
        return PromptEmbedder.from_pretrained(
            folder, reader=reader, quantization=quantization, with_prompter=not compiled
        )
    if reader is not None or quantization is not None:
        raise ConfigError(f"{model} is no saved model, so it has no other reader. Leave reader and quantization out.")
    embedder = PromptEmbedder.create(prompter=model)
    sys.stderr.write(f"{model} is a backbone: its vectors come from a model that nothing has trained yet\n")
    return embedder


def _lines() -> Iterator[str]:
    """Texts of standard input, one a line; empty lines are skipped, as in text files."""
    for line in sys.stdin:
        if line.strip():
            yield line.rstrip("\r\n")


def _batches(texts: Sequence[str] | Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _TEXTS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch
