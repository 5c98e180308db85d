"""Base class of all encoders: a reader, a length limit and an instruction for every text."""

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from sentence_transformers.base.modules import InputModule
from torch import nn

from promptembedder.backbone import Backbone, hub_reachable, hub_refusal
from promptembedder.data import clean_text
from promptembedder.errors import ConfigError, ModelFormatError, WeightsError
from promptembedder.storage.tensors import load_tensors
from promptembedder.types import Float, Tensor

__all__ = [
    "MAX_TEMPLATE_TOKENS",
    "RowInstructions",
    "TextEncoder",
    "is_hub_id",
    "restore_tensors",
    "saved_folder",
    "saved_state",
    "trained_state",
]

logger = logging.getLogger(__name__)

MAX_TEMPLATE_TOKENS = 256  # of instruction and template, in addition to max_seq_length
# prefixes of buffers that are fitted to texts and do not follow from the configuration
_FITTED = ("text_pooling.", "state_mean", "state_std")


def trained_state(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained parameters by name, in a fixed order."""
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def saved_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a saved encoder: trained parameters and buffers fitted to texts."""
    fitted = {name: tensor for name, tensor in module.state_dict().items() if name.startswith(_FITTED)}
    return {**trained_state(module), **fitted}


@torch.no_grad()
def restore_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Copy the tensors of the file into `state`, in place.

    Raises:
        ModelFormatError: If the file contains other tensors than `state`.
    """
    saved = load_tensors(path, {name: tensor.shape for name, tensor in state.items()})
    for name, tensor in state.items():
        if saved[name].is_floating_point() != tensor.is_floating_point():
            raise ModelFormatError(f"{path}: tensor {name!r} is {saved[name].dtype}, expected {tensor.dtype}.")
        tensor.copy_(saved[name])


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
        return Path(snapshot_download(str(name), revision=revision, local_files_only=not hub_reachable()))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = (
            hub_refusal(str(name), error, instead="the folder of a saved model") or str(error).strip().splitlines()[0]
        )
        raise ModelFormatError(f"{name} is no folder, and the hub does not give it: {reason}") from error


class RowInstructions(tuple[str, ...]):
    """Instructions of the texts of a batch, one each, in place of one prompt.

    A type of its own, because a list is refused as a prompt: it is mistaken for the instructions of
    `encode_instructions`.
    """


class TextEncoder(InputModule):
    """Encoder of texts under an instruction to unit vectors: the single module of a SentenceTransformer.

    It is one module because sentence-transformers casts the modules of a chain to the dtype of the first.

    Attributes:
        diagnostics: Statistics of the last training batch, logged with its loss.
        truncated_texts: Number of texts truncated so far.
    """

    def __init__(self, reader: Backbone, *, max_seq_length: int, positions_taken: int = 0) -> None:
        """Build an encoder on `reader`, which may be shared.

        Args:
            positions_taken: Positions that the encoder itself needs, of readers with a limited number of positions.

        Raises:
            ConfigError: If the reader has no positions left for a text.
        """
        super().__init__()
        self.reader = reader
        self.truncated_texts = 0
        self.diagnostics: dict[str, float] = {}
        limit = reader.max_positions
        self._text_room = None if limit is None else limit - positions_taken
        if self._text_room is not None and self._text_room < 1:
            raise ConfigError(
                f"num_soft_tokens must be at most {positions_taken + self._text_room - 1} for this reader, "
                f"got {positions_taken}: its positions end there."
            )
        self._max_seq_length = max_seq_length if self._text_room is None else min(max_seq_length, self._text_room)

    @abstractmethod
    def embed_columns(self, columns: Sequence[dict[str, Any]]) -> None:
        """Add `sentence_embedding` to the features of all columns of a batch."""

    @abstractmethod
    def restore(self, folder: Path) -> None:
        """Copy the trained weights of a saved model into this one, in place; backbones are not loaded.

        Raises:
            ModelFormatError: If the folder is incomplete or contains another model's weights.
        """

    @classmethod
    @abstractmethod
    def from_folder(cls, folder: Path, *, cache_folder: Path | None = None) -> "TextEncoder":
        """Load a saved module and the backbones that its manifest names.

        Raises:
            ModelFormatError: If the folder is incomplete or of another kind, or a backbone's weights have changed.
            BackboneError: If a backbone is missing.
        """

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> "TextEncoder":
        """Load a saved module. sentence-transformers calls this with keyword arguments of its own."""
        folder = Path(model_name_or_path)
        if not folder.is_dir():
            folder = Path(
                snapshot_download(
                    model_name_or_path,
                    revision=kwargs.get("revision"),
                    cache_dir=kwargs.get("cache_folder"),
                    token=kwargs.get("token"),
                    local_files_only=bool(kwargs.get("local_files_only")),
                )
            )
        return cls.from_folder(folder / subfolder).eval()

    @property
    def tokenizer(self) -> Any:
        """The reader's transformers tokenizer."""
        return self.reader.tokenizer.hf

    @property
    def max_seq_length(self) -> int:
        """Maximum number of tokens of a text."""
        return self._max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        if value < 1 or (self._text_room is not None and value > self._text_room):
            raise ConfigError(f"max_seq_length must be between 1 and {self._text_room or 'any length'}, got {value}.")
        self._max_seq_length = value

    @property
    def device(self) -> torch.device:
        """Device of the reader."""
        return self.reader.input_embeddings.device

    def get_embedding_dimension(self) -> int:
        """Return the dimension of the embedding, which is the reader's hidden size."""
        return self.reader.dim

    def trained_weights(self) -> list[nn.Parameter]:
        """Return all trained parameters, in a fixed order."""
        return list(trained_state(self).values())

    def token_features(
        self, texts: Sequence[str], *, prefixes: Sequence[str] | None = None, suffixes: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Tokenize texts. Those longer than `max_seq_length` are truncated, counted and reported by a warning.

        Args:
            prefixes: Inserted before each text, in addition to `max_seq_length`.
            suffixes: Inserted after each text, likewise.
        """
        cleaned = [clean_text(text) for text in texts]
        tokenizer, limit = self.reader.tokenizer, self.max_seq_length
        if prefixes is None and suffixes is None:
            batch = tokenizer.tokenize(cleaned, max_length=limit)
        else:
            whole = self.reader.max_positions or limit + MAX_TEMPLATE_TOKENS
            batch = tokenizer.tokenize(
                cleaned, max_length=whole, text_length=limit, prefixes=prefixes, suffixes=suffixes
            )
        self._count_truncated(batch.truncated)
        return {"input_ids": batch.ids, "attention_mask": batch.mask, "text_mask": batch.text_mask}

    def check_finite(self, embedding: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """Return the embedding unchanged if it is finite. Training mode skips the check: the trainer has its own.

        Raises:
            WeightsError: If a number of the embedding is NaN or infinite, in evaluation mode.
        """
        if not self.training and not bool(torch.isfinite(embedding).all()):
            raise WeightsError(
                "the embedding is not finite: the weights contain NaN or inf. Load an earlier checkpoint."
            )
        return embedding

    def _count_truncated(self, count: int) -> None:
        before, self.truncated_texts = self.truncated_texts, self.truncated_texts + count
        # warn once, and again each time the count doubles, rather than for each batch
        if count and self.truncated_texts.bit_length() > before.bit_length():
            logger.warning(
                "%d texts so far were longer than %d tokens and lost their end; raise max_seq_length to keep it",
                self.truncated_texts,
                self.max_seq_length,
            )
