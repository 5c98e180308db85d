"""Training mixtures: several files of pairs, each with the instructions it is trained under."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptembedder.errors import DataError, shown, shown_name

__all__ = ["Task", "read_mixture"]

_REQUIRED = ("name", "file", "instruction", "document_instruction", "in_batch_negatives")
_OPTIONAL = ("instruction_paraphrases", "kind", "rows", "with_negative", "dropped_as_contaminated")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One file of pairs and the wordings under which its queries and documents are embedded.

    Args:
        instructions: The instruction of the queries, then its paraphrases.
        document_instructions: Empty where documents carry none; equal to `instructions`, wording by wording,
            where both sides are alike.
        in_batch_negatives: Whether the answers of other queries are wrong answers; not so for labels.
    """

    name: str
    file: Path
    instructions: tuple[str, ...]
    document_instructions: tuple[str, ...]
    in_batch_negatives: bool


def read_mixture(path: Path) -> list[Task]:
    """The tasks of a mixture file: a JSON list of objects.

    Each has name, file (relative to the folder of the mixture, or absolute), instruction,
    document_instruction (null: documents carry none) and in_batch_negatives; it may have
    instruction_paraphrases; kind, rows, with_negative and dropped_as_contaminated are for the reader of the
    file and not looked at.

    Raises:
        DataError: The file or one that it names is missing, is no such JSON, has unknown or missing keys,
            values of the wrong type, or two tasks of one name.
    """
    entries = _json_list(path)
    tasks: dict[str, Task] = {}
    for number, entry in enumerate(entries, start=1):
        task = _task_of(entry, path.parent, f"{path}, task {number}")
        if task.name in tasks:
            raise DataError(f"{path}, task {number}: the name {shown(task.name)} is taken. Give each task its own.")
        tasks[task.name] = task
    return list(tasks.values())


def _json_list(path: Path) -> list[Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"mixture {path} cannot be read ({error.strerror}). Check the path.") from error
    except (ValueError, RecursionError) as error:  # ValueError: broken JSON, or not UTF-8
        raise DataError(f"mixture {path} is no JSON ({error}). Mend the file.") from error
    if not isinstance(entries, list) or not entries:
        raise DataError(f"mixture {path} must be a list of tasks, got {shown(entries)}. Write [{{...}}, ...].")
    return entries


def _task_of(entry: Any, folder: Path, place: str) -> Task:
    if not isinstance(entry, dict):
        raise DataError(f"{place} must be an object, got {shown(entry)}. Write {{...}}.")
    _check_keys(entry, place)
    name = _wording(entry["name"], "name", place)
    if "+" in name:  # datasets_of appends "+negatives": two tasks must not meet there
        raise DataError(f"{place}: the name {shown(name)} holds a '+'. Use a '-' instead.")
    file = folder / _wording(entry["file"], "file", place)
    if not os.path.isfile(file):  # where Path.is_file raises: a name too long, or not of this system
        raise DataError(
            f"{place} ({shown_name(name)}): {shown_name(str(file))} is no file. "
            f"Check the path; it is relative to {folder}."
        )
    if not isinstance(entry["in_batch_negatives"], bool):
        raise DataError(f"{place}: in_batch_negatives is {shown(entry['in_batch_negatives'])}. Write true or false.")
    instructions = _instructions(entry, place)
    return Task(
        name=name,
        file=file,
        instructions=instructions,
        document_instructions=_document_instructions(entry["document_instruction"], instructions, place),
        in_batch_negatives=entry["in_batch_negatives"],
    )


def _check_keys(entry: Mapping[str, Any], place: str) -> None:
    missing = [key for key in _REQUIRED if key not in entry]
    if missing:
        raise DataError(f"{place} lacks {', '.join(missing)}. Every task has {', '.join(_REQUIRED)}.")
    unknown = [key for key in entry if key not in _REQUIRED + _OPTIONAL]
    if unknown:
        raise DataError(
            f"{place} has the unknown key {shown(unknown[0])}. Drop it; known are {', '.join(_REQUIRED + _OPTIONAL)}."
        )


def _instructions(entry: Mapping[str, Any], place: str) -> tuple[str, ...]:
    paraphrases = entry.get("instruction_paraphrases", [])
    if not isinstance(paraphrases, list):
        raise DataError(f"{place}: instruction_paraphrases is {shown(paraphrases)}. Write a list of strings.")
    first = _wording(entry["instruction"], "instruction", place)
    return (first, *(_wording(item, "instruction_paraphrases", place) for item in paraphrases))


def _document_instructions(found: Any, instructions: tuple[str, ...], place: str) -> tuple[str, ...]:
    if found is None:
        return ()
    wording = _wording(found, "document_instruction", place)
    return instructions if wording == instructions[0] else (wording,)


def _wording(value: Any, key: str, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: {key} is {shown(value)} ({type(value).__name__}). Write a string with words.")
    return value
