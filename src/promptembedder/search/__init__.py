"""Vector search over a corpus, in memory or in a table on disk."""

from promptembedder.search.index import ExactIndex, Hit, SearchReport, build_index, measure_search
from promptembedder.search.table_rows import CorpusRows, EmbeddingRows, holds_embeddings, open_embeddings
from promptembedder.search.table_schema import TableMetadata, VectorRows
from promptembedder.search.vector_table import EXACT_BELOW, TableHit, VectorTable, check_target, create_table

__all__ = [
    "EXACT_BELOW",
    "CorpusRows",
    "EmbeddingRows",
    "ExactIndex",
    "Hit",
    "SearchReport",
    "TableHit",
    "TableMetadata",
    "VectorRows",
    "VectorTable",
    "build_index",
    "check_target",
    "create_table",
    "holds_embeddings",
    "measure_search",
    "open_embeddings",
]
