"""`promptembedder compile MODEL --instruction TEXT`: store soft tokens, so that the prompter is not loaded."""

import dataclasses
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from promptembedder.cli.console import Report, gc_paused
from promptembedder.cli.options import ConfigOption, JsonOption
from promptembedder.errors import ConfigError, DataError
from promptembedder.storage import Manifest, atomic_directory, check_writable, hash_files, read_manifest, write_manifest

if TYPE_CHECKING:
    from promptembedder.method import EncoderParts
    from promptembedder.model import SelfTest

__all__ = ["compile_"]


def compile_(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model.")],
    instruction: Annotated[
        list[str],
        # an environment variable would be split at spaces
        typer.Option(help="Instruction to compile. Repeatable.", allow_from_autoenv=False),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="New folder. Default: MODEL itself.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Store the soft tokens of instructions in a saved model. Compiled instructions need no prompter.

    Example: promptembedder compile runs/mine --instruction "Represent the topic"
    """
    report = Report(as_json)
    manifest = read_manifest(model)
    target = model if output is None else output
    if target.exists() and not target.samefile(model):
        raise DataError(f"{target} exists. Choose a new folder, or omit --output to add the instructions to {model}.")
    check_writable(target)
    with gc_paused():  # seconds
        from promptembedder.data import clean_text
        from promptembedder.model import PromptEmbedder

    requested = [clean_text(text).strip() for text in instruction]
    if not all(requested):
        raise ConfigError("an instruction is blank. Describe in words what the vectors are for.")
    start = time.perf_counter()
    embedder = PromptEmbedder.from_pretrained(model)
    embedder.compile_instructions(requested)
    parts = embedder.encoder.parts()
    _save(parts, embedder.encoder.self_test(), model, target, manifest)
    seconds = time.perf_counter() - start
    size = sum(tokens.numel() * tokens.element_size() for tokens in parts.compiled.values())
    instructions = list(parts.compiled)
    heading = [f"compiled in {escape(str(target))}, {size} bytes:"]
    report.print("\n".join([*heading, *(f"  {escape(text)}" for text in instructions)]))
    report.result({"model": str(target), "instructions": instructions, "bytes": size, "seconds": seconds})


def _save(parts: "EncoderParts", self_test: "SelfTest | None", model: Path, target: Path, manifest: Manifest) -> None:
    """Write the parts to `target`, with the other files and the provenance of `model`."""
    from promptembedder.model import save_parts

    with atomic_directory(target) as scratch:
        save_parts(scratch, parts, self_test=self_test)
        for path in model.iterdir():
            if path.is_file() and path.suffix != ".safetensors" and not (scratch / path.name).exists():
                shutil.copy(path, scratch / path.name)
        hash_files(scratch)
        written = read_manifest(scratch)
        # the versions that trained the weights, not those that compiled the instructions
        write_manifest(scratch, dataclasses.replace(written, provenance=manifest.provenance))
