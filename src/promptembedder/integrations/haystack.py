"""Haystack's text embedder and document embedder; importing this file lets saved pipelines name them."""

import asyncio
import dataclasses
from typing import Any

from promptembedder.extras import foreign_imports

with foreign_imports("haystack-ai", extra="haystack", at_least="3.0"):
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.core.serialization import allow_deserialization_module

from promptembedder.errors import DataError
from promptembedder.integrations.embedder_view import InstructedView, ViewConfig

__all__ = ["PromptEmbedderDocumentEmbedder", "PromptEmbedderTextEmbedder"]

allow_deserialization_module(__name__)  # else Haystack refuses pipelines with these, whoever loads them


@component
class PromptEmbedderTextEmbedder:
    """A query under an instruction, which each call may change; the model is loaded once for all.

    Attributes:
        view: What it computes with.
    """

    def __init__(
        self,
        model: str,
        *,
        instruction: str | None = None,
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
                reader=reader,
                revision=revision,
                quantization=quantization,
                device=device,
                max_tokens=max_tokens,
            )
        )

    def warm_up(self) -> None:
        """Load the model."""
        self.view.warm_up()

    @component.output_types(embedding=list[float])
    def run(self, text: str, instruction: str | None = None) -> dict[str, Any]:
        """The unit vector of `text`, as `embedding`.

        Args:
            instruction: For this call, instead of the component's.

        Raises:
            DataError: The text is no string.
            TypeError: The instruction is no string.
        """
        return {"embedding": self.view.embed_queries([text], instruction=instruction)[0].tolist()}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str, instruction: str | None = None) -> dict[str, Any]:
        """As `run`, in a thread."""
        return await asyncio.to_thread(self.run, text, instruction)

    def to_dict(self) -> dict[str, Any]:
        """What a saved pipeline keeps."""
        return default_to_dict(self, **self.view.config.to_dict())

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "PromptEmbedderTextEmbedder":
        """What `to_dict` gave; no model is loaded."""
        return default_from_dict(cls, data)


@component
class PromptEmbedderDocumentEmbedder:
    """Documents under an instruction, which each call may change; the model is loaded once for all.

    Attributes:
        view: What it computes with; the component's instruction is that for documents there.
    """

    def __init__(
        self,
        model: str,
        *,
        instruction: str | None = None,
        reader: str | None = None,
        revision: str | None = None,
        quantization: str | None = None,
        device: str | None = None,
        max_tokens: int | None = None,
    ) -> None:
        """See `model` under an instruction for documents, None for the model's own; the rest is as in `ViewConfig`.

        Raises:
            TypeError: An argument is of the wrong type.
            ConfigError: One is blank or out of range.
        """
        self.view = InstructedView(
            ViewConfig(
                model=model,
                document_instruction=instruction,
                reader=reader,
                revision=revision,
                quantization=quantization,
                device=device,
                max_tokens=max_tokens,
            )
        )

    def warm_up(self) -> None:
        """Load the model."""
        self.view.warm_up()

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document], instruction: str | None = None) -> dict[str, Any]:
        """Copies of the documents with their unit vectors, as `documents`.

        Args:
            instruction: For this call, instead of the component's.

        Raises:
            DataError: A document has no text.
            TypeError: It is not a list of documents, or the instruction is no string.
        """
        vectors = self.view.embed_documents(_contents(documents), instruction=instruction).tolist()
        embedded = [
            dataclasses.replace(document, embedding=vector) for document, vector in zip(documents, vectors, strict=True)
        ]
        return {"documents": embedded}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document], instruction: str | None = None) -> dict[str, Any]:
        """As `run`, in a thread."""
        return await asyncio.to_thread(self.run, documents, instruction)

    def to_dict(self) -> dict[str, Any]:
        """What a saved pipeline keeps."""
        settings = self.view.config.to_dict()
        return default_to_dict(self, instruction=settings.pop("document_instruction", None), **settings)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "PromptEmbedderDocumentEmbedder":
        """What `to_dict` gave; no model is loaded."""
        return default_from_dict(cls, data)


def _contents(documents: list[Document]) -> list[str]:
    if not isinstance(documents, list) or not all(isinstance(document, Document) for document in documents):
        raise TypeError("documents must be a list of haystack.Document. For a text, use PromptEmbedderTextEmbedder.")
    contents = []
    for document in documents:
        if document.content is None or not document.content.strip():
            raise DataError(f"document {document.id!r} has no text. Give it content, or leave it out.")
        contents.append(document.content)
    return contents
