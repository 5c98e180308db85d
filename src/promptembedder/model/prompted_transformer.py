"""A SentenceTransformer whose prompt is the instruction: base class of the model and its baselines."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from sentence_transformers import SentenceTransformer

from promptembedder.backbone import hub_refusal
from promptembedder.errors import ModelFormatError, first_line
from promptembedder.method import TextEncoder
from promptembedder.storage import atomic_directory, hash_files, resolve_file

__all__ = ["Encoder", "PromptedSentenceTransformer", "is_hub_id", "saved_folder"]


class PromptedSentenceTransformer(SentenceTransformer):
    """One `TextEncoder` behind all that a SentenceTransformer does."""

    @property
    def text_encoder(self) -> TextEncoder:
        """The one module."""
        module = self[0]
        assert isinstance(module, TextEncoder)
        return module

    def preprocess(self, inputs: Sequence[str], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Features of the texts under the instruction `prompt`.

        Overridden because the parent falls back to gluing the prompt to the text when a module raises TypeError.
        """
        return self.text_encoder.preprocess(inputs, prompt=prompt, **kwargs)

    def forward(self, input: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Features with their `sentence_embedding`; of {"columns": [...]}, those of all columns of a batch.

        A wrapper that counts forward passes (DDP) so sees one a step. What is embedded already is left as it is.
        """
        if "columns" in input:
            self.text_encoder.embed_columns(input["columns"])
            return input
        return input if "sentence_embedding" in input else super().forward(input, **kwargs)

    def save(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Save as a SentenceTransformer does, whole or not at all; backbones are named, not copied."""
        with atomic_directory(Path(path)) as scratch:
            super().save(str(scratch), *args, **kwargs)
            hash_files(scratch)

    def restore_config(self, folder: Path) -> None:
        """Prompts, similarity and the like, which sentence-transformers keeps beside the module, and the model card.

        Raises:
            ModelFormatError: Their file is damaged, or a link out of the folder.
        """
        card = folder / "README.md"
        if card.is_file():  # saved again it is written as it was: what it says of the training is nowhere else
            card = resolve_file(folder, card.name)  # nothing has hashed it: a link may lead anywhere
            self._model_card_text = card.read_text(encoding="utf-8", errors="replace")
        path = folder / "config_sentence_transformers.json"
        if not path.is_file():
            return
        path = resolve_file(folder, path.name)
        # the parent keeps what is set already, and its empty prompts count as set; None does not
        for name in self.prompts:
            self.prompts[name] = None
        try:
            self._parse_model_config(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, AttributeError) as error:
            raise ModelFormatError(
                f"{path} is damaged: {first_line(error)}. Save or download the model again."
            ) from error
        self._validate_prompts()


def is_hub_id(name: str | Path) -> bool:
    """Whether `name` is no folder and looks like `owner/name`."""
    return not Path(name).is_dir() and str(name).count("/") == 1 and not str(name).startswith((".", "/", "~"))


def saved_folder(name: str | Path, *, revision: str | None = None) -> Path:
    """The folder of a saved model: itself, or the hub's copy of it.

    Raises:
        ModelFormatError: It looks like a hub id, and the hub does not give it.
    """
    if not is_hub_id(name):
        return Path(name)
    try:
        return Path(snapshot_download(str(name), revision=revision))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = (
            hub_refusal(str(name), error, instead="the folder of a saved model") or str(error).strip().splitlines()[0]
        )
        raise ModelFormatError(f"{name} is no folder, and the hub does not give it: {reason}") from error


@runtime_checkable
class Encoder(Protocol):
    """Texts in, one vector each out."""

    def encode(
        self, inputs: list[str], *, prompt: str | None = None, batch_size: int = 32, **kwargs: Any
    ) -> np.ndarray:
        """Vectors of the texts under the instruction `prompt`, float32 [texts dim]."""
        ...
