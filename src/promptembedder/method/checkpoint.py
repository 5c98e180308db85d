"""Save and load the parts of a dual encoder: trained weights, compiled soft tokens and a manifest, never a backbone.

One manifest record and one alignment file for each reader that the model was transferred to.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from promptembedder.backbone import Backbone, BackboneConfig, load_backbone
from promptembedder.errors import ModelFormatError, WeightsError, first_line, short_repr
from promptembedder.method.config import ModelConfig, num_prompt_layers
from promptembedder.method.encoder_parts import (
    EncoderParts,
    ReaderState,
    build_deep_alignment,
    build_prompter,
    build_query,
    build_text_pooling,
)
from promptembedder.method.pooling import query_width
from promptembedder.method.prompter import Prompter, PrompterConfig, PrompterSnapshot
from promptembedder.method.text_encoder import restore_tensors, saved_state
from promptembedder.storage import Manifest, from_mapping, read_manifest, to_mapping, versions, write_manifest
from promptembedder.storage.settings import migrate_conditioning
from promptembedder.storage.tensors import load_tensors, save_tensors
from promptembedder.types import Float, Tensor

__all__ = [
    "KIND",
    "SELF_TEST_TEXT",
    "ReaderRecord",
    "SelfTest",
    "backbone_identity",
    "find_reader",
    "load_parts",
    "load_verified_backbone",
    "manifest_on",
    "model_config",
    "read_self_test",
    "reader_records",
    "reader_state_of",
    "restore_parts",
    "save_parts",
    "snapshot_prompter",
]

KIND = "promptembedder"
PROMPTER_FILE = "prompter.safetensors"
_DELTA = "delta"
SELF_TEST_NAME = "self_test.json"
SELF_TEST_TEXT = "A river runs to the sea."
# An embedding changes by less than 1e-6 in float32 on another machine, 1e-4 in bfloat16, some thousandths in int8, and
# tenths with wrong weights, a wrong mask or a broken kernel.
_MIN_COSINE_SAME, _MIN_COSINE_OTHER = 0.999, 0.99


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


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """Embedding of `SELF_TEST_TEXT` at the time of saving.

    Attributes:
        reader: Fingerprint of the reader.
        dtype: Dtype or quantization of the reader.
    """

    instruction: str
    reader: str
    dtype: str
    vector: Sequence[float]

    def write(self, folder: Path) -> None:
        """Write the self-test into the folder of a model."""
        content = asdict(self) | {"vector": [round(number, 7) for number in self.vector]}
        (folder / SELF_TEST_NAME).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    def check(self, vector: Float[np.ndarray, " dim"], *, dtype: str) -> float:
        """Return the cosine between the saved embedding and `vector`, of the same text and instruction.

        Raises:
            WeightsError: If the cosine is lower than another machine or `dtype` explains.
        """
        saved = np.asarray(self.vector, dtype=np.float64)
        if saved.shape != vector.shape:
            raise WeightsError(f"the self-test has {len(saved)} numbers, the model gives {len(vector)}. Save it again.")
        lengths = float(np.linalg.norm(saved)) * float(np.linalg.norm(vector))
        cosine = float(saved @ vector.astype(np.float64)) / max(lengths, 1e-30)
        least = _MIN_COSINE_SAME if dtype == self.dtype else _MIN_COSINE_OTHER
        if not cosine >= least:
            raise WeightsError(
                f"the model does not compute what it did when it was saved: cosine {cosine:.4f} to the saved vector, "
                f"expected at least {least}. Try dtype float32, another device or other versions of torch."
            )
        return cosine


def save_parts(folder: Path, parts: EncoderParts, *, self_test: SelfTest | None = None) -> None:
    """Write the trained weights of the parts and of all further readers into `folder`, the manifest last.

    Args:
        self_test: Self-test of these parts on their reader.

    Raises:
        ModelFormatError: If the parts were loaded without their prompter, whose weights are then not in memory.
    """
    away = parts.prompter_snapshot if parts.prompter is None else snapshot_prompter(parts.prompter)
    if away is None:
        raise ModelFormatError(
            "the model was loaded without its prompter and cannot be saved. Load it with the prompter."
        )
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / PROMPTER_FILE, away.state)
    entries = [
        save_reader_state(folder, side, index) for index, side in enumerate([reader_state_of(parts), *parts.others])
    ]
    if self_test is not None:
        self_test.write(folder)
    first, *others = entries
    shared = [PROMPTER_FILE, *([SELF_TEST_NAME] if self_test is not None else [])]
    manifest = Manifest(
        kind=KIND,
        config=first.config,
        backbones={"prompter": dict(away.identity), "reader": first.backbone},
        instructions=first.instructions,
        files=dict.fromkeys([*shared, *(name for entry in entries for name in entry.files)], ""),
        readers=[asdict(entry) for entry in others],
        provenance=dict(versions()),
    )
    write_manifest(folder, manifest)


def load_parts(
    folder: Path,
    *,
    reader: str | None = None,
    quantization: str | None = None,
    cache_folder: Path | None = None,
    with_prompter: bool = True,
) -> EncoderParts:
    """Load the parts that `save_parts` wrote, on the backbones of their training.

    Args:
        reader: Backbone string of one of the model's readers. If None, the reader that the model was saved with.
        quantization: Quantization of the reader, see `BackboneConfig`. If None, that of the training.
        with_prompter: If False, load compiled instructions only, in half the memory.

    Raises:
        ModelFormatError: If the folder is incomplete, has a newer format, contains a baseline or has no such reader, or
            if the weights of a backbone have changed.
        BackboneError: If a backbone is missing.
    """
    manifest = read_manifest(folder)
    if manifest.kind != KIND:
        raise ModelFormatError(f"{folder} holds a {manifest.kind}, not a {KIND}. Open it with load_encoder.")
    entry = find_reader(manifest, reader, folder)
    others = tuple(
        load_reader_state(folder, one, model_config(_seen_from(manifest, one)))
        for one in reader_records(manifest)
        if one.alignment_file != entry.alignment_file
    )
    manifest = _seen_from(manifest, entry)
    config = model_config(manifest)
    if quantization is not None:
        config = dataclasses.replace(config, reader=dataclasses.replace(config.reader, quantization=quantization))
    frozen = load_verified_backbone(config.reader, manifest, "reader", head=False, cache_folder=cache_folder)
    tensors = load_tensors(folder / entry.alignment_file)
    dim_p = tensors["deep.down"].shape[0] if "deep.down" in tensors else 0
    if "query.down" in tensors:
        dim_p = tensors["query.down"].shape[0] // config.num_soft_tokens
    parts = EncoderParts(
        config=config,
        reader=frozen,
        alignment=config.alignment.module.empty(tensors, config.alignment, frozen.dim),
        deep=build_deep_alignment(config, dim_p, frozen),
        text_pooling=build_text_pooling(config, frozen, centred=False),
        query=build_query(config, dim_p),
        prompter=_load_prompter(folder, config, manifest, cache_folder) if with_prompter else None,
        compiled=_load_compiled(folder, entry, config, frozen),
        others=others,
    )
    _restore_alignment(parts, folder / entry.alignment_file)
    return parts


def _load_prompter(folder: Path, config: ModelConfig, manifest: Manifest, cache_folder: Path | None) -> Prompter:
    backbone = load_verified_backbone(
        config.prompter.backbone, manifest, "prompter", head=True, cache_folder=cache_folder
    )
    # a trained soft prompt is kept even if the alignment to this reader does not use it
    trained = "soft_prompt_delta" in load_tensors(folder / PROMPTER_FILE)
    prompter = build_prompter(backbone, config, train_soft_prompt=trained)
    restore_tensors(saved_state(prompter), folder / PROMPTER_FILE)
    return prompter


def _load_compiled(folder: Path, entry: ReaderRecord, config: ModelConfig, reader: Backbone) -> dict[str, Tensor]:
    if not entry.instructions:
        return {}
    width = num_prompt_layers(config, reader) * reader.dim
    width += query_width(config.instruction_heads, prompt=config.num_soft_tokens)
    shape = torch.Size([len(entry.instructions), config.num_soft_tokens, width])
    rows = load_tensors(folder / entry.soft_tokens_file, {"soft_tokens": shape})["soft_tokens"]
    return dict(zip(entry.instructions, rows, strict=True))


def restore_parts(parts: EncoderParts, folder: Path) -> None:
    """Copy the trained weights of a saved model into `parts` in place, without loading its backbones.

    Raises:
        ModelFormatError: If the folder is incomplete or contains the weights of another model.
    """
    entry = reader_records(read_manifest(folder))[0]
    if parts.prompter is not None:
        restore_tensors(saved_state(parts.prompter), folder / PROMPTER_FILE)
    _restore_alignment(parts, folder / entry.alignment_file)


def reader_state_of(parts: EncoderParts) -> ReaderState:
    """Return a copy of the current reader state of the parts, independent of later training."""
    return ReaderState(
        config=parts.config,
        identity=backbone_identity(parts.reader),
        state={
            name: tensor.detach().cpu().clone()
            for name, tensor in _alignment_state(parts).items()
            if name != _DELTA or bool(tensor.any())  # as large as the map itself, and zero once merged
        },
        compiled=parts.compiled,
    )


def snapshot_prompter(prompter: Prompter) -> PrompterSnapshot:
    """Return the prompter's trained weights and identity, without its backbone."""
    state = {name: weight.detach().cpu().clone() for name, weight in saved_state(prompter).items()}
    return PrompterSnapshot(identity=backbone_identity(prompter.backbone), state=state)


