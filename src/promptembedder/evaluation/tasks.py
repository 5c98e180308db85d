"""Evaluation tasks: their data, task files, samples and other wordings of instructions."""

import json
import math
import os
import random
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from promptembedder.data import clean_text, read_json_list, read_rows
from promptembedder.errors import DataError, did_you_mean, printable, short_repr

__all__ = [
    "EvaluationTask",
    "LabelledTexts",
    "ScoredPairs",
    "SearchData",
    "paraphrases_of",
    "read_tasks",
    "subsample",
]

TaskType = Literal["sts", "classification", "pair_classification", "clustering", "retrieval"]

_DOCUMENTS_PER_QUERY = 10
# mteb trains each of its ten classifiers on 8 (one task: 32) rows per label; these leave twice as many to draw from
_TRAIN_ROWS_PER_LABEL = (16, 64)

_CUTS = (1, 3, 5, 10, 20, 100, 1000)

# the metrics of mteb by type
METRICS: dict[TaskType, tuple[str, ...]] = {
    "sts": tuple(
        f"{way}{kind}" for way in ("cosine_", "euclidean_", "manhattan_", "") for kind in ("spearman", "pearson")
    ),
    "classification": (
        *("accuracy", "f1", "f1_weighted", "precision", "precision_weighted", "recall", "recall_weighted"),
        *("ap", "ap_weighted"),
    ),
    "pair_classification": tuple(
        f"{way}_{kind}"
        for way in ("cosine", "similarity", "dot", "euclidean", "manhattan", "max")
        for kind in ("ap", "accuracy", "f1", "precision", "recall")
    ),
    "clustering": ("v_measure", "ami"),
    "retrieval": tuple(
        f"{kind}_at_{cut}" for kind in ("ndcg", "map", "recall", "precision", "mrr", "hit_rate") for cut in _CUTS
    ),
}

Item = TypeVar("Item")


