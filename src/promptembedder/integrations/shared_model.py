"""One loaded model for all views of it in a process, whatever their instructions, from any thread."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import numpy as np
from jaxtyping import Float  # not from shapes, which needs torch: seconds, and a view may never compute

from promptembedder.storage import MANIFEST_NAME

if TYPE_CHECKING:
    from promptembedder.model import PromptEmbedder

__all__ = ["ModelSource", "SharedModel", "forget_models", "shared_model"]

_KEPT = 2  # models that stay though no view holds them: LanceDB makes a new view for each search


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Which saved model, and how it is opened: what `PromptEmbedder.from_pretrained` takes, of the same names."""

    model: str
    revision: str | None = None
    reader: str | None = None
    quantization: str | None = None
    device: str | None = None


class SharedModel:
    """A loaded model that answers one call at a time."""

    def __init__(self, model: "PromptEmbedder") -> None:
        """Answer with `model`, which nobody else uses."""
        self._model = model
        self._max_tokens = model.encoder.max_seq_length
        # its reading, its memory of soft tokens and its limit on lengths are one each, and a second text beside the
        # first would be no faster
        self._one_at_a_time = threading.Lock()

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self._model.encoder.reader.dim

    def vectors(
        self, texts: Sequence[str], *, instruction: str | None, as_queries: bool, max_tokens: int | None
    ) -> Float[np.ndarray, "texts dim"]:
        """Unit vectors of the texts, float32.

        Args:
            instruction: None: the model's own for queries, or for documents.
            max_tokens: Of a text that are read; None: as many as the model was trained for.

        Raises:
            ConfigError: The reader has fewer positions, or the instruction is too long for the prompter.
        """
        if not texts:
            return np.zeros((0, self.dim), dtype=np.float32)
        with self._one_at_a_time:
            self._model.encoder.max_seq_length = max_tokens or self._max_tokens
            encode = self._model.encode_query if as_queries else self._model.encode_document
            return encode(list(texts), prompt=instruction, show_progress_bar=False)


_lock = threading.Lock()
_alive: "WeakValueDictionary[tuple[object, ...], SharedModel]" = WeakValueDictionary()
_last_used: "OrderedDict[tuple[object, ...], SharedModel]" = OrderedDict()


def shared_model(source: ModelSource) -> SharedModel:
    """The model that `source` names, loaded unless a view holds it already or it was one of the last two used.

    A folder that was saved anew is another model.

    Raises:
        ModelFormatError: The folder is torn, or a backbone's weights have changed.
        BackboneError: The backbone is missing.
    """
    key = _key(source)
    with _lock:  # while loading, too: two threads that ask at once get one model
        found = _alive.get(key)
        if found is None:
            found = _alive[key] = _loaded(source)
        _last_used[key] = found
        _last_used.move_to_end(key)
        while len(_last_used) > _KEPT:
            _last_used.popitem(last=False)
    return found


def forget_models() -> None:
    """Give back the memory of models that no view holds."""
    with _lock:
        _last_used.clear()


def _loaded(source: ModelSource) -> SharedModel:
    from promptembedder import PromptEmbedder

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
    """Equal for what loads to the same model."""
    opened = (source.revision, source.reader, source.quantization, source.device)
    folder = Path(source.model)
    manifest = folder / MANIFEST_NAME
    if not manifest.is_file():
        return (source.model, *opened)
    facts = manifest.stat()
    return (str(folder.resolve()), facts.st_mtime_ns, facts.st_ino, *opened)
