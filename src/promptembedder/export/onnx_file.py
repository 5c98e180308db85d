"""Export of the model for one instruction to ONNX; the graph is compared with the model before it is kept."""

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from promptembedder import extras
from promptembedder.backbone import Backbone, decoder_layers, text_positions
from promptembedder.errors import BackboneError, ConfigError
from promptembedder.export import reference
from promptembedder.export.soft_tokens import (
    ExportedFolder,
    export_config,
    file_sizes,
    require_new,
    require_plain_weights,
)
from promptembedder.method import (
    SoftTokenEncoder,
    content_mask,
    early_exit_layer,
    l2_normalize,
    num_prompt_layers,
    pool,
    text_pooling_layer,
)
from promptembedder.model import SELF_TEST_TEXT, PromptEmbedder
from promptembedder.storage import atomic_directory, write_json
from promptembedder.types import Float, Int, Tensor

__all__ = ["FixedInstructionModel", "export_onnx"]

FILE_NAME = "model.onnx"
_MODULES = ("onnx", "onnxscript", "onnxruntime")
_LAYER_KINDS = ("full_attention", "sliding_attention")
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


class FixedInstructionModel(nn.Module):
    """Traceable equivalent of `SoftTokenEncoder.embed_token_ids` for the soft tokens of one instruction.

    The graph contains the soft tokens of all layers, text pooling, output projection and normalisation. Attention masks
    are explicit, and every position attends to itself, so that a row of padding has no empty softmax.
    """

    soft: Tensor

    def __init__(self, encoder: SoftTokenEncoder, soft: Float[Tensor, "prompt width"]) -> None:
        """Share the weights of `encoder`."""
        super().__init__()
        self.encoder = encoder
        self.decoder = encoder.reader.decoder
        self.register_buffer("soft", soft)
        self.layers_read = text_pooling_layer(encoder.config, encoder.reader)
        self._captured: list[Tensor] = []

    @contextmanager
    def hooked(self) -> Iterator["FixedInstructionModel"]:
        """Register the hooks that `forward` needs: deep prompts, text pooling and early exit.

        The hooks of `backbone.layers` cannot be traced: they find their layer by identity, and tracers pass copies.
        """
        layers = decoder_layers(self.decoder)
        every, dim = self.encoder.config.deep_prompt_interval, self.encoder.reader.dim
        handles = []
        for level in range(1, num_prompt_layers(self.encoder.config, self.encoder.reader)):
            addition = self.soft[:, level * dim : (level + 1) * dim]
            handles.append(layers[level * every].register_forward_pre_hook(_adder(addition)))
        if self.layers_read is not None:
            handles.append(layers[self.layers_read - 1].register_forward_hook(self._capture))
        if (
            self.encoder.config.early_exit_fraction < 1
        ):  # deeper layers see the text's hidden states at the exit; the graph runs all layers
            after_exit = layers[early_exit_layer(self.encoder.config, self.encoder.reader) :]
            handles += [layer.register_forward_hook(_text_freezer(len(self.soft))) for layer in after_exit]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def forward(
        self, input_ids: Int[Tensor, "batch seq"], attention_mask: Int[Tensor, "batch seq"]
    ) -> Float[Tensor, "batch dim_r"]:
        """Embed a batch as unit vectors, float32; padding may be on either side."""
        count, dim = len(self.soft), self.encoder.reader.dim
        width = input_ids.shape[1]
        # left-pad, tokens in order; distinct sort keys, because not every runtime sorts stably
        order = (attention_mask * width + torch.arange(width, device=input_ids.device)).argsort(dim=1)
        ids, mask = input_ids.gather(1, order), attention_mask.gather(1, order)
        text = self.decoder.get_input_embeddings()(ids)
        soft = self.soft[:, :dim].to(text.dtype).expand(text.shape[0], -1, -1)
        present = torch.cat([mask, mask.new_ones(mask.shape[0], count)], dim=1)
        self._captured.clear()
        states = self.decoder(
            inputs_embeds=torch.cat([text, soft], dim=1),
            attention_mask=_masks(self.encoder.reader, present),
            position_ids=text_positions(present),
            use_cache=False,
        ).last_hidden_state
        everywhere = mask.new_ones(mask.shape[0], count)
        summary = pool(states[:, -count:], everywhere, pooling=self.encoder.config.pooling)
        if self.encoder.text_pooling is not None:
            text_mask = content_mask(mask, self.encoder.reader)
            own = self.encoder.text_pooling.summarise(self._captured[0][:, :-count], text_mask)
            _, _, query = self.encoder.split_by_layer(self.soft.unsqueeze(0))
            summary = self.encoder.text_pooling(summary, own, query)
        return l2_normalize(summary)

    def _capture(self, _: nn.Module, __: Any, output: Any) -> None:
        self._captured.append(output[0] if isinstance(output, tuple) else output)


def require_traceable(encoder: SoftTokenEncoder) -> None:
    """Check that the model for one instruction can be traced.

    Raises:
        ConfigError: If soft tokens depend on the text or precede it, or a layer has an unsupported kind of attention.
    """
    config, reader_config = encoder.config, encoder.reader.model.config
    if not encoder.reads_text_once:
        raise ConfigError(
            "a graph for one instruction needs placement 'suffix' and a prompter.template without {text}, "
            f"this model has placement {config.placement!r} and the template "
            f"{config.prompter.template!r}. Train such a model."
        )
    unknown = set(getattr(reader_config, "layer_types", None) or ()) - set(_LAYER_KINDS)
    if unknown:
        raise ConfigError(
            f"{reader_config.model_type} has layers of {sorted(unknown)[0]}; supported are "
            f"{' and '.join(_LAYER_KINDS)}. Serve this model with promptembedder serve."
        )


def _masks(reader: Backbone, present: Int[Tensor, "batch seq"]) -> Any:
    """Return the attention mask, [batch 1 seq seq], or one mask by kind of layer."""
    config = reader.model.config
    position = torch.arange(present.shape[1], device=present.device)
    distance = position.unsqueeze(1) - position
    keys = present.bool()[:, None, None, :]

    def mask(window: int | None) -> Tensor:
        causal = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        return (causal & keys) | (distance == 0)

    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if "sliding_attention" in kinds:
        return {kind: mask(window if kind == "sliding_attention" else None) for kind in kinds}
    return mask(None if kinds else window)


def _text_freezer(count: int) -> Any:
    def freeze_text(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        frozen = torch.cat([inputs[0][:, :-count], states[:, -count:]], dim=1)
        return (frozen, *output[1:]) if isinstance(output, tuple) else frozen

    return freeze_text


def _adder(addition: Float[Tensor, "prompt dim_r"]) -> Any:
    def add(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        states, *others = inputs
        count = len(addition)
        changed = states[:, -count:] + addition.to(states.dtype)
        return (torch.cat([states[:, :-count], changed], dim=1), *others)

    return add
