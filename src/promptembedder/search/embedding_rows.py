"""Rows for a table from the Parquet files that an embedding job wrote."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from promptembedder.data import COLUMN_KINDS, clean_text
from promptembedder.errors import DataError, brief, shown
from promptembedder.search.table_schema import TableFacts, facts_of, row_batch

__all__ = ["EmbeddingRows", "holds_embeddings", "open_embeddings"]

_SHARDS = "manifest.jsonl"
_BATCH_ROWS = 2048
_MOST_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class EmbeddingRows:
    """The rows of one file, or of the shards of a job in their order.

    Attributes:
        files: Parquet files of one schema.
        column: Which of their columns holds the vectors.
        text_column: Which holds the texts; None if none does.
        facts: What made the vectors.
        metadata: The kind of each further column that is taken along.
    """

    files: tuple[Path, ...]
    column: str
    text_column: str | None
    facts: TableFacts
    metadata: Mapping[str, str]

    def ids(self) -> Iterator[Sequence[str]]:
        """The ids, a batch at a time.

        Raises:
            DataError: A file is damaged, or a row has no id.
        """
        for path in self.files:
            for batch in _batches(path, ["id"]):
                if batch["id"].null_count:
                    raise DataError(f"{path} has a row without an id. Give each row one.")
                yield _strings(batch["id"], path)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows as a table takes them.

        Raises:
            DataError: A file is damaged, a vector is missing, not finite or not of length 1, or a value of the metadata
                does not fit its column.
        """
        texts = [] if self.text_column is None else [self.text_column]
        for path in self.files:
            for batch in _batches(path, ["id", self.column, *texts, *self.metadata]):
                vectors = batch[self.column]
                if vectors.null_count or vectors.flatten().null_count:
                    raise DataError(f"{path} has a row without a vector in {self.column!r}. Embed the rows again.")
                flat = vectors.flatten().to_numpy(zero_copy_only=False)
                metadata = {
                    name: _cast(batch[name], kind, f"{path}: {shown(name)}") for name, kind in self.metadata.items()
                }
                absent = pa.nulls(len(batch), pa.string())
                read = absent if self.text_column is None else batch[self.text_column].cast(pa.string())
                yield row_batch(_strings(batch["id"], path), flat.reshape(len(batch), -1), read, metadata)


def holds_embeddings(path: Path) -> bool:
    """Whether this is a folder, or a Parquet file with the mark of an embedding job."""
    if path.is_dir():
        return True
    return path.name.lower().endswith(".parquet") and path.is_file() and "columns" in facts_of(_schema(path))


def open_embeddings(
    path: Path,
    *,
    column: str | None = None,
    instruction: str | None = None,
    text_column: str | None = None,
    keep: Sequence[str] | None = None,
) -> EmbeddingRows:
    """The rows of a Parquet file that `embed` wrote, or of a folder of such files with a `manifest.jsonl`.

    Args:
        column: Column of vectors, where there are several.
        instruction: The same, by what the texts were read under.
        text_column: By default `text` where there is such a column.
        keep: Further columns to take along; None takes all of them.

    Raises:
        DataError: There is no such file or column, no embedding job wrote it, the shards are not of one job, or a
            column holds what a table does not.
    """
    files = _files(path)
    schema = _schema(files[0])
    columns = _vector_columns(schema, files[0])
    chosen = _chosen_column(columns, files[0], column=column, instruction=instruction)
    texts = text_column or ("text" if "text" in schema.names else None)
    others = [name for name in schema.names if name not in ("id", texts, *columns)] if keep is None else list(keep)
    for name in ("id", chosen, *([] if texts is None else [texts]), *others):
        if name not in schema.names:
            raise DataError(f"{files[0]} has no column {shown(name)}: found {shown(schema.names)}. Name one of these.")
    for name in ("id", *([] if texts is None else [texts])):
        if _kind(schema.field(name).type) != "str":
            raise DataError(
                f"{files[0]}: column {shown(name)} holds {schema.field(name).type}, not strings. Convert it."
            )
    vectors = schema.field(chosen).type
    if not pa.types.is_fixed_size_list(vectors) or vectors.list_size < 1:
        raise DataError(f"{files[0]}: column {shown(chosen)} holds {vectors}, no vectors. Embed again.")
    taken = pa.schema([schema.field(name) for name in ("id", chosen, *([] if texts is None else [texts]), *others)])
    for other in files[1:]:
        _check_shard(other, taken, facts_of(schema))
    return EmbeddingRows(
        files=files,
        column=chosen,
        text_column=texts,
        facts=_facts(facts_of(schema), columns[chosen]),
        metadata={name: _known_kind(schema.field(name), files[0]) for name in others},
    )


def _files(path: Path) -> tuple[Path, ...]:
    if not path.exists():
        raise DataError(f"{path} does not exist. Check the path.")
    return _shards(path) if path.is_dir() else (path,)


