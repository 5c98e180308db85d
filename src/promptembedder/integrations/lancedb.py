"""LanceDB's `TextEmbeddingFunction`. Importing this module registers it, so that tables find it by name."""

from collections.abc import Sequence
from typing import Any

from promptembedder.extras import require_version

with require_version("lancedb", extra="search", at_least="0.40"):
    from lancedb.embeddings import TextEmbeddingFunction, register
    from pydantic import PrivateAttr

import numpy as np

from promptembedder.integrations.embedder_view import EmbedderView, ViewConfig

__all__ = ["PromptEmbedderFunction"]


@register("promptembedder")
class PromptEmbedderFunction(TextEmbeddingFunction):
    """Embedding function with one instruction for documents and one for queries. All instances share one loaded model.

    `create(...)` builds one; the table stores its arguments as JSON. A table that is reopened, also in another process
    that imports this module, needs nothing else.
    """

    config: ViewConfig
    _view: EmbedderView = PrivateAttr()

    def __init__(self, max_retries: int = 0, **settings: Any) -> None:
        """Embed with a saved model; the settings are those of `ViewConfig`.

        Args:
            max_retries: Argument of LanceDB. Unused, because a failed embedding would fail again.

        Raises:
            TypeError: A setting has the wrong type.
            ConfigError: A setting is unknown, blank or out of range, or `model` is missing.
        """
        fields: dict[str, Any] = {"max_retries": max_retries, "config": ViewConfig.from_dict(settings)}
        super().__init__(**fields)
        self._view = EmbedderView(self.config)

    @property
    def view(self) -> EmbedderView:
        """View of the model that computes the embeddings."""
        return self._view

    def ndims(self) -> int:
        """Return the embedding dimension; loads the model."""
        return self._view.dim

    def generate_embeddings(self, texts: Sequence[str] | np.ndarray, *_: Any, **__: Any) -> list[Any]:
        """Embed documents as unit vectors; LanceDB calls this method for documents only.

        Raises:
            DataError: A document has no text.
        """
        return list(self._view.embed_documents(list(texts)))

    def compute_query_embeddings(self, query: str, *_: Any, **__: Any) -> list[Any]:
        """Embed a query as a list of one unit vector.

        Raises:
            DataError: The query is not a string.
        """
        return list(self._view.embed_queries([query]))

    # LanceDB retries every error and reports only the retries; without a network call neither helps

    def compute_query_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Call `compute_query_embeddings` without retries."""
        return self.compute_query_embeddings(*args, **kwargs)

    def compute_source_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Call `compute_source_embeddings` without retries."""
        return self.compute_source_embeddings(*args, **kwargs)
