"""Training data that a JSON file lists: files of pairs, and corpora with several labels a text."""

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptembedder.data.readers import read_json_list, read_rows
from promptembedder.data.texts import clean_text
from promptembedder.errors import DataError, did_you_mean, printable, short_repr

__all__ = ["Attribute", "LabelledCorpus", "Task", "read_labelled_corpora", "read_mixture"]

_REQUIRED = ("name", "file", "instruction", "document_instruction", "in_batch_negatives")
_OPTIONAL = (
    "instruction_paraphrases",
    "columns",
    "instruction_column",
    "kind",
    "rows",
    "with_negative",
    "dropped_as_contaminated",
)
# keys of a recipe, which a user may expect here
_MISTAKEN_KEYS = {"instructions": "instruction", "document_instructions": "document_instruction", "pairs": "file"}


@dataclass(frozen=True, kw_only=True)
class Task:
    """File of pairs with the instructions of its queries and documents.

    Args:
        instructions: Instruction of the queries, followed by its paraphrases.
        document_instructions: Instructions of the documents. Empty if documents have none, equal to `instructions` in
            symmetric tasks.
        in_batch_negatives: True if the positives of other queries are negatives. False for label data.
        columns: Names of anchor, positive and optionally negative. If empty, they are detected.
        instruction_column: Column with an instruction of each row, instead of `instructions`.
    """

    name: str
    file: Path
    instructions: tuple[str, ...]
    document_instructions: tuple[str, ...]
    in_batch_negatives: bool
    columns: tuple[str, ...] = ()
    instruction_column: str | None = None


def read_mixture(path: Path) -> list[Task]:
    """Read the tasks of a mixture file, a JSON list of objects.

    Each object has name, file (relative to the folder of the mixture, or absolute), instruction, document_instruction
    (null if documents have none) and in_batch_negatives, and optionally instruction_paraphrases, columns (anchor,
    positive and maybe negative) and instruction_column (an instruction of each row; `instruction` may then be left
    out). The keys kind, rows, with_negative and dropped_as_contaminated are informational and ignored.

    Raises:
        DataError: If the file or a file that it names is missing, is not such JSON, has unknown or missing keys or
            values of the wrong type, or two tasks have the same name.
    """
    entries = read_json_list(path, kind="mixture", items="tasks")
    tasks: dict[str, Task] = {}
    for number, entry in enumerate(entries, start=1):
        task = _parse_task(entry, path.parent, f"{path}, task {number}")
        if task.name in tasks:
            raise DataError(
                f"{path}, task {number}: the name {short_repr(task.name)} is taken. Give each task a unique name."
            )
        tasks[task.name] = task
    return list(tasks.values())


def _parse_task(entry: Any, folder: Path, where: str) -> Task:
    if not isinstance(entry, dict):
        raise DataError(f"{where} must be an object, got {short_repr(entry)}. Write {{...}}.")
    _check_keys(entry, where)
    name = _check_string(entry["name"], "name", where)
    if "+" in name:  # build_datasets appends "+negatives": two tasks must not get the same name
        raise DataError(f"{where}: the name {short_repr(name)} contains a '+'. Use a '-' instead.")
    file = folder / _check_string(entry["file"], "file", where)
    if not os.path.isfile(file):  # Path.is_file raises on names that are too long or invalid
        raise DataError(
            f"{where} ({printable(name)}): {printable(str(file))} is not a file. "
            f"Check the path, which is relative to {printable(str(folder.resolve()))}."
        )
    if not isinstance(entry["in_batch_negatives"], bool):
        raise DataError(
            f"{where}: in_batch_negatives is {short_repr(entry['in_batch_negatives'])}. Write true or false."
        )
    columns = entry.get("columns", [])
    if not isinstance(columns, list) or not all(isinstance(column, str) for column in columns):
        raise DataError(f"{where}: columns is {short_repr(columns)}. Write a list of names.")
    column = entry.get("instruction_column")
    instructions = () if "instruction" not in entry else _instructions(entry, where)
    return Task(
        name=name,
        file=file,
        instructions=instructions,
        document_instructions=_document_instructions(entry["document_instruction"], instructions, where),
        in_batch_negatives=entry["in_batch_negatives"],
        columns=tuple(columns),
        instruction_column=None if column is None else _check_string(column, "instruction_column", where),
    )


