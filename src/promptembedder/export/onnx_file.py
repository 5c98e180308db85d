"""A model for one instruction as an ONNX file, compared with the model itself before it counts."""

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
from promptembedder.export.bundle import ExportedFolder, export_settings, file_sizes, require_new
from promptembedder.export.graph import OneInstruction, require_traceable
from promptembedder.export.stock import require_plain_weights
from promptembedder.model import PromptEmbedder
from promptembedder.method import SoftTokenEncoder
from promptembedder.model import SELF_TEST_TEXT
from promptembedder.types import Float, Int, Tensor
from promptembedder.storage import whole_folder, write_json

__all__ = ["export_onnx"]

FILE_NAME = "model.onnx"
_MODULES = ("onnx", "onnxscript", "onnxruntime")
_LARGEST_DIFFERENCE = 1e-4  # between float32 vectors of length 1; kernels that sum in another order stay below 1e-6
_SHAPES = ((1, 1), (2, 7), (5, 33))  # texts and tokens; compared, none of them the one that is traced
_TRACED = (3, 11)


def export_onnx(model: PromptEmbedder, folder: Path, *, instruction: str) -> ExportedFolder:
    """Write the whole model for one compiled instruction as one float32 graph into the new `folder`.

    `input_ids` and `attention_mask`, int64 [batch, seq] of any size, to `sentence_embedding`, float32 [batch, dim].
    Beside it: the tokenizer, `export.json` and `reference.py`. `model` is float32 and on the CPU afterwards.

    Raises:
        ImportError: The extra `onnx` is not installed.
        ConfigError: The model is of a kind that one graph cannot hold.
        BackboneError: The exporter cannot trace this reader, or the graph's vectors differ.
        DataError: `folder` exists.
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
        own = encoder(encoder.instructed_features([SELF_TEST_TEXT], instruction))["sentence_embedding"]
    with torch.no_grad():
        soft = encoder.soft_tokens([instruction])[0].detach().float().clone()
    settings = export_settings(encoder, [instruction], [own[0].clone()], kind="onnx")
    settings["backbone"]["dtype"] = "float32"
    with whole_folder(folder) as scratch:
        _write_graph(encoder, soft, scratch / FILE_NAME)
        difference = _largest_difference(encoder, soft, scratch / FILE_NAME)
        settings["max_difference"] = difference
        encoder.tokenizer.save_pretrained(scratch)
        shutil.copyfile(reference.__file__, scratch / "reference.py")
        write_json(scratch / "export.json", settings)
    return ExportedFolder(
        folder=folder,
        instructions=[instruction],
        reproduces=settings["reproduces"],
        bytes=file_sizes(folder),
        max_difference=difference,
    )


def _write_graph(encoder: SoftTokenEncoder, soft: Float[Tensor, "prompt width"], path: Path) -> None:
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    graph = OneInstruction(encoder, soft).eval()
    source = encoder.reader.ref.source
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
        except Exception as error:  # the exporters name no errors of their own, and raise nearly all there are
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BackboneError(f"the ONNX exporter cannot trace backbone {source!r}: {reason[:200]}") from error
        assert program is not None
        program.save(path)


def _largest_difference(encoder: SoftTokenEncoder, soft: Float[Tensor, "prompt width"], path: Path) -> float:
    """Between the vectors of the file and the encoder's own, over batches of several sizes, padded anywhere."""
    runtime = extras.require("onnxruntime", extra="onnx")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    largest = 0.0
    for texts, tokens in _SHAPES:
        ids, mask = _example(encoder, texts, tokens)
        found = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
        rows = [tuple(row[present.bool()].tolist()) for row, present in zip(ids, mask, strict=True)]
        with torch.inference_mode():
            expected = encoder.embed_rows(rows, soft.expand(texts, -1, -1)).numpy()
        largest = max(largest, float(np.abs(found - expected).max()))
    if not largest <= _LARGEST_DIFFERENCE:
        raise BackboneError(
            f"the graph's vectors differ by {largest:.1e} from the model's, more than {_LARGEST_DIFFERENCE}: backbone "
            f"{encoder.reader.ref.source!r} cannot be exported. Serve the model with promptembedder serve."
        )
    return largest


def _example(
    encoder: SoftTokenEncoder, texts: int, tokens: int
) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """Random tokens after what every text begins with; some rows padded on the left, some on the right."""
    generator = torch.Generator().manual_seed(texts)
    ids = torch.randint(len(encoder.reader.input_table), (texts, tokens), generator=generator)
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
    """Without what the exporters say about libraries that are not there, and about their own insides."""
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
