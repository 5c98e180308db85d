"""Texts and pairs: read from files, mixed for training, or taken from Python's own docstrings."""

from promptembedder.data.docstrings import DocstringCorpus, SearchTask, docstring_corpus, search_task, training_pairs
from promptembedder.data.mixture import Task, read_mixture
from promptembedder.data.pairs import Pair, PairTable, datasets_of, read_pairs
from promptembedder.data.readers import TextRow, read_rows, read_texts
from promptembedder.data.text import clean_text

__all__ = [
    "DocstringCorpus",
    "Pair",
    "PairTable",
    "SearchTask",
    "Task",
    "TextRow",
    "clean_text",
    "datasets_of",
    "docstring_corpus",
    "read_mixture",
    "read_pairs",
    "read_rows",
    "read_texts",
    "search_task",
    "training_pairs",
]