def _check_keys(entry: Mapping[str, Any], where: str) -> None:
    known = _REQUIRED + _OPTIONAL
    for key in entry:  # first: a misspelt key is also a missing one
        if key not in known:
            hint = did_you_mean(_MISTAKEN_KEYS.get(key, key), known) or "Remove it. "
            raise DataError(f"{where} has the unknown key {short_repr(key)}. {hint}Known keys are {', '.join(known)}.")
    required = [key for key in _REQUIRED if key != "instruction" or "instruction_column" not in entry]
    missing = [key for key in required if key not in entry]
    if missing:
        raise DataError(
            f"{where} lacks {', '.join(missing)}. Every task has {', '.join(_REQUIRED)}; "
            "document_instruction is null if documents have none."
        )


def _instructions(entry: Mapping[str, Any], where: str) -> tuple[str, ...]:
    paraphrases = entry.get("instruction_paraphrases", [])
    if not isinstance(paraphrases, list):
        raise DataError(f"{where}: instruction_paraphrases is {short_repr(paraphrases)}. Write a list of strings.")
    first = _check_string(entry["instruction"], "instruction", where)
    return (first, *(_check_string(item, "instruction_paraphrases", where) for item in paraphrases))


def _document_instructions(found: Any, instructions: tuple[str, ...], where: str) -> tuple[str, ...]:
    if found is None:
        return ()
    instruction = _check_string(found, "document_instruction", where)
    return instructions if instruction in instructions[:1] else (instruction,)


