"""LangChain's `Embeddings`."""

from promptembedder.extras import foreign_imports

with foreign_imports("langchain-core", extra="langchain", at_least="1.0"):
    from langchain_core.embeddings import Embeddings

from promptembedder.integrations.embedder_view import InstructedView, ViewConfig

__all__ = ["PromptEmbedderEmbeddings"]


class PromptEmbedderEmbeddings(Embeddings):
    """Queries under an instruction; another instruction is another object, and the model is loaded once for all.

    Attributes:
        view: What it computes with; `view.config` is small and safe to write as JSON.
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

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Unit vectors of documents.

        Raises:
            DataError: One has no text.
        """
        return self.view.embed_documents(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        """The unit vector of a query.

        Raises:
            DataError: It is no string.
        """
        return self.view.embed_queries([text])[0].tolist()

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """As `embed_documents`, in a thread."""
        return (await self.view.aembed_documents(texts)).tolist()

    async def aembed_query(self, text: str) -> list[float]:
        """As `embed_query`, in a thread."""
        return (await self.view.aembed_queries([text]))[0].tolist()
