"""Texts and pairs: reading from files, training mixtures, and the built-in corpus of Python docstrings."""

from promptembedder.data.docstrings import (
    DocstringCorpus,
    SearchTask,
    build_search_task,
    load_docstring_corpus,
    sample_training_pairs,
)
from promptembedder.data.mixture import Attribute, LabelledCorpus, Task, read_labelled_corpora, read_mixture
from promptembedder.data.pairs import (
    Pair,
    PairColumns,
    PairTable,
    add_other_answers,
    build_datasets,
    detect_pair_columns,
    read_pairs,
)
from promptembedder.data.readers import FoundRow, Position, read_json_list, read_rows, scan_rows
from promptembedder.data.sources import SourceFile, find_sources
from promptembedder.data.texts import (
    COLUMN_KINDS,
    TextColumns,
    TextRow,
    check_text_list,
    clean_instruction,
    clean_text,
    convert_value,
    read_texts,
)

__all__ = [
    "COLUMN_KINDS",
    "Attribute",
    "DocstringCorpus",
    "FoundRow",
    "LabelledCorpus",
    "Pair",
    "PairColumns",
    "PairTable",
    "Position",
    "SearchTask",
    "SourceFile",
    "Task",
    "TextColumns",
    "TextRow",
    "add_other_answers",
    "build_datasets",
    "build_search_task",
    "check_text_list",
    "clean_instruction",
    "clean_text",
    "convert_value",
    "detect_pair_columns",
    "find_sources",
    "load_docstring_corpus",
    "read_json_list",
    "read_labelled_corpora",
    "read_mixture",
    "read_pairs",
    "read_rows",
    "read_texts",
    "sample_training_pairs",
    "scan_rows",
]