def _check_string(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {key} is {short_repr(value)} ({type(value).__name__}). Write a string with words.")
    return value


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """Labels of a corpus in one respect.

    Attributes:
        instructions: Wordings of the instruction that asks for this attribute.
        codes: Number of the label of each text, -1 if the text has none.
        values: Labels by number.
    """

    name: str
    instructions: tuple[str, ...]
    codes: tuple[int, ...]
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LabelledCorpus:
    """Texts, each with a label in one or several attributes."""

    name: str
    texts: tuple[str, ...]
    attributes: tuple[Attribute, ...]

    def labels_by_text(self) -> dict[str, tuple[int, ...]]:
        """Return the label numbers of each text, one per attribute."""
        codes = zip(*(attribute.codes for attribute in self.attributes), strict=True)
        return dict(zip(self.texts, codes, strict=True))

    def draw_pairs(self, *, seed: int, limit: int | None = None) -> list[tuple[str, str]]:
        """Draw a partner for each text that has the same label in one of its attributes, drawn at random.

        Args:
            limit: Number of pairs. If None, one for each text that has a partner.
        """
        generator = random.Random(seed)
        members = [_members(attribute) for attribute in self.attributes]
        pairs = []
        for row, text in enumerate(self.texts):
            groups = [group[code] for group, code in zip(members, self._codes_of(row), strict=True) if code >= 0]
            groups = [group for group in groups if len(group) > 1]
            if groups:
                group = generator.choice(groups)
                pairs.append((text, self.texts[generator.choice([other for other in group if other != row])]))
        generator.shuffle(pairs)
        return pairs[:limit]

    def _codes_of(self, row: int) -> tuple[int, ...]:
        return tuple(attribute.codes[row] for attribute in self.attributes)


def _members(attribute: Attribute) -> dict[int, list[int]]:
    """Return the rows of each label."""
    rows: dict[int, list[int]] = {}
    for row, code in enumerate(attribute.codes):
        rows.setdefault(code, []).append(row)
    return rows


def read_labelled_corpora(path: Path, *, names: Sequence[str] = ()) -> list[LabelledCorpus]:
    """Read the corpora that a JSON file lists.

    Each entry has `name`, `file` (relative to the JSON file; JSONL, CSV, TSV or Parquet) and `attributes`: by name,
    an object with `instructions`, a list of wordings. Rows have `text`, and the labels either in a mapping `labels` or
    in columns that are named as the attributes. A missing, null or empty label means that the text has none.

    Args:
        names: Corpora to read. If empty, all.

    Raises:
        DataError: If a file cannot be read, an attribute has no instruction or fewer than two labels, or a row of the
            file has no text.
    """
    entries = read_json_list(path, kind="list of corpora", items="labelled corpora")
    if not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{path} must be a JSON list of labelled corpora, one object each.")
    known = [str(entry.get("name")) for entry in entries]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(f"{path} has no corpus {short_repr(unknown[0])}. It has: {', '.join(known)}.")
    chosen = [entry for entry in entries if not names or str(entry.get("name")) in names]
    return [_read_corpus(entry, path.parent, f"{path}, {printable(str(entry.get('name')))}") for entry in chosen]


def _read_corpus(entry: Mapping[str, Any], folder: Path, where: str) -> LabelledCorpus:
    _check_spelling(entry, ("name", "file", "attributes"), where)
    lacking = [key for key in ("name", "file", "attributes") if not entry.get(key)]
    if lacking:
        raise DataError(f"{where} lacks {lacking[0]!r}. Each corpus needs name, file and attributes.")
    if not isinstance(entry["attributes"], dict):
        raise DataError(f"{where}: attributes is {short_repr(entry['attributes'])}. Write an object by attribute name.")
    labels: dict[str, dict[str, str]] = {}
    for number, row in enumerate(read_rows(folder / str(entry["file"])), start=1):
        if not isinstance(row.get("text"), str):
            raise DataError(f"{where}, row {number} has no text. Each row needs `text` and labels.")
        found = _labels_of(row, list(entry["attributes"]))
        if found:
            labels.setdefault(clean_text(row["text"]), found)
    if not labels:
        names = ", ".join(entry["attributes"])
        raise DataError(f"{where}: no row has a label of {names}. Name the columns or keys of `labels` as attributes.")
    attributes = tuple(
        _build_attribute(str(name), value, list(labels.values()), where) for name, value in entry["attributes"].items()
    )
    return LabelledCorpus(name=str(entry["name"]), texts=tuple(labels), attributes=attributes)


def _check_spelling(entry: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Refuse a key that looks like a misspelt one. Others, such as counts and descriptions, are the author's notes."""
    for key in entry:
        meant = "" if key in known else did_you_mean(key, known)
        if meant:
            raise DataError(f"{where} has the unknown key {short_repr(key)}. {meant}Known: {', '.join(known)}.")


def _labels_of(row: Mapping[str, Any], attributes: Sequence[str]) -> dict[str, str]:
    source = row["labels"] if isinstance(row.get("labels"), dict) else row
    return {name: str(source[name]) for name in attributes if source.get(name) not in (None, "")}


def _build_attribute(name: str, entry: Any, labels: Sequence[Mapping[str, str]], where: str) -> Attribute:
    if isinstance(entry, dict):
        _check_spelling(entry, ("instructions",), f"{where}, attribute {name!r}")
    instructions = entry.get("instructions") if isinstance(entry, dict) else None
    if not isinstance(instructions, list) or not instructions or not all(isinstance(one, str) for one in instructions):
        raise DataError(f"{where}: attribute {name!r} has no instructions. Write a list of wordings.")
    values = sorted({row[name] for row in labels if name in row})
    if len(values) < 2:
        raise DataError(f"{where}: attribute {name!r} has {len(values)} labels. An attribute needs at least two.")
    number = {value: code for code, value in enumerate(values)}
    codes = tuple(number[row[name]] if name in row else -1 for row in labels)
    return Attribute(name=name, instructions=tuple(instructions), codes=codes, values=tuple(values))
