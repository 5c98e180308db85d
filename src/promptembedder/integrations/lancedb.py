"""LanceDB's `TextEmbeddingFunction`; importing this file registers it, so that tables find it again by name."""

from collections.abc import Sequence
from typing import Any

from promptembedder.extras import foreign_imports

with foreign_imports("lancedb", extra="search", at_least="0.40"):
    from lancedb.embeddings import TextEmbeddingFunction, register
    from pydantic import PrivateAttr

import numpy as np

from promptembedder.integrations.embedder_view import InstructedView, ViewConfig

__all__ = ["PromptEmbedderFunction"]


@register("promptembedder")
class PromptEmbedderFunction(TextEmbeddingFunction):
    """Documents under one instruction, queries under another; the model is loaded once for all.

    Made with `create(...)`, whose arguments the table keeps as JSON. A table that is opened again, here or in another
    process that has imported this file, needs nothing else.
    """

    model: str
    instruction: str | None = None
    document_instruction: str | None = None
    reader: str | None = None
    revision: str | None = None
    quantization: str | None = None
    device: str | None = None
    max_tokens: int | None = None
    _view: InstructedView = PrivateAttr()

    def __init__(self, max_retries: int = 0, **settings: Any) -> None:
        """See a model under an instruction; the settings are those of `ViewConfig`.

        Args:
            max_retries: LanceDB's own; not used, since what fails here would fail again.

        Raises:
            TypeError: A setting is of the wrong type.
            ConfigError: One is unknown, blank or out of range, or the model is missing.
        """
        config = ViewConfig.from_dict(settings)  # before pydantic, which leaves out unknown names without a word
        super().__init__(max_retries=max_retries, **config.to_dict())
        self._view = InstructedView(config)

    @property
    def view(self) -> InstructedView:
        """What it computes with."""
        return self._view

    def ndims(self) -> int:
        """Width of the vectors; loads the model."""
        return self._view.dim

    def generate_embeddings(self, texts: Sequence[str] | np.ndarray, *_: Any, **__: Any) -> list[Any]:
        """Unit vectors of documents; LanceDB hands on nothing else.

        Raises:
            DataError: One has no text.
        """
        return list(self._view.embed_documents(list(texts)))

    def compute_query_embeddings(self, query: str, *_: Any, **__: Any) -> list[Any]:
        """The unit vector of a query, in a list.

        Raises:
            DataError: It is no string.
        """
        return list(self._view.embed_queries([query]))

    # LanceDB tries whatever fails again, and its last word is then that it did: neither helps where no network is asked

    def compute_query_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> list[Any]:
        """As `compute_query_embeddings`."""
        return self.compute_query_embeddings(*args, **kwargs)

    def compute_source_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> list[Any]:
        """As `compute_source_embeddings`."""
        return self.compute_source_embeddings(*args, **kwargs)