def manifest_on(manifest: Manifest, reader: str | None, folder: Path) -> Manifest:
    """Return the manifest of the model in `folder` for one of its readers. If `reader` is None, the unchanged manifest.

    Raises:
        ModelFormatError: If the model has no alignment to this reader.
    """
    return manifest if reader is None else _seen_from(manifest, find_reader(manifest, reader, folder))


def _seen_from(manifest: Manifest, entry: ReaderRecord) -> Manifest:
    backbones = {**manifest.backbones, "reader": entry.backbone}
    return dataclasses.replace(manifest, config=entry.config, backbones=backbones, instructions=entry.instructions)


def _restore_alignment(parts: EncoderParts, path: Path) -> None:
    state = _alignment_state(parts)
    if _DELTA in state and _DELTA not in load_tensors(path):
        with torch.no_grad():
            state.pop(_DELTA).zero_()
    restore_tensors(state, path)


def _alignment_state(parts: EncoderParts) -> dict[str, Tensor]:
    """Return all tensors of the reader's side: alignment, deep alignments, text pooling and queries."""
    state = dict(parts.alignment.state_dict())
    modules = {"deep": parts.deep, "text_pooling": parts.text_pooling, "query": parts.query}
    for name, module in modules.items():
        if module is not None:
            state |= {f"{name}.{key}": tensor for key, tensor in module.state_dict().items()}
    return state


