"""Training mixtures: several files of pairs, each with its instructions."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptembedder.errors import DataError, did_you_mean, printable, short_repr

__all__ = ["Task", "read_mixture"]

_REQUIRED = ("name", "file", "instruction", "document_instruction", "in_batch_negatives")
_OPTIONAL = ("instruction_paraphrases", "kind", "rows", "with_negative", "dropped_as_contaminated")
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
    """

    name: str
    file: Path
    instructions: tuple[str, ...]
    document_instructions: tuple[str, ...]
    in_batch_negatives: bool


def read_mixture(path: Path) -> list[Task]:
    """Read the tasks of a mixture file, a JSON list of objects.

    Each object has name, file (relative to the folder of the mixture, or absolute), instruction, document_instruction
    (null if documents have none) and in_batch_negatives, and optionally instruction_paraphrases. The keys kind, rows,
    with_negative and dropped_as_contaminated are informational and ignored.

    Raises:
        DataError: If the file or a file that it names is missing, is not such JSON, has unknown or missing keys or
            values of the wrong type, or two tasks have the same name.
    """
    entries = _json_list(path)
    tasks: dict[str, Task] = {}
    for number, entry in enumerate(entries, start=1):
        task = _parse_task(entry, path.parent, f"{path}, task {number}")
        if task.name in tasks:
            raise DataError(
                f"{path}, task {number}: the name {short_repr(task.name)} is taken. Give each task a unique name."
            )
        tasks[task.name] = task
    return list(tasks.values())


def _json_list(path: Path) -> list[Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"mixture {path} cannot be read ({error.strerror}). Check the path.") from error
    except (ValueError, RecursionError) as error:  # ValueError: broken JSON, or not UTF-8
        raise DataError(f"mixture {path} is not JSON ({error}). Correct the file.") from error
    if not isinstance(entries, list) or not entries:
        raise DataError(f"mixture {path} must be a list of tasks, got {short_repr(entries)}. Write [{{...}}, ...].")
    return entries


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
    instructions = _instructions(entry, where)
    return Task(
        name=name,
        file=file,
        instructions=instructions,
        document_instructions=_document_instructions(entry["document_instruction"], instructions, where),
        in_batch_negatives=entry["in_batch_negatives"],
    )


def _check_keys(entry: Mapping[str, Any], where: str) -> None:
    known = _REQUIRED + _OPTIONAL
    for key in entry:  # first: a misspelt key is also a missing one
        if key not in known:
            hint = did_you_mean(_MISTAKEN_KEYS.get(key, key), known) or "Remove it. "
            raise DataError(f"{where} has the unknown key {short_repr(key)}. {hint}Known keys are {', '.join(known)}.")
    missing = [key for key in _REQUIRED if key not in entry]
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
    return instructions if instruction == instructions[0] else (instruction,)


def _check_string(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {key} is {short_repr(value)} ({type(value).__name__}). Write a string with words.")
    return value
