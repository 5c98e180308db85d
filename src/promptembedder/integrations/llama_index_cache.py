"""A cache of LlamaIndex's in which each instruction has a collection of its own.

LlamaIndex looks vectors up by their text alone, in one collection. Two embedders that share a store would so get each
other's vectors, and a text that is once a query and once a document would have one vector.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from llama_index.core.storage.kvstore.types import BaseKVStore

from promptembedder.integrations.instructed_view import InstructedView

__all__ = ["InstructedCache", "asking_for_query"]

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
