"""A model seen under one instruction for queries and one for documents: small, and safe to write as JSON."""

import asyncio
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float  # not from shapes, which needs torch

from promptembedder.errors import ConfigError, DataError, shown
from promptembedder.integrations.shared_model import ModelSource, SharedModel, shared_model
from promptembedder.storage import MANIFEST_NAME, file_sha256

__all__ = ["InstructedView", "ViewConfig"]


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """Everything that makes a view: what the frameworks store, and build it from again.

    Attributes:
        model: Folder or hub id of a saved PromptEmbedder.
        instruction: For queries; None: the model's own.
        document_instruction: For documents; None: the model's own, which is the default one where it has none.
        reader: Which of the LLMs that the model was moved to; None: the one it was saved with.
        revision: Of a model on the hub.
        quantization: `int8`, or None as it was trained.
        device: None: the best that there is.
        max_tokens: Of a text that are read; None: as many as the model was trained for.
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
        """What `to_dict` gave.

        Raises:
            ConfigError: A setting is unknown, or the model is missing.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise ConfigError(f"unknown setting {shown(unknown[0])} of a view. Use: {', '.join(sorted(known))}.")
        if "model" not in settings:
            raise ConfigError("a view needs a model. Give the folder or hub id of a saved one.")
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, those that are set alone."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    @property
    def source(self) -> ModelSource:
        """The part that says which model to load."""
        return ModelSource(
            model=self.model,
            revision=self.revision,
            reader=self.reader,
            quantization=self.quantization,
            device=self.device,
        )


class InstructedView:
    """Queries under one instruction, documents under another, by a model that all views share.

    The model is loaded at the first text. Copies and pickles carry the configuration alone.
    """

    def __init__(self, config: ViewConfig) -> None:
        """See the model as `config` says; nothing is loaded yet."""
        self.config = config
        self._shared: SharedModel | None = None

    def warm_up(self) -> None:
        """Load the model now.

        Raises:
            ModelFormatError: There is none, or it is torn.
            BackboneError: Its backbone is missing.
        """
        self._model()

    @property
    def dim(self) -> int:
        """Width of the vectors; loads the model."""
        return self._model().dim

    def embed_queries(self, texts: Sequence[str], *, instruction: str | None = None) -> Float[np.ndarray, "texts dim"]:
        """Unit vectors of queries, float32.

        Args:
            instruction: For this call, instead of the view's.

        Raises:
            DataError: A text is no string.
            TypeError: The instruction is no string, or the texts are one.
        """
        _check_list(texts)
        for place, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"query {place} must be a str, got {type(text).__name__}. Convert it.")
        return self._vectors(texts, _called_for("instruction", instruction, self.config), as_queries=True)

    def embed_documents(
        self, texts: Sequence[str], *, instruction: str | None = None
    ) -> Float[np.ndarray, "texts dim"]:
        """Unit vectors of documents, float32.

        Args:
            instruction: For this call, instead of the view's instruction for documents.

        Raises:
            DataError: A document has no text: its vector would say what the instruction says, and be near to queries.
            TypeError: The instruction is no string, or the texts are one.
        """
        _check_list(texts)
        for place, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(
                    f"document {place} must be a str, got {type(text).__name__}. Convert it, or leave it out."
                )
            if not text.strip():
                raise DataError(f"document {place} has no text, only {shown(text)}. Leave it out, or give it some.")
        return self._vectors(texts, _called_for("document_instruction", instruction, self.config), as_queries=False)

    async def aembed_queries(
        self, texts: Sequence[str], *, instruction: str | None = None
    ) -> Float[np.ndarray, "texts dim"]:
        """As `embed_queries`, in a thread: the event loop goes on."""
        return await asyncio.to_thread(self.embed_queries, texts, instruction=instruction)

    async def aembed_documents(
        self, texts: Sequence[str], *, instruction: str | None = None
    ) -> Float[np.ndarray, "texts dim"]:
        """As `embed_documents`, in a thread: the event loop goes on."""
        return await asyncio.to_thread(self.embed_documents, texts, instruction=instruction)

    def cache_name(self, *, as_queries: bool) -> str:
        """A name for the vectors of this view's queries, or documents, which no others have.

        Another instruction, reader or length is another name, and so is another model in the same folder.
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
        return self._model().vectors(
            texts, instruction=instruction, as_queries=as_queries, max_tokens=self.config.max_tokens
        )

    def _model(self) -> SharedModel:
        if self._shared is None:
            self._shared = shared_model(self.config.source)
        return self._shared

    def __getstate__(self) -> dict[str, Any]:
        """The configuration alone: another process loads the model itself."""
        return {"config": self.config, "_shared": None}


_MENDS = {
    "model": "Give the folder or hub id of a saved PromptEmbedder; model.save(folder) writes one.",
    "instruction": "Say in words what is looked for, or leave it out for the model's own.",
    "document_instruction": "Say in words what documents are read for, or leave it out for the model's own.",
    "device": "Leave it out for the best that there is.",
}


def _called_for(name: str, instruction: str | None, config: ViewConfig) -> str | None:
    """The instruction of a call: its own, checked as the view's are, or the view's."""
    if instruction is not None:
        _check_string(name, instruction)
        return instruction
    own: str | None = getattr(config, name)
    return own


def _check_string(name: str, value: str) -> None:
    mend = _MENDS.get(name, "Leave it out for the model's own.")
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {type(value).__name__}. {mend}")
    if not value.strip():
        raise ConfigError(f"{name} is blank. {mend}")


def _check_list(texts: Sequence[str]) -> None:
    if isinstance(texts, str):  # its letters would be embedded
        raise TypeError("texts must be a list of str, got one str. Put it into a list.")
