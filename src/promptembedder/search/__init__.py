"""Search over the texts of a corpus, in memory."""

from promptembedder.search.exact_index import ExactIndex, Hit
from promptembedder.search.indexing import build_index

__all__ = ["ExactIndex", "Hit", "build_index"]