@dataclass(frozen=True)
class ScoredPairs:
    """Pairs of texts with similarity scores, or with 1 for similar and 0 for not."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class LabelledTexts:
    """Labelled texts. Only classification tasks have training texts."""

    texts: tuple[str, ...]
    labels: tuple[Hashable, ...]
    train_texts: tuple[str, ...] = ()
    train_labels: tuple[Hashable, ...] = ()


@dataclass(frozen=True)
class SearchData:
    """Queries, documents as (title, text), and the grades of the relevant documents of each query."""

    queries: dict[str, str]
    documents: dict[str, tuple[str, str]]
    relevant: dict[str, dict[str, int]]


@dataclass(frozen=True, kw_only=True)
class EvaluationTask:
    """Task that can be scored offline.

    Args:
        paraphrases: Other wordings of the instruction.
        rows: Number of pairs, texts or queries in the complete set; `data` contains `rows_used` of them.
        documents: Number of documents of the complete corpus. 0 if not retrieval.
        limit: Limit of `subsample`. None for a complete task.
        mteb_name: mteb task with the same data, whose classifier settings are used.
        files: Files of the data.
    """

    name: str
    type: TaskType
    metric: str
    instruction: str
    data: ScoredPairs | LabelledTexts | SearchData
    rows: int
    documents: int = 0
    paraphrases: tuple[str, ...] = ()
    limit: int | None = None
    seed: int | None = None
    mteb_name: str | None = None
    files: tuple[Path, ...] = ()

    @property
    def rows_used(self) -> int:
        """Number of scored pairs, texts or queries."""
        match self.data:
            case ScoredPairs(first=texts) | LabelledTexts(texts=texts):
                return len(texts)
            case SearchData(queries=queries):
                return len(queries)

    @property
    def documents_used(self) -> int:
        """Number of searched documents."""
        return len(self.data.documents) if isinstance(self.data, SearchData) else 0


def subsample(task: EvaluationTask, limit: int, *, seed: int = 0) -> EvaluationTask:
    """Draw `limit` pairs, texts or queries of a task with `seed`. A smaller limit draws a subset.

    Retrieval keeps every document relevant to a drawn query and adds others up to ten documents per query.
    Classification keeps between 16 and 64 training texts per label, so that mteb's experiments draw different ones.

    Raises:
        DataError: The task has fewer than `limit` rows, or all drawn rows have the same label.
    """
    if limit > task.rows:
        raise DataError(f"limit {limit} is more than {task.name} has: {task.rows} rows. Set a limit of {task.rows}.")
    if limit < 2:
        raise DataError(f"limit must be 2 or more, got {limit}.")
    part: ScoredPairs | LabelledTexts | SearchData
    values: tuple[Hashable, ...] = ()
    match task.data:
        case ScoredPairs() as pairs:
            rows = _draw(range(len(pairs.first)), limit, seed)
            part = ScoredPairs(_select(pairs.first, rows), _select(pairs.second, rows), _select(pairs.scores, rows))
            values = part.scores
        case LabelledTexts() as texts:
            part = _sample_texts(texts, limit, seed)
            values = () if task.type == "classification" else part.labels
        case SearchData() as search:
            part = _sample_search(search, limit, seed)
    if len(set(values)) == 1:
        raise DataError(
            f"{task.name}: all {len(values)} rows drawn have the same label or score, {values[0]!r}. "
            "Raise the limit, or change the seed."
        )
    return replace(task, data=part, limit=limit, seed=seed)


def _sample_texts(data: LabelledTexts, limit: int, seed: int) -> LabelledTexts:
    rows = _draw(range(len(data.texts)), limit, seed)
    labels = len(set(data.train_labels))
    least, most = _TRAIN_ROWS_PER_LABEL
    per_label = min(max(2 * limit // max(labels, 1), least), most)
    by_label = sorted(range(len(data.train_labels)), key=lambda row: str(data.train_labels[row]))
    train = sorted(
        row
        for _, group in groupby(by_label, key=lambda row: data.train_labels[row])
        for row in _draw(list(group), per_label, seed)
    )
    return LabelledTexts(
        _select(data.texts, rows),
        _select(data.labels, rows),
        _select(data.train_texts, train),
        _select(data.train_labels, train),
    )


def _sample_search(data: SearchData, limit: int, seed: int) -> SearchData:
    queries = set(_draw(list(data.queries), limit, seed))
    kept = {document for query in queries for document in data.relevant[query]}
    others = [document for document in data.documents if document not in kept]
    kept.update(_draw(others, max(0, _DOCUMENTS_PER_QUERY * limit - len(kept)), seed))
    return SearchData(
        {query: text for query, text in data.queries.items() if query in queries},
        {name: document for name, document in data.documents.items() if name in kept},
        {query: grades for query, grades in data.relevant.items() if query in queries},
    )


def _draw(items: Sequence[Item], count: int, seed: int) -> list[Item]:
    """Return the first `count` items of a shuffled order, in their original order."""
    rows = list(range(len(items)))
    random.Random(seed).shuffle(rows)
    return [items[row] for row in sorted(rows[:count])]


def _select(column: tuple[Item, ...], rows: Sequence[int]) -> tuple[Item, ...]:
    return tuple(column[row] for row in rows)


_REFRAMED = (
    "{instruction}. Judge by this alone and leave everything else aside",
    "What matters in the text is what this task needs: {instruction}",
    "Represent the text so that the following can be done with it: {instruction}",
)
_FILES: dict[str, tuple[str, ...]] = {
    "sts": ("pairs",),
    "pair_classification": ("pairs",),
    "classification": ("rows",),
    "clustering": ("rows",),
    "retrieval": ("corpus", "queries", "qrels"),
}
_REQUIRED = ("name", "type", "files", "instruction", "metric")
# rows, documents and labels are informative only
_OPTIONAL = (
    *("split", "dev_split", "train_split", "subset", "label_field", "instruction_paraphrases", "same_as_mteb"),
    *("rows", "documents", "labels"),
)


@dataclass(frozen=True)
class _Entry:
    """Object of a task file with checked keys, and its location for error messages."""

    content: dict[str, Any]
    files: dict[str, Path]
    location: str

    def get_text(self, key: str) -> str | None:
        """Return the text of an optional key.

        Raises:
            DataError: The value is blank or not a text.
        """
        value = self.content.get(key)
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise DataError(f"{self.location}: {key} must be a text, got {short_repr(value)}.")
        return value


def read_tasks(path: Path, *, only: Sequence[str] = ()) -> list[EvaluationTask]:
    """Read the tasks of a task file with their texts: all, or those named in `only`, in the file's order.

    The file is a JSON list of objects: name, type, files (relative to the file's folder, or absolute),
    instruction and metric; optionally split, train_split, dev_split, subset, label_field,
    instruction_paraphrases and same_as_mteb. Columns of pairs: sentence1, sentence2 and score (sts) or
    label (1 or 0). Columns of texts: text and label. Columns of a corpus: id, title and text; of queries: id
    and text; of qrels: query_id, doc_id and relevance.

    Raises:
        DataError: The file or a data file is missing or invalid, a key is unknown or missing, a metric does not
            match the type, or no row has the split.
    """
    entries = [
        _entry(item, path.parent, f"{path}, task {row}")
        for row, item in enumerate(read_json_list(path, kind="task file", items="tasks"), start=1)
    ]
    names = [entry.content["name"] for entry in entries]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise DataError(f"{path}: the name {short_repr(min(twice))} occurs twice. Give each task a unique name.")
    for name in only:
        if name not in names:
            raise DataError(
                f"{path} has no task {short_repr(name)}. {did_you_mean(name, names)}It has: {', '.join(names)}."
            )
    return [_task(entry) for entry in entries if not only or entry.content["name"] in only]


def paraphrases_of(name: str, instruction: str, given: Sequence[str] = ()) -> tuple[str, ...]:
    """Return other wordings of an instruction: `given`, else those stored for the task's name, else generic ones.

    Args:
        name: Name of the task. mteb's version and subset (`Name.v2`, `Name (en)`) are ignored.
    """
    if given:
        return tuple(given)
    entries = json.loads(Path(__file__).with_name("paraphrases.json").read_text(encoding="utf-8"))
    stored = {task: tuple(entry["wordings"]) for entry in entries for task in entry["tasks"]}
    base = name.partition(" (")[0]
    framed = tuple(frame.replace("{instruction}", instruction.rstrip(". ")) for frame in _REFRAMED)
    return stored.get(base) or stored.get(base.partition(".")[0]) or framed


def _entry(content: Any, folder: Path, location: str) -> _Entry:
    if not isinstance(content, dict):
        raise DataError(f"{location} must be an object, got {short_repr(content)}. Write {{...}}.")
    known = _REQUIRED + _OPTIONAL
    for key in content:
        if key not in known:
            raise DataError(
                f"{location}: unknown key {short_repr(key)}. {did_you_mean(key, known)}Known: {', '.join(known)}."
            )
    missing = [key for key in _REQUIRED if key not in content]
    if missing:
        raise DataError(f"{location} lacks {', '.join(missing)}. Every task has {', '.join(_REQUIRED)}.")
    if not isinstance(content["name"], str) or not content["name"].strip():
        raise DataError(f"{location}: name must be a text, got {short_repr(content['name'])}.")
    location = f"{location} ({printable(content['name'])})"
    kinds = get_args(TaskType)
    kind = content["type"]
    if kind not in kinds:
        raise DataError(
            f"{location}: unknown type {short_repr(kind)}. {did_you_mean(str(kind), kinds)}Known: {', '.join(kinds)}."
        )
    metric, metrics = content["metric"], METRICS[kind]
    if metric not in metrics:
        raise DataError(
            f"{location}: {short_repr(metric)} is not a metric of {kind}. {did_you_mean(str(metric), metrics)}"
            f"Try {metrics[0]!r}."
        )
    return _Entry(content, _files(content["files"], _FILES[kind], folder, location), location)


def _files(files: Any, keys: tuple[str, ...], folder: Path, location: str) -> dict[str, Path]:
    misplaced = [key for key in _OPTIONAL if key in files and key != "rows"] if isinstance(files, dict) else []
    if misplaced:
        raise DataError(f"{location}: put {', '.join(misplaced)} beside 'files', not inside it.")
    if not isinstance(files, dict) or set(files) != set(keys):
        raise DataError(f"{location}: files must contain {', '.join(keys)}, got {short_repr(files)}.")
    paths = {}
    for key, name in files.items():
        if not isinstance(name, str) or not os.path.isfile(folder / name):  # Path.is_file raises over some names
            raise DataError(
                f"{location}: {printable(str(folder / str(name)))} is not a file. "
                f"Check {key}, which is relative to {printable(str(folder.resolve()))}."
            )
        paths[key] = folder / name
    return paths


def _task(entry: _Entry) -> EvaluationTask:
    kind: TaskType = entry.content["type"]
    paraphrases = entry.content.get("instruction_paraphrases") or []
    if not isinstance(paraphrases, list) or not all(isinstance(text, str) and text.strip() for text in paraphrases):
        raise DataError(
            f"{entry.location}: instruction_paraphrases must be a list of texts, got {short_repr(paraphrases)}."
        )
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
    instruction = entry.get_text("instruction")
    if instruction is None:
        raise DataError(f"{entry.location}: instruction must be a text, got None.")
    return EvaluationTask(
        name=entry.content["name"],
        type=kind,
        metric=entry.content["metric"],
        instruction=instruction.strip(),
        data=data,
        rows=rows,
        documents=len(data.documents) if isinstance(data, SearchData) else 0,
        paraphrases=tuple(text.strip() for text in paraphrases),
        mteb_name=entry.get_text("same_as_mteb"),
        files=tuple(entry.files.values()),
    )


def _pairs(entry: _Entry) -> ScoredPairs:
    sts = entry.content["type"] == "sts"
    column = entry.get_text("label_field") or ("score" if sts else "label")
    path = entry.files["pairs"]
    rows = _select_split(_rows(entry, path, ("sentence1", "sentence2", column)), entry, path, "split")
    scores = [_number(row[column], column, path) for row in rows]
    if not sts and set(scores) != {0.0, 1.0}:
        raise DataError(
            f"{path}: {short_repr(column)} must be 1 or 0, and both must occur, found {sorted(set(scores))[:5]}."
        )
    if len(set(scores)) < 2:
        raise DataError(f"{path}: every {short_repr(column)} is {scores[0]}. At least two different values are needed.")
    first, second = (tuple(_text(row[key], key, path) for row in rows) for key in ("sentence1", "sentence2"))
    return ScoredPairs(first, second, tuple(scores))


def _labelled(entry: _Entry, *, with_train: bool) -> LabelledTexts:
    column, path = entry.get_text("label_field") or "label", entry.files["rows"]
    rows = list(_rows(entry, path, ("text", column)))
    test = _select_split(rows, entry, path, "split")
    train: list[dict[str, Any]] = []
    if with_train:
        if entry.get_text("train_split") is None:
            raise DataError(
                f"{entry.location} lacks train_split: a classifier is trained and tested on different rows."
            )
        train = _select_split(rows, entry, path, "train_split")
    labels, train_labels = (tuple(_label(row[column], column, path) for row in part) for part in (test, train))
    if len(set(train_labels or labels)) < 2:
        raise DataError(
            f"{path}: every {short_repr(column)} is {short_repr(labels[0])}. Two or more labels are needed."
        )
    texts, train_texts = (tuple(_text(row["text"], "text", path) for row in part) for part in (test, train))
    return LabelledTexts(texts, labels, train_texts, train_labels)


def _search(entry: _Entry) -> SearchData:
    corpus, queries, qrels = (entry.files[key] for key in ("corpus", "queries", "qrels"))
    documents = {
        name: (_text(row.get("title") or "", "title", corpus), _text(row["text"], "text", corpus))
        for name, row in _by_id(entry, corpus)
    }
    texts = {name: _text(row["text"], "text", queries) for name, row in _by_id(entry, queries)}
    relevant: dict[str, dict[str, int]] = {}
    for row in _rows(entry, qrels, ("query_id", "doc_id", "relevance")):
        query, document = str(row["query_id"]), str(row["doc_id"])
        for name, known, path in ((query, texts, queries), (document, documents, corpus)):
            if name not in known:
                raise DataError(
                    f"{qrels} names {short_repr(name)}, which {path} does not contain. "
                    "Remove the row, or add the id there."
                )
        grade = int(_number(row["relevance"], "relevance", qrels))
        if grade > 0:
            relevant.setdefault(query, {})[document] = grade
    if not relevant:
        raise DataError(f"{qrels} has no relevant document: every relevance is 0.")
    # a query without relevant documents has no score; mteb skips it too
    return SearchData({query: text for query, text in texts.items() if query in relevant}, documents, relevant)


def _rows(entry: _Entry, path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield the rows of the task's subset, checked for the columns."""
    subset, found = entry.get_text("subset"), False
    for number, row in enumerate(read_rows(path), start=1):
        missing = [column for column in columns if row.get(column) is None]
        if missing:
            raise DataError(
                f"{path}, row {number} has no {short_repr(missing[0])}: found {printable(', '.join(row))}. "
                "Fix or remove it."
            )
        if subset is None or row.get("subset") == subset:
            found = True
            yield row
    if not found:
        raise DataError(f"{path} has no row of subset {short_repr(subset)}. Check {entry.location}.")


def _by_id(entry: _Entry, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    seen = set()
    for row in _rows(entry, path, ("id", "text")):
        name = str(row["id"])
        if name in seen:
            raise DataError(f"{path}: the id {short_repr(name)} occurs twice. Give each row a unique id.")
        seen.add(name)
        yield name, row


def _select_split(rows: Iterable[dict[str, Any]], entry: _Entry, path: Path, key: str) -> list[dict[str, Any]]:
    rows = list(rows)
    splits = {str(row.get("split")) for row in rows}
    for wanted in (entry.get_text(key), entry.get_text("dev_split")):
        if wanted is not None and wanted not in splits:
            raise DataError(
                f"{path} has no row of split {short_repr(wanted)}; it has {printable(', '.join(sorted(splits)))}."
            )
    split = entry.get_text(key)
    return [row for row in rows if split is None or row.get("split") == split]


def _text(value: Any, column: str, path: Path) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"{path}: {short_repr(column)} contains {short_repr(value)}, not a text. Fix or remove the row."
        )
    return clean_text(value)


def _label(value: Any, column: str, path: Path) -> Hashable:
    if not isinstance(value, str | int):
        raise DataError(f"{path}: {short_repr(column)} contains {short_repr(value)}, not a text or whole number.")
    return value


def _number(value: Any, column: str, path: Path) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"{path}: {short_repr(column)} contains {short_repr(value)}, not a number. Fix or remove the row."
        )
    return number
