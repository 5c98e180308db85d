"""Chroma's `EmbeddingFunction`; importing this file registers it, so that collections find it again by name."""

from typing import Any

from promptembedder.extras import foreign_imports

with foreign_imports("chromadb", extra="chroma", at_least="1.5"):
    from chromadb.api.types import Documents, EmbeddingFunction, Space
    from chromadb.utils.embedding_functions import register_embedding_function

import numpy as np

from promptembedder.errors import ConfigError
from promptembedder.integrations.embedder_view import InstructedView, ViewConfig

__all__ = ["PromptEmbedderEmbeddingFunction"]


@register_embedding_function
class PromptEmbedderEmbeddingFunction(EmbeddingFunction[Documents]):
    """Documents under one instruction, queries under another; the model is loaded once for all.

    A collection keeps name and configuration, and opens again without being given the function.

    Attributes:
        view: What it computes with.
    """

    def __init__(
        self,
        model: str,
        *,
        instruction: str | None = None,
        document_instruction: str | None = None,
        reader: str | None = None,
        revision: str | None = None,
        quantization: str | None = None,
        device: str | None = None,
        max_tokens: int | None = None,
    ) -> None:
        """See `model` under an instruction; the arguments are those of `ViewConfig`.

        Raises:
            TypeError: An argument is of the wrong type.
            ConfigError: One is blank or out of range.
        """
        self.view = InstructedView(
            ViewConfig(
                model=model,
                instruction=instruction,
                document_instruction=document_instruction,
                reader=reader,
                revision=revision,
                quantization=quantization,
                device=device,
                max_tokens=max_tokens,
            )
        )

    def __call__(self, input: list[str]) -> list[np.ndarray]:
        """Unit vectors of documents.

        Raises:
            DataError: One has no text.
        """
        return list(self.view.embed_documents(input))

    def embed_query(self, input: list[str]) -> list[np.ndarray]:
        """Unit vectors of queries.

        Raises:
            DataError: One is no string.
        """
        return list(self.view.embed_queries(input))

    @staticmethod
    def name() -> str:
        """Under which collections find it again."""
        return "promptembedder"

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> "PromptEmbedderEmbeddingFunction":
        """The function whose `get_config` this was; no model is loaded.

        Raises:
            ConfigError: A setting is unknown, or the model is missing.
        """
        return PromptEmbedderEmbeddingFunction(**ViewConfig.from_dict(config).to_dict())

    def get_config(self) -> dict[str, Any]:
        """What a collection keeps."""
        return self.view.config.to_dict()

    @staticmethod
    def validate_config(config: dict[str, Any]) -> None:
        """Refuse what no function can be built from.

        Raises:
            ConfigError: A setting is unknown, out of range, or the model is missing.
            TypeError: A setting is of the wrong type.
        """
        ViewConfig.from_dict(config)

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """Refuse what would leave the collection's vectors those of another model; its folder may have moved.

        Raises:
            ConfigError: Reader, length or the documents' instruction differ.
        """
        for name in ("reader", "document_instruction", "max_tokens"):
            old, new = old_config.get(name), new_config.get(name)
            if old != new:
                raise ConfigError(
                    f"the collection's vectors were made with {name}={old!r}, not {new!r}. Make a new collection."
                )

    def default_space(self) -> Space:
        """Cosine."""
        return "cosine"

    def supported_spaces(self) -> list[Space]:
        """All: for vectors of length 1 they put results in the same order."""
        return ["cosine", "l2", "ip"]
