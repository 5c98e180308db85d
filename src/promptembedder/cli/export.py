"""`promptembedder export MODEL -o FOLDER`: export a model for vLLM, transformers or onnxruntime."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from promptembedder.cli.console import Report
from promptembedder.cli.options import ConfigOption, JsonOption, ReaderOption
from promptembedder.errors import ConfigError
from promptembedder.storage import check_writable, read_manifest

__all__ = ["export"]

_FORMATS = ("soft-tokens", "onnx")


def export(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder.")],
    instruction: Annotated[
        list[str] | None,
        # an environment variable would be split at spaces
        typer.Option(help="Compiled instruction. Repeatable. Default: all.", allow_from_autoenv=False),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="soft-tokens (input embeddings for vLLM or transformers) or onnx (one graph). Default: soft-tokens if "
            "they suffice for the model, else onnx.",
        ),
    ] = None,
    leave_out_text: Annotated[
        bool,
        typer.Option("--leave-out-text", help="soft-tokens: omit the text pooling (text_pooling_weight 0)."),
    ] = False,
    with_backbone: Annotated[
        bool | None,
        typer.Option(help="soft-tokens: also write the reader. Default: only if it has no public name."),
    ] = None,
    reader: ReaderOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export soft tokens as safetensors with a script, or the complete model as an ONNX graph.

    Example: promptembedder export runs/quickstart -o runs/quickstart-onnx --format onnx
    """
    report = Report(as_json)
    if format_ is not None and format_ not in _FORMATS:
        raise ConfigError(f"unknown --format {format_!r}. Use one of: {', '.join(_FORMATS)}.")
    if format_ is None:
        format_ = _default_format(model, reader, leave_out_text=leave_out_text, with_backbone=with_backbone)
    content = _export(
        report,
        model,
        output,
        instruction or [],
        format_,
        reader,
        leave_out_text=leave_out_text,
        with_backbone=with_backbone,
    )
    size = sum(content["bytes"].values())
    report.print(f"wrote {escape(str(output))}, {size / 1e6:.1f} MB: {content['reproduces']}, under")
    for text in content["instructions"]:
        report.print(f"  {escape(text)}")
    if content["max_difference"] is not None:
        report.print(f"largest difference from the model's vectors: {content['max_difference']:.1e}")
    engine = " --engine onnx" if format_ == "onnx" else ""
    report.print(
        f"Next: python {escape(shlex.quote(str(output / 'reference.py')))} texts.txt --output vectors.npy{engine}"
    )
    report.result(content)


def _default_format(model: Path, reader: str | None, *, leave_out_text: bool, with_backbone: bool | None) -> str:
    """Return soft-tokens if they suffice for the model or an option needs them, else onnx."""
    manifest = read_manifest(model)
    from promptembedder.model import manifest_on, model_config

    config = model_config(manifest_on(manifest, reader, model))
    suffices = not (config.deep_prompt_interval or config.text_pooling_weight or config.early_exit_fraction < 1)
    needed = leave_out_text or with_backbone is not None or config.prompter.depends_on_text
    return "soft-tokens" if suffices or needed else "onnx"


def _export(
    report: Report,
    model: Path,
    output: Path,
    requested: list[str],
    format_: str,
    reader: str | None,
    *,
    leave_out_text: bool,
    with_backbone: bool | None,
) -> dict[str, Any]:
    manifest = read_manifest(model)
    check_writable(output)
    from promptembedder.export import export_onnx, export_soft_tokens, select_instructions
    from promptembedder.model import PromptEmbedder, manifest_on

    compiled = manifest_on(manifest, reader, model).instructions
    instructions = select_instructions(compiled, requested, str(model))
    if format_ == "onnx" and len(instructions) > 1:
        raise ConfigError(
            f"an ONNX graph has one instruction, {model} has {len(instructions)}. Choose one with --instruction."
        )
    if format_ == "onnx" and (leave_out_text or with_backbone is not None):
        raise ConfigError("an ONNX graph contains the complete model. Omit --leave-out-text and --with-backbone.")
    if format_ == "onnx":
        report.print("exporting the complete model as an ONNX graph, which takes about a minute")
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
