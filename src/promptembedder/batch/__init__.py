"""Embedding jobs: text files to one Parquet file, or a corpus of any size to a folder of shards."""

from promptembedder.batch.corpus_job import CorpusConfig, CorpusProgress, CorpusReport, embed_corpus
from promptembedder.batch.embedding_file import EmbeddingFile, atomic_embedding_file, column_names, embedding_schema
from promptembedder.batch.job import EmbedConfig, EmbedReport, check_files, embed_files
from promptembedder.batch.passthrough import PassthroughColumn
from promptembedder.batch.shard_folder import JOB_NAME, MANIFEST_LINES, ShardFolder, ShardRecord

__all__ = [
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
    "atomic_embedding_file",
    "check_files",
    "column_names",
    "embed_corpus",
    "embed_files",
    "embedding_schema",
]
