"""Embedders for the frameworks that users have: each an extra, each a small view of a model that is loaded once."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptembedder.integrations.chroma import PromptEmbedderEmbeddingFunction
    from promptembedder.integrations.haystack import PromptEmbedderDocumentEmbedder, PromptEmbedderTextEmbedder
    from promptembedder.integrations.embedder_view import InstructedView, ViewConfig
    from promptembedder.integrations.lancedb import PromptEmbedderFunction
    from promptembedder.integrations.langchain import PromptEmbedderEmbeddings
    from promptembedder.integrations.llama_index import PromptEmbedderEmbedding
    from promptembedder.integrations.shared_model import forget_models

__all__ = [
    "InstructedView",
    "PromptEmbedderDocumentEmbedder",
    "PromptEmbedderEmbedding",
    "PromptEmbedderEmbeddingFunction",
    "PromptEmbedderEmbeddings",
    "PromptEmbedderFunction",
    "PromptEmbedderTextEmbedder",
    "ViewConfig",
    "forget_models",
]

_HOMES = {
    "InstructedView": "instructed_view",
    "PromptEmbedderDocumentEmbedder": "haystack",
    "PromptEmbedderEmbedding": "llama_index",
    "PromptEmbedderEmbeddingFunction": "chroma",
    "PromptEmbedderEmbeddings": "langchain",
    "PromptEmbedderFunction": "lancedb",
    "PromptEmbedderTextEmbedder": "haystack",
    "ViewConfig": "instructed_view",
    "forget_models": "shared_model",
}


def __getattr__(name: str) -> Any:
    """Load a name on first use: nobody has all of these frameworks."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
