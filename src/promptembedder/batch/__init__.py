"""Embedding of whole text files into one Parquet file."""

from promptembedder.batch.embedding_file import EmbeddingFile, column_names, whole_embedding_file
from promptembedder.batch.job import EmbedReport, EmbedSettings, check_files, embed_files

__all__ = [
    "EmbedReport",
    "EmbedSettings",
    "EmbeddingFile",
    "check_files",
    "column_names",
    "embed_files",
    "whole_embedding_file",
]
