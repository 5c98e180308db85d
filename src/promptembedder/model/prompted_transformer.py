"""SentenceTransformer with the instruction as its prompt: base class of the model and its baselines."""

import json
from collections.abc import Iterable, Mapping, Sequence
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
    """SentenceTransformer with one `TextEncoder` as its only module."""

    @property
    def text_encoder(self) -> TextEncoder:
        """The only module."""
        module = self[0]
        assert isinstance(module, TextEncoder)
        return module

    def is_singular_input(self, inputs: Any) -> bool:
        """Return True for one text. Any other iterable is a batch, such as a pandas Series.

        The parent class takes only lists, tuples and arrays for batches.
        """
        return isinstance(inputs, str | bytes | Mapping) or not isinstance(inputs, Iterable)

    def preprocess(self, inputs: Sequence[str], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Return the features of the texts under the instruction `prompt`.

        Overridden because the parent class prepends the prompt to the text if a module raises TypeError.
        """
        return self.text_encoder.preprocess(inputs, prompt=prompt, **kwargs)

    def forward(self, input: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add `sentence_embedding` to the features, or to those of all columns of a batch for {"columns": [...]}.

        With all columns in one call, a wrapper that counts forward passes (DDP) counts one per step. Features that
        already contain a `sentence_embedding` are returned unchanged.
        """
        if "columns" in input:
            self.text_encoder.embed_columns(input["columns"])
            return input
        return input if "sentence_embedding" in input else super().forward(input, **kwargs)

    def save(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Save atomically in the format of SentenceTransformer. Backbones are referenced, not copied."""
        with atomic_directory(Path(path)) as scratch:
            super().save(str(scratch), *args, **kwargs)
            hash_files(scratch)

    def restore_config(self, folder: Path) -> None:
        """Restore the model card and the configuration of sentence-transformers, such as its prompts.

        Raises:
            ModelFormatError: If a file is damaged, or if it is a link to a path outside of the folder.
        """
        card = folder / "README.md"
        if card.is_file():  # keep the card for the next save: only it describes the training
            card = resolve_file(folder, card.name)  # not hashed: a link may point to any file
            self._model_card_text = card.read_text(encoding="utf-8", errors="replace")
        path = folder / "config_sentence_transformers.json"
        if not path.is_file():
            return
        path = resolve_file(folder, path.name)
        # the parent class replaces only prompts that are None, not empty ones
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
    """Return True if `name` is not a folder and has the form `owner/name`."""
    return not Path(name).is_dir() and str(name).count("/") == 1 and not str(name).startswith((".", "/", "~"))


def saved_folder(name: str | Path, *, revision: str | None = None) -> Path:
    """Return the folder of a saved model. A hub id is downloaded.

    Raises:
        ModelFormatError: If `name` has the form of a hub id and cannot be downloaded.
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
    """Model that maps each text to one embedding."""

    def encode(
        self, inputs: list[str], *, prompt: str | None = None, batch_size: int = 32, **kwargs: Any
    ) -> np.ndarray:
        """Embed the texts under the instruction `prompt`, float32 [texts dim]."""
        ...
