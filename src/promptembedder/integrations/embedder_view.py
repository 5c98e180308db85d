"""View of a saved model under one instruction for queries and one for documents; all views of a model share it."""

import asyncio
import dataclasses
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict
from weakref import WeakValueDictionary

import numpy as np
from jaxtyping import Float  # not from types, which imports torch: seconds, and a view may never compute

from promptembedder.errors import ConfigError, DataError, short_repr
from promptembedder.storage import MANIFEST_NAME, file_sha256

if TYPE_CHECKING:
    from promptembedder.model import PromptEmbedder

__all__ = ["EmbedderView", "ModelOptions", "ViewConfig", "ViewOptions", "forget_models"]

_MAX_UNUSED = 2  # models that stay loaded without a view: LanceDB creates a new view for each search


class ModelOptions(TypedDict, total=False):
    """Fields of `ViewConfig` other than the model and the instructions, as keyword arguments."""

    reader: str | None
    revision: str | None
    quantization: str | None
    device: str | None
    max_tokens: int | None


class ViewOptions(ModelOptions, total=False):
    """Fields of `ViewConfig` other than the model, as keyword arguments."""

    instruction: str | None
    document_instruction: str | None


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


class SharedModel:
    """Loaded model that processes one call at a time."""

    def __init__(self, model: "PromptEmbedder") -> None:
        """Take over `model`, which no other code may use."""
        self._model = model
        self._max_tokens = model.encoder.max_seq_length
        # batcher, soft-token cache and length limit are shared state, and parallel calls would be no faster
        self._call_lock = threading.Lock()

    @property
    def dim(self) -> int:
        """Embedding dimension."""
        return self._model.encoder.reader.dim

    def embed(
        self, texts: Sequence[str], *, instruction: str | None, as_queries: bool, max_tokens: int | None
    ) -> Float[np.ndarray, "texts dim"]:
        """Embed texts as unit vectors, float32.

        Args:
            instruction: If None, the model's own instruction for queries or documents.
            max_tokens: Maximum length of a text in tokens. If None, that of the model.

        Raises:
            ConfigError: The reader has fewer positions, or the instruction is too long for the prompter.
        """
        if not texts:
            return np.zeros((0, self.dim), dtype=np.float32)
        with self._call_lock:
            self._model.encoder.max_seq_length = max_tokens or self._max_tokens
            encode = self._model.encode_query if as_queries else self._model.encode_document
            return encode(list(texts), prompt=instruction, show_progress_bar=False)


_lock = threading.Lock()
_models: "WeakValueDictionary[tuple[object, ...], SharedModel]" = WeakValueDictionary()
_recent: "OrderedDict[tuple[object, ...], SharedModel]" = OrderedDict()


def shared_model(config: ViewConfig) -> SharedModel:
    """Return the model of a view. It is loaded unless a view holds it or it is one of the two most recently used.

    A folder that was saved again counts as another model.

    Raises:
        ModelFormatError: The folder is incomplete, or a backbone's weights have changed.
        BackboneError: The backbone is missing.
    """
    options = {name: getattr(config, name) for name in ("revision", "reader", "quantization", "device")}
    manifest = Path(config.model) / MANIFEST_NAME
    key: tuple[object, ...] = (config.model, *options.values())
    if manifest.is_file():
        stat = manifest.stat()
        key = (str(manifest.parent.resolve()), stat.st_mtime_ns, stat.st_ino, *options.values())
    with _lock:  # also during loading: concurrent callers get one model
        model = _models.get(key)
        if model is None:
            from promptembedder.model import PromptEmbedder

            model = _models[key] = SharedModel(PromptEmbedder.from_pretrained(config.model, **options))
        _recent[key] = model
        _recent.move_to_end(key)
        while len(_recent) > _MAX_UNUSED:
            _recent.popitem(last=False)
    return model


def forget_models() -> None:
    """Free the memory of models that no view holds."""
    with _lock:
        _recent.clear()


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
        return self._embed(texts, "instruction", instruction)

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
        return self._embed(texts, "document_instruction", instruction)

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

    def _embed(self, texts: Sequence[str], kind: str, instruction: str | None) -> Float[np.ndarray, "texts dim"]:
        """Embed under the instruction of the call, or that of the view named `kind` if the call has none."""
        if instruction is None:
            instruction = getattr(self.config, kind)
        else:
            _check_string(kind, instruction)
        as_queries = kind == "instruction"
        return self._model().embed(
            texts, instruction=instruction, as_queries=as_queries, max_tokens=self.config.max_tokens
        )

    def _model(self) -> SharedModel:
        if self._shared is None:
            self._shared = shared_model(self.config)
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


def _check_string(name: str, value: str) -> None:
    fix = _HOW_TO_FIX.get(name, "Omit it for the model's own.")
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {type(value).__name__}. {fix}")
    if not value.strip():
        raise ConfigError(f"{name} is blank. {fix}")


def _check_list(texts: Sequence[str]) -> None:
    if isinstance(texts, str):  # a str is a sequence: its characters would be embedded
        raise TypeError("texts must be a list of str, got one str. Put it into a list.")
