"""Embedding jobs: text files to one file, or a corpus of any size to a folder of shards."""

from promptembedder.batch.corpus_job import CorpusConfig, CorpusProgress, CorpusReport, embed_corpus
from promptembedder.batch.embedding_file import (
    FILE_ENDINGS,
    EmbeddingFile,
    atomic_embedding_file,
    column_names,
    embedding_schema,
)
from promptembedder.batch.job import EmbedConfig, EmbedReport, check_files, embed_files
from promptembedder.batch.passthrough import PassthroughColumn
from promptembedder.batch.shard_folder import JOB_NAME, MANIFEST_LINES, ShardFolder, ShardRecord
from promptembedder.batch.vector_format import VectorFormat

__all__ = [
    "FILE_ENDINGS",
    "JOB_NAME",
    "MANIFEST_LINES",
    "CorpusConfig",
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
