"""View of a saved model under one instruction for queries and one for documents; its configuration is JSON."""

import asyncio
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float  # not from types, which imports torch

from promptembedder.errors import ConfigError, DataError, short_repr
from promptembedder.integrations.shared_model import ModelSource, SharedModel, shared_model
from promptembedder.storage import MANIFEST_NAME, file_sha256

__all__ = ["EmbedderView", "ViewConfig"]


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """Configuration of a view; frameworks store it and rebuild the view from it.

    Attributes:
        model: Folder or hub id of a saved PromptEmbedder.
        instruction: Instruction for queries. If None, the model's own.
        document_instruction: Instruction for documents. If None, the model's own, else its default instruction.
        reader: Backbone string of one of the model's readers. If None, the reader that it was saved with.
        revision: Revision of a model on the hub.
        quantization: `int8`. If None, the quantization that the model was trained with.
        device: Torch device. If None, the fastest available.
        max_tokens: Maximum length of a text in tokens. If None, that of the model.
    """

    model: str
    instruction: str | None = None
    document_instruction: str | None = None
    reader: str | None = None
    revision: str | None = None
    quantization: str | None = None
    device: str | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("model", "instruction", "document_instruction", "reader", "revision", "quantization", "device"):
            value = getattr(self, name)
            if value is not None or name == "model":
                _check_string(name, value)
        if self.max_tokens is None:
            return
        if not isinstance(self.max_tokens, int) or isinstance(self.max_tokens, bool):
            raise TypeError(f"max_tokens must be an int, got {type(self.max_tokens).__name__}. Try 512.")
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, got {self.max_tokens}. Try 512.")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "ViewConfig":
        """Build the configuration from the result of `to_dict`.

        Raises:
            ConfigError: A setting is unknown, or `model` is missing.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise ConfigError(f"unknown setting {short_repr(unknown[0])} of a view. Use: {', '.join(sorted(known))}.")
        if "model" not in settings:
            raise ConfigError("a view needs a model. Give the folder or hub id of a saved one.")
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that are not None as plain values."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    @property
    def source(self) -> ModelSource:
        """Settings that determine which model is loaded."""
        return ModelSource(
            model=self.model,
            revision=self.revision,
            reader=self.reader,
            quantization=self.quantization,
            device=self.device,
        )


class EmbedderView:
    """Embedder of queries and documents, each under an instruction, on a model that all views share.

    The model is loaded at the first text. Copies and pickles contain the configuration only.
    """

    def __init__(self, config: ViewConfig) -> None:
        """Store the configuration; nothing is loaded yet."""
        self.config = config
        self._shared: SharedModel | None = None

    def warm_up(self) -> None:
        """Load the model.

        Raises:
            ModelFormatError: The model is missing or incomplete.
            BackboneError: Its backbone is missing.
        """
        self._model()

    @property
    def dim(self) -> int:
        """Embedding dimension; loads the model."""
        return self._model().dim

    def embed_queries(self, texts: Sequence[str], *, instruction: str | None = None) -> Float[np.ndarray, "texts dim"]:
        """Embed queries as unit vectors, float32.

        Args:
            instruction: Overrides the instruction of the view for this call.

        Raises:
            DataError: A query is not a string.
            TypeError: The instruction is not a string, or `texts` is a string.
        """
        _check_list(texts)
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"query {index} must be a str, got {type(text).__name__}. Convert it.")
        return self._vectors(texts, _instruction_for_call("instruction", instruction, self.config), as_queries=True)

    def embed_documents(
        self, texts: Sequence[str], *, instruction: str | None = None
    ) -> Float[np.ndarray, "texts dim"]:
        """Embed documents as unit vectors, float32.

        Args:
            instruction: Overrides the document instruction of the view for this call.

        Raises:
            DataError: A document has no text: its embedding would depend on the instruction alone.
            TypeError: The instruction is not a string, or `texts` is a string.
        """
        _check_list(texts)
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"document {index} must be a str, got {type(text).__name__}. Convert it, or remove it.")
            if not text.strip():
                raise DataError(f"document {index} has no text, only {short_repr(text)}. Remove it, or add text.")
        return self._vectors(
            texts, _instruction_for_call("document_instruction", instruction, self.config), as_queries=False
        )

    async def aembed_queries(
        self, texts: Sequence[str], *, instruction: str | None = None
    ) -> Float[np.ndarray, "texts dim"]:
        """Call `embed_queries` in a thread, so that the event loop is not blocked."""
        return await asyncio.to_thread(self.embed_queries, texts, instruction=instruction)

    async def aembed_documents(
        self, texts: Sequence[str], *, instruction: str | None = None
    ) -> Float[np.ndarray, "texts dim"]:
        """Call `embed_documents` in a thread, so that the event loop is not blocked."""
        return await asyncio.to_thread(self.embed_documents, texts, instruction=instruction)

    def cache_name(self, *, as_queries: bool) -> str:
        """Return a cache name that is unique to this view's queries or documents.

        The name depends on instruction, reader, length and the manifest of the model folder.
        """
        settings = self.config.to_dict()
        instructions = settings.pop("instruction", None), settings.pop("document_instruction", None)
        settings |= {"as_queries": as_queries, "under": instructions[0 if as_queries else 1]}
        manifest = Path(self.config.model) / MANIFEST_NAME
        if manifest.is_file():
            settings |= {"model": str(manifest.parent.resolve()), "manifest": file_sha256(manifest)}
        return f"promptembedder-{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]}"

    def _vectors(
        self, texts: Sequence[str], instruction: str | None, *, as_queries: bool
    ) -> Float[np.ndarray, "texts dim"]:
        return self._model().embed(
            texts, instruction=instruction, as_queries=as_queries, max_tokens=self.config.max_tokens
        )

    def _model(self) -> SharedModel:
        if self._shared is None:
            self._shared = shared_model(self.config.source)
        return self._shared

    def __getstate__(self) -> dict[str, Any]:
        """Return the configuration only; another process loads the model itself."""
        return {"config": self.config, "_shared": None}


_HOW_TO_FIX = {
    "model": "Give the folder or hub id of a saved PromptEmbedder; model.save(folder) writes one.",
    "instruction": "Describe in words what to search for, or omit it for the model's own.",
    "document_instruction": "Describe in words how documents are used, or omit it for the model's own.",
    "device": "Omit it for the fastest available.",
}


def _instruction_for_call(name: str, instruction: str | None, config: ViewConfig) -> str | None:
    """Return the checked instruction of a call, or that of the view if the call has none."""
    if instruction is not None:
        _check_string(name, instruction)
        return instruction
    default: str | None = getattr(config, name)
    return default


def _check_string(name: str, value: str) -> None:
    fix = _HOW_TO_FIX.get(name, "Omit it for the model's own.")
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {type(value).__name__}. {fix}")
    if not value.strip():
        raise ConfigError(f"{name} is blank. {fix}")


def _check_list(texts: Sequence[str]) -> None:
    if isinstance(texts, str):  # a str is a sequence: its characters would be embedded
        raise TypeError("texts must be a list of str, got one str. Put it into a list.")