def model_config(manifest: Manifest) -> ModelConfig:
    """Return the configuration in a manifest. Fields that its version did not have get the values of the training.

    Raises:
        ModelFormatError: If a part of the configuration is not a mapping, or if the reader's depth is missing.
        ConfigError: If a setting is unknown or out of range.
    """
    saved = migrate_conditioning(
        _mapping(manifest.config.get("model", manifest.config), "config"), template=PrompterConfig().template
    )
    config = {
        "deep_prompt_interval": 0,
        "text_pooling_weight": 0.0,
        "whitening_rank": 0,
        "reader": {},
        "prompter": {},
        **saved,
    }
    if "whitening_rank" not in saved and config["text_pooling_weight"] and config.get("text_pooling_layer") is None:
        layers = manifest.backbones.get("reader", {}).get("layers")
        if not isinstance(layers, int):
            raise ModelFormatError(f"the manifest gives the reader {short_repr(layers)} layers. Save the model again.")
        config["text_pooling_layer"] = round(0.6 * layers)
    config["reader"] = {"text_start": "", **_mapping(config["reader"], "reader")}
    prompter = _mapping(config["prompter"], "prompter")
    backbone = {"text_start": "", **_mapping(prompter.get("backbone", {}), "prompter.backbone")}
    config["prompter"] = {**prompter, "backbone": backbone}
    return from_mapping(ModelConfig, config)


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ModelFormatError(
            f"the manifest's {name} is {short_repr(value)}, no mapping. Save or download the model again."
        )
    return value


def backbone_identity(backbone: Backbone) -> dict[str, Any]:
    """Return the identity of a backbone as a mapping for the manifest."""
    return asdict(backbone.identity)


def load_verified_backbone(
    config: BackboneConfig, manifest: Manifest, role: str, *, head: bool, cache_folder: Path | None
) -> Backbone:
    """Load the backbone of `role` and check that its weights are those of the training."""
    backbone = load_backbone(config, head=head, cache_folder=cache_folder)
    trained_on = manifest.backbones.get(role, {}).get("fingerprint")
    if backbone.identity.fingerprint != trained_on:
        raise ModelFormatError(
            f"the weights of {role} {config.source!r} are {backbone.identity.fingerprint}, the model was trained on "
            f"{trained_on}. Restore the old weights, or train again on the new ones."
        )
    return backbone


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


def read_self_test(folder: Path) -> SelfTest | None:
    """Read the self-test of a saved model, or return None if the model has none.

    Raises:
        ModelFormatError: If the file is damaged.
    """
    path = folder / SELF_TEST_NAME
    if not path.is_file():
        return None
    try:
        loaded = SelfTest(**json.loads(path.read_text(encoding="utf-8")))
        words = isinstance(loaded.instruction, str) and isinstance(loaded.reader, str) and isinstance(loaded.dtype, str)
        numbers = isinstance(loaded.vector, list) and all(type(number) in (int, float) for number in loaded.vector)
        fits = words and numbers and all(math.isfinite(number) for number in loaded.vector)
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ModelFormatError(f"{path} is damaged: {first_line(error)}. Save or download the model again.") from error
    if not fits:
        raise ModelFormatError(f"{path} is damaged: it holds other values than a self-test. Save the model again.")
    return loaded
