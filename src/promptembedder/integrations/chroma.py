"""Chroma's `EmbeddingFunction`. Importing this module registers it, so that collections find it by name."""

from typing import Any, Unpack

from promptembedder.extras import require_version

with require_version("chromadb", extra="chroma", at_least="1.5"):
    from chromadb.api.types import Documents, EmbeddingFunction, Space
    from chromadb.utils.embedding_functions import register_embedding_function

import numpy as np

from promptembedder.errors import ConfigError
from promptembedder.integrations.embedder_view import EmbedderView, ViewConfig, ViewOptions

__all__ = ["PromptEmbedderEmbeddingFunction"]


@register_embedding_function
class PromptEmbedderEmbeddingFunction(EmbeddingFunction[Documents]):
    """Embedding function with one instruction for documents and one for queries. All instances share one loaded model.

    A collection stores name and configuration, and reopens without the function as an argument.

    Attributes:
        view: View of the model that computes the embeddings.
    """

    def __init__(self, model: str, **options: Unpack[ViewOptions]) -> None:
        """Embed with a saved model; the arguments are those of `ViewConfig`. The model is loaded at the first text.

        Raises:
            TypeError: An argument has the wrong type.
            ConfigError: An argument is blank or out of range.
        """
        self.view = EmbedderView(ViewConfig(model=model, **options))

    def __call__(self, input: list[str]) -> list[np.ndarray]:
        """Embed documents as unit vectors.

        Raises:
            DataError: A document has no text.
        """
        return list(self.view.embed_documents(input))

    def embed_query(self, input: list[str]) -> list[np.ndarray]:
        """Embed queries as unit vectors.

        Raises:
            DataError: A query is not a string.
        """
        return list(self.view.embed_queries(input))

    @staticmethod
    def name() -> str:
        """Return the name under which collections store this function."""
        return "promptembedder"

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> "PromptEmbedderEmbeddingFunction":
        """Build the function from the result of `get_config`; no model is loaded.

        Raises:
            ConfigError: A setting is unknown, or `model` is missing.
        """
        return PromptEmbedderEmbeddingFunction(**ViewConfig.from_dict(config).to_dict())

    def get_config(self) -> dict[str, Any]:
        """Return the configuration that a collection stores."""
        return self.view.config.to_dict()

    @staticmethod
    def validate_config(config: dict[str, Any]) -> None:
        """Check that a function can be built from `config`.

        Raises:
            ConfigError: A setting is unknown or out of range, or `model` is missing.
            TypeError: A setting has the wrong type.
        """
        ViewConfig.from_dict(config)

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """Check that the new configuration computes the same document vectors; the model folder may differ.

        Raises:
            ConfigError: `reader`, `document_instruction` or `max_tokens` differ.
        """
        for name in ("reader", "document_instruction", "max_tokens"):
            old, new = old_config.get(name), new_config.get(name)
            if old != new:
                raise ConfigError(
                    f"the collection's vectors were made with {name}={old!r}, not {new!r}. Make a new collection."
                )

    def default_space(self) -> Space:
        """Return cosine as the default distance."""
        return "cosine"

    def supported_spaces(self) -> list[Space]:
        """Return all distances; for unit vectors they rank results equally."""
        return ["cosine", "l2", "ip"]
