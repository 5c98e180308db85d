"""LlamaIndex embedding and its cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from llama_index.core.storage.kvstore.types import BaseKVStore
from promptembedder.integrations.embedder_view import InstructedView
from typing import Any
from promptembedder.extras import foreign_imports
from promptembedder.integrations.embedder_view import InstructedView, ViewConfig

__all__ = ['InstructedCache', 'PromptEmbedderEmbedding', 'asking_for_query']

_ASKED = ContextVar(
    "_ASKED", default="document"
)  # per task, so that a query does not turn a document beside it into one


@contextmanager
def asking_for_query() -> Iterator[None]:
    """While this lasts, what this task looks up is a query."""
    token = _ASKED.set("query")
    try:
        yield
    finally:
        _ASKED.reset(token)


class InstructedCache(BaseKVStore):
    """One view's part of `store`, whatever collection is asked for."""

    def __init__(self, store: BaseKVStore, view: InstructedView) -> None:
        """Keep the vectors of `view` in `store`, which others may use too."""
        self.store = store
        self._names = {"query": view.cache_name(as_queries=True), "document": view.cache_name(as_queries=False)}

    @property
    def _own(self) -> str:
        return self._names[_ASKED.get()]

    def put(self, key: str, val: dict, collection: str = "") -> None:
        """Keep a value."""
        self.store.put(key, val, collection=self._own)

    async def aput(self, key: str, val: dict, collection: str = "") -> None:
        """Keep a value."""
        await self.store.aput(key, val, collection=self._own)

    def get(self, key: str, collection: str = "") -> dict | None:
        """What is kept for a key, or None."""
        return self.store.get(key, collection=self._own)

    async def aget(self, key: str, collection: str = "") -> dict | None:
        """What is kept for a key, or None."""
        return await self.store.aget(key, collection=self._own)

    def get_all(self, collection: str = "") -> dict[str, dict]:
        """Everything that is kept."""
        return self.store.get_all(collection=self._own)

    async def aget_all(self, collection: str = "") -> dict[str, dict]:
        """Everything that is kept."""
        return await self.store.aget_all(collection=self._own)

    def delete(self, key: str, collection: str = "") -> bool:
        """Forget a key; says whether it was kept."""
        return self.store.delete(key, collection=self._own)

    async def adelete(self, key: str, collection: str = "") -> bool:
        """Forget a key; says whether it was kept."""
        return await self.store.adelete(key, collection=self._own)


with foreign_imports("llama-index-core", extra="llama-index", at_least="0.14"):
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import Field, PrivateAttr
    from llama_index.core.storage.kvstore.types import BaseKVStore



_SETTINGS = ("instruction", "document_instruction", "reader", "revision", "quantization", "device", "max_tokens")


class PromptEmbedderEmbedding(BaseEmbedding):
    """Queries under an instruction; another instruction is another object, and the model is loaded once for all.

    A cache may be shared by any of them: each instruction has a collection of its own in it.
    """

    instruction: str | None = Field(default=None, description="For queries; None: the model's own.")
    document_instruction: str | None = Field(default=None, description="For documents; None: the model's own.")
    reader: str | None = Field(default=None, description="Which of the LLMs that the model was moved to.")
    revision: str | None = Field(default=None, description="Of a model on the hub.")
    quantization: str | None = Field(default=None, description="int8, or None as it was trained.")
    device: str | None = Field(default=None, description="None: the best that there is.")
    max_tokens: int | None = Field(default=None, description="Of a text that are read.")
    embeddings_cache: Any | None = Field(default=None, exclude=True, description="A store of LlamaIndex's.")
    _view: InstructedView = PrivateAttr()

    def __init__(self, model_name: str, *, embed_batch_size: int = 32, **settings: Any) -> None:
        """See the model in the folder or hub id `model_name` under an instruction.

        Args:
            settings: Those of `ViewConfig`, and LlamaIndex's own: `callback_manager`, `num_workers`,
                `embeddings_cache`, `rate_limiter`.

        Raises:
            TypeError: A setting is of the wrong type.
            ConfigError: One is unknown, blank or out of range.
        """
        cache = settings.pop("embeddings_cache", None)
        foreign = {
            name: settings.pop(name) for name in ("callback_manager", "num_workers", "rate_limiter") if name in settings
        }
        config = ViewConfig.from_dict({"model": model_name, **settings})
        own = {name: getattr(config, name) for name in _SETTINGS}
        super().__init__(model_name=config.model, embed_batch_size=embed_batch_size, **own, **foreign)
        self._view = InstructedView(config)
        self.embeddings_cache = cache

    def __setattr__(self, name: str, value: Any) -> None:
        """A cache is set as this embedder's part of it."""
        if name == "embeddings_cache" and value is not None:
            store = value.store if isinstance(value, InstructedCache) else value
            if not isinstance(store, BaseKVStore):
                raise TypeError(
                    f"embeddings_cache must be a BaseKVStore, got {type(store).__name__}. Try SimpleKVStore()."
                )
            value = InstructedCache(store, self._view)
        super().__setattr__(name, value)

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex stores with it."""
        return "PromptEmbedderEmbedding"

    @property
    def view(self) -> InstructedView:
        """What it computes with."""
        return self._view

    def get_query_embedding(self, query: str) -> list[float]:
        """The unit vector of a query, from the queries' part of the cache if there is one."""
        with asking_for_query():
            return super().get_query_embedding(query)

    async def aget_query_embedding(self, query: str) -> list[float]:
        """As `get_query_embedding`, in a thread."""
        with asking_for_query():
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
