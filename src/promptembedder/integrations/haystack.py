"""Haystack's text embedder and document embedder. Importing this module allows saved pipelines to load them."""

import asyncio
import dataclasses
from typing import Any, ClassVar, Unpack

from promptembedder.extras import require_version

with require_version("haystack-ai", extra="haystack", at_least="3.0"):
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.core.serialization import allow_deserialization_module

from promptembedder.errors import DataError
from promptembedder.integrations.embedder_view import EmbedderView, ModelOptions, ViewConfig

__all__ = ["PromptEmbedderDocumentEmbedder", "PromptEmbedderTextEmbedder"]

allow_deserialization_module(__name__)  # otherwise Haystack refuses to load pipelines with these components


class _ViewComponent:
    """Component with a view of a saved model, whose configuration a saved pipeline stores.

    Attributes:
        view: View of the model that computes the embeddings.
    """

    # field of `ViewConfig` that the argument `instruction` sets
    _instruction_field: ClassVar[str]

    def __init__(self, model: str, *, instruction: str | None = None, **options: Unpack[ModelOptions]) -> None:
        """Embed with a saved model; the arguments are those of `ViewConfig`. The model is loaded at the first text.

        Args:
            instruction: Instruction for the texts that the component embeds. If None, the model's own.

        Raises:
            TypeError: An argument has the wrong type.
            ConfigError: An argument is blank or out of range.
        """
        settings: dict[str, Any] = {self._instruction_field: instruction, **options}
        self.view = EmbedderView(ViewConfig(model=model, **settings))

    def warm_up(self) -> None:
        """Load the model."""
        self.view.warm_up()

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration that a saved pipeline stores."""
        settings = self.view.config.to_dict()
        return default_to_dict(self, instruction=settings.pop(self._instruction_field, None), **settings)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "_ViewComponent":
        """Build the component from the result of `to_dict`; no model is loaded."""
        return default_from_dict(cls, data)


@component
class PromptEmbedderTextEmbedder(_ViewComponent):
    """Embedder of a query under an instruction, which each call may override. All components share one loaded model."""

    _instruction_field = "instruction"

    @component.output_types(embedding=list[float])
    def run(self, text: str, instruction: str | None = None) -> dict[str, Any]:
        """Embed `text` as a unit vector, returned as `embedding`.

        Args:
            instruction: Overrides the instruction of the component for this call.

        Raises:
            DataError: The text is not a string.
            TypeError: The instruction is not a string.
        """
        return {"embedding": self.view.embed_queries([text], instruction=instruction)[0].tolist()}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str, instruction: str | None = None) -> dict[str, Any]:
        """Call `run` in a thread."""
        return await asyncio.to_thread(self.run, text, instruction)


@component
class PromptEmbedderDocumentEmbedder(_ViewComponent):
    """Embedder of documents under an instruction, which each call may override. All components share one loaded model.

    The document instruction of its view is the instruction of the component.
    """

    _instruction_field = "document_instruction"

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document], instruction: str | None = None) -> dict[str, Any]:
        """Embed documents; copies with their unit vectors are returned as `documents`.

        Args:
            instruction: Overrides the instruction of the component for this call.

        Raises:
            DataError: A document has no text.
            TypeError: `documents` is not a list of documents, or the instruction is not a string.
        """
        vectors = self.view.embed_documents(_document_texts(documents), instruction=instruction).tolist()
        embedded = [
            dataclasses.replace(document, embedding=vector) for document, vector in zip(documents, vectors, strict=True)
        ]
        return {"documents": embedded}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document], instruction: str | None = None) -> dict[str, Any]:
        """Call `run` in a thread."""
        return await asyncio.to_thread(self.run, documents, instruction)


def _document_texts(documents: list[Document]) -> list[str]:
    if not isinstance(documents, list) or not all(isinstance(document, Document) for document in documents):
        raise TypeError("documents must be a list of haystack.Document. For a text, use PromptEmbedderTextEmbedder.")
    contents = []
    for document in documents:
        if document.content is None or not document.content.strip():
            raise DataError(f"document {document.id!r} has no text. Add content, or remove it.")
        contents.append(document.content)
    return contents
