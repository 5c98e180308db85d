"""LlamaIndex embedding and its cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from promptembedder.extras import require_version

with require_version("llama-index-core", extra="llama-index", at_least="0.14"):
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import Field, PrivateAttr
    from llama_index.core.storage.kvstore.types import BaseKVStore

from promptembedder.integrations.embedder_view import EmbedderView, ViewConfig

__all__ = ["EmbedderCache", "PromptEmbedderEmbedding", "query_context"]

# per asyncio task, so that a query does not change the kind of a concurrent document
_KIND = ContextVar("_KIND", default="document")


@contextmanager
def query_context() -> Iterator[None]:
    """Make cache look-ups of the current task use the collection of queries."""
    token = _KIND.set("query")
    try:
        yield
    finally:
        _KIND.reset(token)


class EmbedderCache(BaseKVStore):
    """Cache of one view inside `store`; the collection argument of the methods is ignored."""

    def __init__(self, store: BaseKVStore, view: EmbedderView) -> None:
        """Cache the vectors of `view` in `store`, which other embedders may share."""
        self.store = store
        self._names = {"query": view.cache_name(as_queries=True), "document": view.cache_name(as_queries=False)}

    @property
    def _collection(self) -> str:
        return self._names[_KIND.get()]

    def put(self, key: str, val: dict, collection: str = "") -> None:
        """Store a value."""
        self.store.put(key, val, collection=self._collection)

    async def aput(self, key: str, val: dict, collection: str = "") -> None:
        """Store a value."""
        await self.store.aput(key, val, collection=self._collection)

    def get(self, key: str, collection: str = "") -> dict | None:
        """Return the value of a key, or None."""
        return self.store.get(key, collection=self._collection)

    async def aget(self, key: str, collection: str = "") -> dict | None:
        """Return the value of a key, or None."""
        return await self.store.aget(key, collection=self._collection)

    def get_all(self, collection: str = "") -> dict[str, dict]:
        """Return all values by key."""
        return self.store.get_all(collection=self._collection)

    async def aget_all(self, collection: str = "") -> dict[str, dict]:
        """Return all values by key."""
        return await self.store.aget_all(collection=self._collection)

    def delete(self, key: str, collection: str = "") -> bool:
        """Delete a key. Return True if it existed."""
        return self.store.delete(key, collection=self._collection)

    async def adelete(self, key: str, collection: str = "") -> bool:
        """Delete a key. Return True if it existed."""
        return await self.store.adelete(key, collection=self._collection)


class PromptEmbedderEmbedding(BaseEmbedding):
    """Embedding under one instruction for queries and one for documents. All instances share one loaded model.

    Instances may share a cache: each instruction has its own collection.
    """

    instruction: str | None = Field(default=None, description="Instruction for queries.")
    document_instruction: str | None = Field(default=None, description="Instruction for documents.")
    reader: str | None = Field(default=None, description="Backbone string of one of the model's readers.")
    revision: str | None = Field(default=None, description="Revision of a model on the hub.")
    quantization: str | None = Field(default=None, description="int8, or None.")
    device: str | None = Field(default=None, description="Torch device.")
    max_tokens: int | None = Field(default=None, description="Maximum length of a text in tokens.")
    embeddings_cache: Any | None = Field(default=None, exclude=True, description="LlamaIndex BaseKVStore.")
    _view: EmbedderView = PrivateAttr()

    def __init__(self, model_name: str, *, embed_batch_size: int = 32, **settings: Any) -> None:
        """Embed with the model in the folder or hub id `model_name`.

        Args:
            settings: Settings of `ViewConfig`, and of LlamaIndex: `callback_manager`, `num_workers`,
                `embeddings_cache`, `rate_limiter`.

        Raises:
            TypeError: A setting has the wrong type.
            ConfigError: A setting is unknown, blank or out of range.
        """
        cache = settings.pop("embeddings_cache", None)
        base_settings = {
            name: settings.pop(name) for name in ("callback_manager", "num_workers", "rate_limiter") if name in settings
        }
        config = ViewConfig.from_dict({"model": model_name, **settings})
        super().__init__(model_name=model_name, embed_batch_size=embed_batch_size, **settings, **base_settings)
        self._view = EmbedderView(config)
        self.embeddings_cache = cache

    def __setattr__(self, name: str, value: Any) -> None:
        """Wrap an assigned cache in `EmbedderCache`."""
        if name == "embeddings_cache" and value is not None:
            store = value.store if isinstance(value, EmbedderCache) else value
            if not isinstance(store, BaseKVStore):
                raise TypeError(
                    f"embeddings_cache must be a BaseKVStore, got {type(store).__name__}. Try SimpleKVStore()."
                )
            value = EmbedderCache(store, self._view)
        super().__setattr__(name, value)

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex stores."""
        return "PromptEmbedderEmbedding"

    @property
    def view(self) -> EmbedderView:
        """View of the model that computes the embeddings."""
        return self._view

    def get_query_embedding(self, query: str) -> list[float]:
        """Embed a query as a unit vector, or return it from the cache."""
        with query_context():
            return super().get_query_embedding(query)

    async def aget_query_embedding(self, query: str) -> list[float]:
        """Call `get_query_embedding` in a thread."""
        with query_context():
            return await super().aget_query_embedding(query)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._view.embed_queries([query])[0].tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return (await self._view.aembed_queries([query]))[0].tolist()

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._view.embed_documents([text])[0].tolist()

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._view.aembed_documents([text]))[0].tolist()

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._view.embed_documents(texts).tolist()

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return (await self._view.aembed_documents(texts)).tolist()
