"""`promptembedder export MODEL -o FOLDER`: a model for vLLM, transformers or onnxruntime alone."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from promptembedder.cli.console import Report, one_line_errors
from promptembedder.cli.options import ConfigOption, JsonOption, ReaderOption
from promptembedder.errors import ConfigError
from promptembedder.storage import read_manifest

__all__ = ["export"]

_FORMATS = ("soft-tokens", "onnx")


def export(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder.")],
    instruction: Annotated[
        list[str] | None,
        # an environment variable would be split at spaces
        typer.Option(help="Compiled instruction; several for several; by default all.", allow_from_autoenv=False),
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", help="soft-tokens: input vectors for vLLM or transformers; onnx: one graph.")
    ] = "soft-tokens",
    leave_out_text: Annotated[
        bool, typer.Option("--leave-out-text", help="soft-tokens: without the text's own states (text_weight 0).")
    ] = False,
    with_backbone: Annotated[
        bool | None,
        typer.Option(help="soft-tokens: write the reader too; by default where no engine could find it by its name."),
    ] = None,
    reader: ReaderOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write what other engines need: soft tokens as safetensors with a script, or the whole model as an ONNX graph.

    Example: promptembedder export runs/quickstart -o runs/quickstart-onnx --format onnx
    """
    report = Report(as_json)
    with one_line_errors():
        if format_ not in _FORMATS:
            raise ConfigError(f"unknown --format {format_!r}. Use one of: {', '.join(_FORMATS)}.")
        content = _exported(
            model,
            output,
            instruction or [],
            format_,
            reader,
            leave_out_text=leave_out_text,
            with_backbone=with_backbone,
        )
    size = sum(content["bytes"].values())
    report.say(f"wrote {escape(str(output))}, {size / 1e6:.1f} MB: {content['reproduces']}, under")
    for text in content["instructions"]:
        report.say(f"  {escape(text)}")
    if content["max_difference"] is not None:
        report.say(f"largest difference to the model's own vectors: {content['max_difference']:.1e}")
    engine = " --engine onnx" if format_ == "onnx" else ""
    report.say(f"Next: python {escape(str(output))}/reference.py texts.txt --output vectors.npy{engine}")
    report.result(content)


def _exported(
    model: Path,
    output: Path,
    asked: list[str],
    format_: str,
    reader: str | None,
    *,
    leave_out_text: bool,
    with_backbone: bool | None,
) -> dict[str, Any]:
    manifest = read_manifest(model)
    from promptembedder.export import chosen_instructions, export_onnx, export_soft_tokens
    from promptembedder.model import PromptEmbedder, manifest_on

    compiled = manifest_on(manifest, reader, model).instructions
    instructions = chosen_instructions(compiled, asked, str(model))
    if format_ == "onnx" and len(instructions) > 1:
        raise ConfigError(f"a graph is for one instruction, {model} has {len(instructions)}. Name it: --instruction.")
    if format_ == "onnx" and (leave_out_text or with_backbone is not None):
        raise ConfigError("a graph holds the whole model. Leave out --leave-out-text and --with-backbone.")
    embedder = PromptEmbedder.from_pretrained(model, reader=reader, with_prompter=False, device="cpu")
    if format_ == "onnx":
        done = export_onnx(embedder, output, instruction=instructions[0])
    else:
        done = export_soft_tokens(
            embedder, output, instructions=instructions, leave_out_text=leave_out_text, with_backbone=with_backbone
        )
    return {
        "output": str(done.folder),
        "format": format_,
        "instructions": done.instructions,
        "reproduces": done.reproduces,
        "max_difference": done.max_difference,
        "bytes": done.bytes,
    }
