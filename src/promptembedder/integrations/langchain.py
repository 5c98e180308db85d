"""LangChain's `Embeddings`."""

from typing import Unpack

from promptembedder.extras import require_version

with require_version("langchain-core", extra="langchain", at_least="1.0"):
    from langchain_core.embeddings import Embeddings

from promptembedder.integrations.embedder_view import EmbedderView, ViewConfig, ViewOptions

__all__ = ["PromptEmbedderEmbeddings"]


class PromptEmbedderEmbeddings(Embeddings):
    """Embeddings under one instruction for queries and one for documents. All instances share one loaded model.

    Attributes:
        view: View of the model that computes the embeddings; `view.config` can be written as JSON.
    """

    def __init__(self, model: str, **options: Unpack[ViewOptions]) -> None:
        """Embed with a saved model; the arguments are those of `ViewConfig`. The model is loaded at the first text.

        Raises:
            TypeError: An argument has the wrong type.
            ConfigError: An argument is blank or out of range.
        """
        self.view = EmbedderView(ViewConfig(model=model, **options))

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents as unit vectors.

        Raises:
            DataError: A document has no text.
        """
        return self.view.embed_documents(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        """Embed a query as a unit vector.

        Raises:
            DataError: The query is not a string.
        """
        return self.view.embed_queries([text])[0].tolist()

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Call `embed_documents` in a thread."""
        return (await self.view.aembed_documents(texts)).tolist()

    async def aembed_query(self, text: str) -> list[float]:
        """Call `embed_query` in a thread."""
        return (await self.view.aembed_queries([text]))[0].tolist()
