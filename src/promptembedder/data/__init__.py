"""Texts and pairs: read from files, mixed for training, or taken from Python's own docstrings."""

from promptembedder.data.texts import COLUMN_KINDS, column_value
from promptembedder.data.docstrings import DocstringCorpus, SearchTask, docstring_corpus, search_task, training_pairs
from promptembedder.data.mixture import Task, read_mixture
from promptembedder.data.pairs import PairColumns, pair_columns
from promptembedder.data.pairs import Pair, PairTable, datasets_of, read_pairs
from promptembedder.data.readers import FoundRow, Position, read_rows, scan_rows
from promptembedder.data.sources import SourceFile, find_sources
from promptembedder.data.texts import clean_instruction, clean_text, text_list
from promptembedder.data.texts import TextColumns, TextRow, read_texts

__all__ = [
    "COLUMN_KINDS",
    "DocstringCorpus",
    "FoundRow",
    "Pair",
    "PairColumns",
    "PairTable",
    "Position",
    "SearchTask",
    "SourceFile",
    "Task",
    "TextColumns",
    "TextRow",
    "clean_instruction",
    "clean_text",
    "column_value",
    "datasets_of",
    "docstring_corpus",
    "find_sources",
    "pair_columns",
    "read_mixture",
    "read_pairs",
    "read_rows",
    "read_texts",
    "scan_rows",
    "search_task",
    "text_list",
    "training_pairs",
]
