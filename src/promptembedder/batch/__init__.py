"""Embedding of whole files: into one Parquet file, or a corpus of any size into a folder of shards."""

from promptembedder.batch.corpus_job import CorpusProgress, CorpusReport, CorpusSettings, embed_corpus
from promptembedder.batch.embedding_file import EmbeddingFile, column_names, embedding_schema, whole_embedding_file
from promptembedder.batch.job import EmbedReport, EmbedSettings, check_files, embed_files
from promptembedder.batch.passthrough import KeptColumn
from promptembedder.batch.shard_folder import JOB_NAME, MANIFEST_LINES, ShardFolder, ShardRecord

__all__ = [
    "JOB_NAME",
    "MANIFEST_LINES",
    "CorpusProgress",
    "CorpusReport",
    "CorpusSettings",
    "EmbedReport",
    "EmbedSettings",
    "EmbeddingFile",
    "KeptColumn",
    "ShardFolder",
    "ShardRecord",
    "check_files",
    "column_names",
    "embed_corpus",
    "embed_files",
    "embedding_schema",
    "whole_embedding_file",
]
