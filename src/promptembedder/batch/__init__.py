"""Embedding jobs: text files to one file, or a corpus of any size to a folder of shards."""

from promptembedder.batch.embedding_file import (
    FILE_ENDINGS,
    EmbeddingFile,
    PassthroughColumn,
    VectorFormat,
    atomic_embedding_file,
    column_names,
    embedding_schema,
)
from promptembedder.batch.job import (
    CorpusProgress,
    CorpusReport,
    EmbedConfig,
    EmbedReport,
    check_files,
    embed_corpus,
    embed_files,
)
from promptembedder.batch.shards import JOB_NAME, MANIFEST_LINES, ShardFolder, ShardRecord

__all__ = [
    "FILE_ENDINGS",
    "JOB_NAME",
    "MANIFEST_LINES",
    "CorpusProgress",
    "CorpusReport",
    "EmbedConfig",
    "EmbedReport",
    "EmbeddingFile",
    "PassthroughColumn",
    "ShardFolder",
    "ShardRecord",
    "VectorFormat",
    "atomic_embedding_file",
    "check_files",
    "column_names",
    "embed_corpus",
    "embed_files",
    "embedding_schema",
]
