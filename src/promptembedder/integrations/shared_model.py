"""Process-wide cache of loaded models: all views of a model share it, from any thread."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import numpy as np
from jaxtyping import Float  # not from types, which imports torch: seconds, and a view may never compute

from promptembedder.storage import MANIFEST_NAME

if TYPE_CHECKING:
    from promptembedder.model import PromptEmbedder

__all__ = ["ModelSource", "SharedModel", "forget_models", "shared_model"]

_MAX_UNUSED = 2  # models that stay loaded without a view: LanceDB creates a new view for each search


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Arguments of `PromptEmbedder.from_pretrained` that determine which model is loaded."""

    model: str
    revision: str | None = None
    reader: str | None = None
    quantization: str | None = None
    device: str | None = None


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


def shared_model(source: ModelSource) -> SharedModel:
    """Return the model of `source`. It is loaded unless a view holds it or it is one of the two most recently used.

    A folder that was saved again counts as another model.

    Raises:
        ModelFormatError: The folder is incomplete, or a backbone's weights have changed.
        BackboneError: The backbone is missing.
    """
    key = _key(source)
    with _lock:  # also during loading: concurrent callers get one model
        model = _models.get(key)
        if model is None:
            model = _models[key] = _load(source)
        _recent[key] = model
        _recent.move_to_end(key)
        while len(_recent) > _MAX_UNUSED:
            _recent.popitem(last=False)
    return model


def forget_models() -> None:
    """Free the memory of models that no view holds."""
    with _lock:
        _recent.clear()


def _load(source: ModelSource) -> SharedModel:
    from promptembedder.model import PromptEmbedder

    return SharedModel(
        PromptEmbedder.from_pretrained(
            source.model,
            revision=source.revision,
            reader=source.reader,
            quantization=source.quantization,
            device=source.device,
        )
    )


def _key(source: ModelSource) -> tuple[object, ...]:
    """Return a key that is equal for sources that load the same model."""
    options = (source.revision, source.reader, source.quantization, source.device)
    folder = Path(source.model)
    manifest = folder / MANIFEST_NAME
    if not manifest.is_file():
        return (source.model, *options)
    stat = manifest.stat()
    return (str(folder.resolve()), stat.st_mtime_ns, stat.st_ino, *options)