def _shards(folder: Path) -> tuple[Path, ...]:
    """The files that the folder's manifest lists, by their numbers; of one number, the last line counts."""
    manifest = folder / _SHARDS
    if not manifest.is_file():
        raise DataError(f"{folder} has no {_SHARDS}, so no embedding job wrote it. Name a folder that one wrote.")
    names: dict[int, str] = {}
    for number, line in enumerate(manifest.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            shard = json.loads(line)
            names[int(shard["shard"])] = str(shard["file"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise DataError(
                f"{manifest}, line {number}: no shard and file in {line[:60]!r}. Let the embedding job finish."
            ) from error
    if not names:
        raise DataError(f"{manifest} lists no shard. Let the embedding job finish one.")
    files = tuple(folder / Path(names[shard]).name for shard in sorted(names))  # nothing outside the folder
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise DataError(f"{missing} is listed in {manifest} and is not there. Copy the folder again, or embed again.")
    return files


def _schema(path: Path) -> pa.Schema:
    try:
        schema = pq.read_schema(path)
        names, _ = schema.names, facts_of(schema)  # what is not UTF-8 in them is told here
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path} is no Parquet file that can be read ({brief(error)}). "
            "Give vectors that `promptembedder embed` wrote, or a text file with --model."
        ) from error
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{path} has two columns called {shown(twice)}. Rename one of them.")
    return schema


def _vector_columns(schema: pa.Schema, path: Path) -> dict[str, str]:
    """The instruction of each column of vectors."""
    known = facts_of(schema)
    missing = next((key for key in ("columns", "model_sha256") if key not in known), None)
    if missing is not None:
        raise DataError(
            f"{path} does not say which model made its vectors (no promptembedder.{missing} in the schema). "
            "Write it with `promptembedder embed`."
        )
    try:
        columns = json.loads(known["columns"])
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: its columns are no JSON ({brief(error)}). Embed again.") from error
    if not isinstance(columns, dict) or not all(isinstance(text, str) for text in columns.values()):
        raise DataError(f"{path} is damaged: its columns are {shown(columns)}. Embed again.")
    return columns


def _chosen_column(columns: Mapping[str, str], path: Path, *, column: str | None, instruction: str | None) -> str:
    asked = None if instruction is None else clean_text(instruction).strip()
    fitting = [
        name for name, text in columns.items() if column in (None, name) and (asked is None or text.strip() == asked)
    ]
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(f"{shown(name)} ({shown(text)})" for name, text in islice(columns.items(), _MOST_SHOWN))
    if not fitting:
        raise DataError(f"{path} has no vectors of {column or instruction!r}: found {found}. Name one of these.")
    raise DataError(f"{path} has several columns of vectors: {found}. Choose with --column or --instruction.")


def _facts(known: Mapping[str, str], instruction: str) -> TableFacts:
    sha256 = known["model_sha256"]
    return TableFacts(
        model=known.get("model", sha256[:12]),
        model_sha256=sha256,
        reader=known.get("reader", ""),
        instruction=instruction,
    )


def _check_shard(path: Path, taken: pa.Schema, known: Mapping[str, str]) -> None:
    schema = _schema(path)
    same = all(facts_of(schema).get(key) == known.get(key) for key in ("model_sha256", "reader", "columns"))
    if not same or any(
        name not in schema.names or schema.field(name).type != taken.field(name).type for name in taken.names
    ):
        raise DataError(f"{path} is of another model, instruction or shape than the shards before it. Embed again.")


def _known_kind(field: pa.Field, path: Path) -> str:
    kind = _kind(field.type)
    if kind is None:
        raise DataError(
            f"{path}: column {shown(field.name)} holds {field.type}, metadata holds {', '.join(COLUMN_KINDS)}. "
            "Name the columns to keep with --metadata."
        )
    return kind


def _kind(type_: pa.DataType) -> str | None:
    tests = {
        "str": lambda: pa.types.is_string(type_) or pa.types.is_large_string(type_),
        "int": lambda: pa.types.is_integer(type_),
        "float": lambda: pa.types.is_floating(type_),
        "bool": lambda: pa.types.is_boolean(type_),
    }
    return next((kind for kind, test in tests.items() if test()), None)


def _batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: unreadable Parquet ({brief(error)}). Write the file again.") from error


def _strings(values: pa.Array, path: Path) -> list[str]:
    try:
        return values.to_pylist()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} holds an id that is not UTF-8 ({brief(error)}). Embed again.") from error


def _cast(values: pa.Array, kind: str, place: str) -> pa.Array:
    try:
        return values.cast(COLUMN_KINDS[kind])
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{place} cannot be stored as {kind} ({brief(error)}). Mend the row, or leave the column out."
        ) from error
