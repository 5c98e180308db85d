"""Task files: a JSON list of evaluation tasks and the data files they name; checked at the door."""

import difflib
import json
import math
import os
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from promptembedder.data import clean_text, read_rows
from promptembedder.errors import DataError, shown, shown_name
from promptembedder.evaluation.task_data import METRICS, EvaluationTask, LabelledTexts, ScoredPairs, SearchData, TaskType

__all__ = ["read_tasks"]

_FILES: dict[str, tuple[str, ...]] = {
    "sts": ("pairs",),
    "pair_classification": ("pairs",),
    "classification": ("rows",),
    "clustering": ("rows",),
    "retrieval": ("corpus", "queries", "qrels"),
}
_REQUIRED = ("name", "type", "files", "instruction", "metric")
# rows, documents and labels are for the reader of the file
_OPTIONAL = (
    *("split", "dev_split", "train_split", "subset", "label_field", "instruction_paraphrases", "same_as_mteb"),
    *("rows", "documents", "labels"),
)


@dataclass(frozen=True)
class _Entry:
    """One object of a task file whose keys have been checked, and where it stands."""

    content: dict[str, Any]
    files: dict[str, Path]
    place: str

    def word(self, key: str) -> str | None:
        value = self.content.get(key)
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise DataError(f"{self.place}: {key} must be a text, got {shown(value)}.")
        return value


def read_tasks(path: Path, *, only: Sequence[str] = ()) -> list[EvaluationTask]:
    """The tasks of a task file with their texts: all, or those named in `only`, in the file's order.

    The file is a JSON list of objects: name, type, files (relative to the file's folder, or absolute),
    instruction and metric; and where they apply split, train_split, dev_split, subset, label_field,
    instruction_paraphrases and same_as_mteb. Rows of pairs hold sentence1, sentence2 and score (sts) or
    label (1 or 0); those of texts hold text and label; a corpus holds id, title and text; queries hold id
    and text; qrels hold query_id, doc_id and relevance.

    Raises:
        DataError: The file, or one that it names, is missing or broken; a key is unknown or missing; a
            metric does not fit its type; no row has the split.
    """
    entries = [_entry(item, path.parent, f"{path}, task {row}") for row, item in enumerate(_json_list(path), start=1)]
    names = [entry.content["name"] for entry in entries]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise DataError(f"{path}: the name {shown(min(twice))} is taken twice. Give each task its own.")
    for name in only:
        if name not in names:
            raise DataError(f"{path} has no task {shown(name)}. {_hint(name, names)}It has: {', '.join(names)}.")
    return [_task(entry) for entry in entries if not only or entry.content["name"] in only]


def _json_list(path: Path) -> list[Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"task file {path} cannot be read ({error.strerror}). Check the path.") from error
    except (ValueError, RecursionError) as error:  # ValueError: broken JSON, or not UTF-8
        raise DataError(f"task file {path} is no JSON ({error}). Mend the file.") from error
    if not isinstance(entries, list) or not entries:
        raise DataError(f"task file {path} must be a list of tasks, got {shown(entries)}. Write [{{...}}, ...].")
    return entries


def _entry(content: Any, folder: Path, place: str) -> _Entry:
    if not isinstance(content, dict):
        raise DataError(f"{place} must be an object, got {shown(content)}. Write {{...}}.")
    known = _REQUIRED + _OPTIONAL
    for key in content:
        if key not in known:
            raise DataError(f"{place}: unknown key {shown(key)}. {_hint(key, known)}Known: {', '.join(known)}.")
    missing = [key for key in _REQUIRED if key not in content]
    if missing:
        raise DataError(f"{place} lacks {', '.join(missing)}. Every task has {', '.join(_REQUIRED)}.")
    if not isinstance(content["name"], str) or not content["name"].strip():
        raise DataError(f"{place}: name must be a text, got {shown(content['name'])}.")
    place = f"{place} ({shown_name(content['name'])})"
    kinds = get_args(TaskType)
    kind = content["type"]
    if kind not in kinds:
        raise DataError(f"{place}: unknown type {shown(kind)}. {_hint(str(kind), kinds)}Known: {', '.join(kinds)}.")
    metric, metrics = content["metric"], METRICS[kind]
    if metric not in metrics:
        raise DataError(
            f"{place}: {shown(metric)} is no metric of {kind}. {_hint(str(metric), metrics)}Try {metrics[0]!r}."
        )
    return _Entry(content, _files(content["files"], _FILES[kind], folder, place), place)


def _files(files: Any, wanted: tuple[str, ...], folder: Path, place: str) -> dict[str, Path]:
    if not isinstance(files, dict) or set(files) != set(wanted):
        raise DataError(f"{place}: files must hold {', '.join(wanted)}, got {shown(files)}.")
    paths = {}
    for key, name in files.items():
        if not isinstance(name, str) or not os.path.isfile(folder / name):  # Path.is_file raises over some names
            raise DataError(
                f"{place}: {shown_name(str(folder / str(name)))} is no file. Check {key}; it is relative to {folder}."
            )
        paths[key] = folder / name
    return paths


def _task(entry: _Entry) -> EvaluationTask:
    kind: TaskType = entry.content["type"]
    paraphrases = entry.content.get("instruction_paraphrases") or []
    if not isinstance(paraphrases, list) or not all(isinstance(text, str) and text.strip() for text in paraphrases):
        raise DataError(f"{entry.place}: instruction_paraphrases must be a list of texts, got {shown(paraphrases)}.")
    data: ScoredPairs | LabelledTexts | SearchData
    if kind in ("sts", "pair_classification"):
        data = _pairs(entry)
        rows = len(data.first)
    elif kind == "retrieval":
        data = _search(entry)
        rows = len(data.queries)
    else:
        data = _labelled(entry, with_train=kind == "classification")
        rows = len(data.texts)
    instruction = entry.word("instruction")
    if instruction is None:
        raise DataError(f"{entry.place}: instruction must be a text, got None.")
    return EvaluationTask(
        name=entry.content["name"],
        type=kind,
        metric=entry.content["metric"],
        instruction=instruction.strip(),
        data=data,
        rows=rows,
        documents=len(data.documents) if isinstance(data, SearchData) else 0,
        paraphrases=tuple(text.strip() for text in paraphrases),
        mteb_name=entry.word("same_as_mteb"),
        files=tuple(entry.files.values()),
    )


