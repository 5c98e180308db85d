"""Fuzzed readers of rows: JSON lines, CSV, text, compressed files and Parquet, as texts and as pairs."""

import gzip
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.faults.fuzz_inputs import Mutation, mutated_bytes, mutated_lines
from benchmarks.faults.fuzz_reader import FuzzedReader
from promptembedder.data import Position, SourceFile, read_pairs, read_texts, scan_rows
from promptembedder.errors import DataError
from promptembedder.search import open_embeddings

__all__ = ["csv_rows", "embeddings", "gzip_rows", "json_rows", "parquet_rows", "plain_rows"]

_ROWS: list[dict[str, Any]] = [
    {"id": 1, "text": "a red house", "title": "t", "anchor": "a", "positive": "b", "negative": None},
    {"id": "b", "text": "zwei ✓ 😀", "title": "", "anchor": "c", "positive": "d", "negative": "e"},
    {"id": -3, "text": 'quoted "x", y', "title": None, "anchor": " f", "positive": "g\n", "negative": " "},
]
_LINES = "".join(json.dumps(row, ensure_ascii=place == 1) + "\n" for place, row in enumerate(_ROWS)).encode()
_CSV = b'id,text,anchor,positive,negative\r\n1,a red house,a,b,\r\n2,"quoted ""x"", y","c\nc",d,e\r\n'
_TSV = "text\tid\nfirst\t1\n\nzwei ✓\t2\n".encode()


def json_rows(folder: Path) -> FuzzedReader:
    """Return the reader of JSON lines."""
    return _rows(folder / "rows.jsonl", (_LINES, b"\xef\xbb\xbf" + _LINES), mutated_lines)


def csv_rows(folder: Path) -> FuzzedReader:
    """Return the reader of comma-separated values."""
    return _rows(folder / "rows.csv", (_CSV, _TSV.replace(b"\t", b",")), mutated_bytes)


def plain_rows(folder: Path) -> FuzzedReader:
    """Return the reader of plain text lines."""
    return _rows(folder / "rows.txt", ("one\ntwo ✓\r\n\n\u2028three\x0cx".encode(), b"\xef\xbb\xbfone"), mutated_bytes)


def gzip_rows(folder: Path) -> FuzzedReader:
    """Return the reader of compressed JSON lines."""
    seeds = tuple(gzip.compress(content, mtime=0) for content in (_LINES, b'{"text": "a"}\n' * 300))
    return _rows(folder / "rows.jsonl.gz", seeds, mutated_bytes)


def parquet_rows(folder: Path) -> FuzzedReader:
    """Return the reader of Parquet files with strings, numbers, lists, dictionaries and times."""
    texts = [str(row["text"]) for row in _ROWS]
    table = pa.table(
        {
            "id": [1, 2, 3],
            "text": texts,
            "anchor": texts,
            "positive": texts,
            "negative": pa.array([None, "a", ""]),
            "list": pa.array([[1.0], None, []], pa.list_(pa.float32())),
            "kind": pa.array(["a", "b", "a"]).dictionary_encode(),
            "time": pa.array([0, 1, None], pa.timestamp("us", tz="UTC")),
            "deep": pa.array([{"a": [1]}, None, {"a": None}]),
        }
    )
    seeds = [_parquet(table, compression=kind) for kind in ("none", "snappy", "zstd")]
    seeds.append(_parquet(table.select(["id", "text"]), compression="none", use_dictionary=False))
    return _rows(folder / "rows.parquet", tuple(seeds), mutated_bytes)


def embeddings(folder: Path) -> FuzzedReader:
    """Return the reader of an embedding job's vector file, which is loaded into a search table."""
    path = folder / "vectors.parquet"
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([0.6, 0.8, 1.0, 0.0], pa.float32()), 2)
    table = pa.table({"id": ["a", "b"], "embedding": vectors, "text": ["x", "y"], "year": [1, 2]})
    facts = {"columns": '{"embedding": "Find it"}', "model_sha256": "ab" * 32, "model": "m", "reader": "r"}
    table = table.replace_schema_metadata({f"promptembedder.{key}": value for key, value in facts.items()})
    seeds = [_parquet(table, compression=kind, use_dictionary=False) for kind in ("none", "zstd")]

    def read(data: bytes) -> object:
        path.write_bytes(data)
        rows = open_embeddings(path)
        return list(rows.ids()), list(rows.batches())

    return FuzzedReader(seeds=seeds, mutate=mutated_bytes, read=read)


def _rows(path: Path, seeds: tuple[bytes, ...], mutate: Mutation) -> FuzzedReader:
    return FuzzedReader(seeds=seeds, mutate=mutate, read=partial(_read_rows, path))


def _read_rows(path: Path, data: bytes) -> object:
    """Read the file as texts, as pairs, and from the middle. Raise the first refusal at the end."""
    path.write_bytes(data)
    refused: DataError | None = None
    for read in (read_texts, _second_half) if path.suffix == ".txt" else (read_texts, read_pairs, _second_half):
        try:
            for _ in read(path):
                pass
        except DataError as error:
            refused = refused or error
    if refused is not None:
        raise refused
    return None


def _second_half(path: Path) -> list[object]:
    source = SourceFile(str(path))
    source.check()
    found = list(scan_rows(source))
    start: Position | None = found[len(found) // 2].start if found else None
    again = list(scan_rows(source, start))
    assert len(again) == len(found) - len(found) // 2, "reading on gives other rows"
    return []


def _parquet(table: pa.Table, **settings: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **settings)
    return file.getvalue()
