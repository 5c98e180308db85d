"""Embedders for LangChain, LlamaIndex, LanceDB, Chroma and Haystack; all of them share one loaded model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptembedder.integrations.chroma import PromptEmbedderEmbeddingFunction
    from promptembedder.integrations.embedder_view import EmbedderView, ViewConfig, forget_models
    from promptembedder.integrations.haystack import PromptEmbedderDocumentEmbedder, PromptEmbedderTextEmbedder
    from promptembedder.integrations.lancedb import PromptEmbedderFunction
    from promptembedder.integrations.langchain import PromptEmbedderEmbeddings
    from promptembedder.integrations.llama_index import PromptEmbedderEmbedding

__all__ = [
    "EmbedderView",
    "PromptEmbedderDocumentEmbedder",
    "PromptEmbedderEmbedding",
    "PromptEmbedderEmbeddingFunction",
    "PromptEmbedderEmbeddings",
    "PromptEmbedderFunction",
    "PromptEmbedderTextEmbedder",
    "ViewConfig",
    "forget_models",
]

_MODULE_OF = {
    "EmbedderView": "embedder_view",
    "PromptEmbedderDocumentEmbedder": "haystack",
    "PromptEmbedderEmbedding": "llama_index",
    "PromptEmbedderEmbeddingFunction": "chroma",
    "PromptEmbedderEmbeddings": "langchain",
    "PromptEmbedderFunction": "lancedb",
    "PromptEmbedderTextEmbedder": "haystack",
    "ViewConfig": "embedder_view",
    "forget_models": "embedder_view",
}


def __getattr__(name: str) -> Any:
    """Import a name on first use, because few users install all of these frameworks."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