def _pairs(entry: _Entry) -> ScoredPairs:
    sts = entry.content["type"] == "sts"
    column = entry.word("label_field") or ("score" if sts else "label")
    path = entry.files["pairs"]
    rows = _of_split(_rows(entry, path, ("sentence1", "sentence2", column)), entry, path, "split")
    scores = [_number(row[column], column, path) for row in rows]
    if not sts and set(scores) != {0.0, 1.0}:
        raise DataError(f"{path}: {shown(column)} must be 1 or 0, and both occur; found {sorted(set(scores))[:5]}.")
    if len(set(scores)) < 2:
        raise DataError(f"{path}: every {shown(column)} is {scores[0]}. Nothing can be ranked by that.")
    first, second = (tuple(_text(row[key], key, path) for row in rows) for key in ("sentence1", "sentence2"))
    return ScoredPairs(first, second, tuple(scores))


def _labelled(entry: _Entry, *, with_train: bool) -> LabelledTexts:
    column, path = entry.word("label_field") or "label", entry.files["rows"]
    rows = list(_rows(entry, path, ("text", column)))
    test = _of_split(rows, entry, path, "split")
    train: list[dict[str, Any]] = []
    if with_train:
        if entry.word("train_split") is None:
            raise DataError(
                f"{entry.place} lacks train_split: a classifier learns from other rows than it is tested on."
            )
        train = _of_split(rows, entry, path, "train_split")
    labels, train_labels = (tuple(_label(row[column], column, path) for row in part) for part in (test, train))
    if len(set(train_labels or labels)) < 2:
        raise DataError(f"{path}: every {shown(column)} is {shown(labels[0])}. Two or more labels are needed.")
    texts, train_texts = (tuple(_text(row["text"], "text", path) for row in part) for part in (test, train))
    return LabelledTexts(texts, labels, train_texts, train_labels)


def _search(entry: _Entry) -> SearchData:
    corpus, queries, qrels = (entry.files[key] for key in ("corpus", "queries", "qrels"))
    documents = {
        name: (_text(row.get("title") or "", "title", corpus), _text(row["text"], "text", corpus))
        for name, row in _by_id(entry, corpus)
    }
    asked = {name: _text(row["text"], "text", queries) for name, row in _by_id(entry, queries)}
    relevant: dict[str, dict[str, int]] = {}
    for row in _rows(entry, qrels, ("query_id", "doc_id", "relevance")):
        query, document = str(row["query_id"]), str(row["doc_id"])
        for name, known, path in ((query, asked, queries), (document, documents, corpus)):
            if name not in known:
                raise DataError(
                    f"{qrels} names {shown(name)}, which {path} does not hold. Drop the row, or add it there."
                )
        grade = int(_number(row["relevance"], "relevance", qrels))
        if grade > 0:
            relevant.setdefault(query, {})[document] = grade
    if not relevant:
        raise DataError(f"{qrels} calls no document relevant. Every relevance is 0.")
    # a query that nothing answers cannot be scored: mteb leaves it out, too
    return SearchData({query: text for query, text in asked.items() if query in relevant}, documents, relevant)


def _rows(entry: _Entry, path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The rows of the task's subset; each has the columns."""
    subset, found = entry.word("subset"), False
    for number, row in enumerate(read_rows(path), start=1):
        missing = [column for column in columns if row.get(column) is None]
        if missing:
            raise DataError(
                f"{path}, row {number} has no {shown(missing[0])}: found {shown_name(', '.join(row))}. Mend or drop it."
            )
        if subset is None or row.get("subset") == subset:
            found = True
            yield row
    if not found:
        raise DataError(f"{path} has no row of subset {shown(subset)}. Check {entry.place}.")


def _by_id(entry: _Entry, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    seen = set()
    for row in _rows(entry, path, ("id", "text")):
        name = str(row["id"])
        if name in seen:
            raise DataError(f"{path}: the id {shown(name)} is taken twice. Give each row its own.")
        seen.add(name)
        yield name, row


def _of_split(rows: Iterable[dict[str, Any]], entry: _Entry, path: Path, key: str) -> list[dict[str, Any]]:
    rows = list(rows)
    splits = {str(row.get("split")) for row in rows}
    for wanted in (entry.word(key), entry.word("dev_split")):
        if wanted is not None and wanted not in splits:
            raise DataError(
                f"{path} has no row of split {shown(wanted)}; it has {shown_name(', '.join(sorted(splits)))}."
            )
    split = entry.word(key)
    return [row for row in rows if split is None or row.get("split") == split]


def _text(value: Any, column: str, path: Path) -> str:
    if not isinstance(value, str):
        raise DataError(f"{path}: {shown(column)} holds {shown(value)}, not a text. Mend or drop the row.")
    return clean_text(value)


def _label(value: Any, column: str, path: Path) -> Hashable:
    if not isinstance(value, str | int):
        raise DataError(f"{path}: {shown(column)} holds {shown(value)}, not a text or whole number.")
    return value


def _number(value: Any, column: str, path: Path) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{path}: {shown(column)} holds {shown(value)}, not a number. Mend or drop the row.")
    return number


def _hint(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]!r}? " if close else ""
