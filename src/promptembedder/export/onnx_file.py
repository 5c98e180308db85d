"""Export of the model for one instruction to ONNX; the graph is compared with the model before it is kept."""

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from promptembedder import extras
from promptembedder.errors import BackboneError
from promptembedder.export import reference
from promptembedder.export.bundle import ExportedFolder, export_config, file_sizes, require_new
from promptembedder.export.graph import FixedInstructionModel, require_traceable
from promptembedder.export.stock import require_plain_weights
from promptembedder.method import SoftTokenEncoder
from promptembedder.model import SELF_TEST_TEXT, PromptEmbedder
from promptembedder.storage import atomic_directory, write_json
from promptembedder.types import Float, Int, Tensor

__all__ = ["export_onnx"]

FILE_NAME = "model.onnx"
_MODULES = ("onnx", "onnxscript", "onnxruntime")
_LARGEST_DIFFERENCE = 1e-4  # of float32 unit vectors; another summation order alone stays below 1e-6
_SHAPES = ((1, 1), (2, 7), (5, 33))  # (texts, tokens) to compare, other than the traced shape
_TRACED = (3, 11)


def export_onnx(model: PromptEmbedder, folder: Path, *, instruction: str) -> ExportedFolder:
    """Write the model for one compiled instruction as a float32 graph into the new `folder`.

    Inputs are `input_ids` and `attention_mask`, int64 [batch, seq] of any size; the output is `sentence_embedding`,
    float32 [batch, dim]. The folder also contains the tokenizer, `export.json` and `reference.py`. Afterwards `model`
    is float32 and on the CPU.

    Raises:
        ImportError: If the extra `onnx` is not installed.
        ConfigError: If the model cannot be traced as one graph.
        BackboneError: If the exporter cannot trace this reader, or the graph computes other embeddings.
        DataError: If `folder` exists.
    """
    for name in _MODULES:
        extras.require(name, extra="onnx")
    encoder = model.encoder.eval()
    require_new(folder)
    require_traceable(encoder)
    require_plain_weights(encoder.reader)
    model.to("cpu")
    encoder.reader.float()
    with torch.inference_mode():
        embedding = encoder(encoder.instructed_features([SELF_TEST_TEXT], instruction))["sentence_embedding"]
    with torch.no_grad():
        soft = encoder.soft_tokens([instruction])[0].detach().float().clone()
    config = export_config(encoder, [instruction], [embedding[0].clone()], kind="onnx")
    config["backbone"]["dtype"] = "float32"
    with atomic_directory(folder) as scratch:
        _write_graph(encoder, soft, scratch / FILE_NAME)
        difference = _largest_difference(encoder, soft, scratch / FILE_NAME)
        config["max_difference"] = difference
        encoder.tokenizer.save_pretrained(scratch)
        shutil.copyfile(reference.__file__, scratch / "reference.py")
        write_json(scratch / "export.json", config)
    return ExportedFolder(
        folder=folder,
        instructions=[instruction],
        reproduces=config["reproduces"],
        bytes=file_sizes(folder),
        max_difference=difference,
    )


def _write_graph(encoder: SoftTokenEncoder, soft: Float[Tensor, "prompt width"], path: Path) -> None:
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    graph = FixedInstructionModel(encoder, soft).eval()
    source = encoder.reader.identity.source
    with torch.no_grad(), graph.hooked(), _quiet_exporters():
        try:
            traced = torch.export.export(graph, _example(encoder, *_TRACED), dynamic_shapes=(any_size, any_size))
            program = torch.onnx.export(
                traced,
                input_names=["input_ids", "attention_mask"],
                output_names=["sentence_embedding"],
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # the exporters raise nearly every exception class
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BackboneError(f"the ONNX exporter cannot trace backbone {source!r}: {reason[:200]}") from error
        assert program is not None
        program.save(path)


def _largest_difference(encoder: SoftTokenEncoder, soft: Float[Tensor, "prompt width"], path: Path) -> float:
    """Return the largest difference between embeddings of the file and of the encoder over several batch shapes."""
    runtime = extras.require("onnxruntime", extra="onnx")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    largest = 0.0
    for texts, tokens in _SHAPES:
        ids, mask = _example(encoder, texts, tokens)
        actual = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
        rows = [tuple(row[present.bool()].tolist()) for row, present in zip(ids, mask, strict=True)]
        with torch.inference_mode():
            expected = encoder.embed_token_ids(rows, soft.expand(texts, -1, -1)).numpy()
        largest = max(largest, float(np.abs(actual - expected).max()))
    if not largest <= _LARGEST_DIFFERENCE:
        raise BackboneError(
            f"the graph's vectors differ by {largest:.1e} from the model's, more than {_LARGEST_DIFFERENCE}: backbone "
            f"{encoder.reader.identity.source!r} cannot be exported. Serve the model with promptembedder serve."
        )
    return largest


def _example(
    encoder: SoftTokenEncoder, texts: int, tokens: int
) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """Draw random tokens after the tokenizer's prefix; some rows are padded on the left, some on the right."""
    generator = torch.Generator().manual_seed(texts)
    ids = torch.randint(len(encoder.reader.input_embeddings), (texts, tokens), generator=generator)
    mask = torch.ones_like(ids)
    begin = encoder.reader.tokenizer.prefix[:tokens]
    for row in range(texts):
        padding = (row * tokens) // (2 * texts)
        first = padding if row % 2 else 0
        mask[row, :padding] = 0 if row % 2 else 1
        mask[row, tokens - padding :] = 1 if row % 2 or not padding else 0
        ids[row, first : first + len(begin)] = torch.tensor(begin, dtype=torch.long)[: tokens - first]
    return ids, mask


@contextmanager
def _quiet_exporters() -> Iterator[None]:
    """Suppress warnings and log records of the exporters."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
