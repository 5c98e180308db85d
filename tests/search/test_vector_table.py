"""Laws of a table on disk: it answers as `ExactIndex` does over the rows that are in it, whatever came before."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from promptembedder.errors import ConfigError, DataError
from promptembedder.search import (
    ExactIndex,
    TableHit,
    TableMetadata,
    VectorTable,
    create_table,
    measure_search,
    open_embeddings,
)
from promptembedder.search.table_schema import row_batch

Clustered = Callable[..., np.ndarray]
Write = Callable[..., Path]

TABLE_METADATA = TableMetadata(
    model="runs/model", model_sha256="ab" * 32, reader="", instruction="Find texts on the same topic"
)


class ListedRows:
    """Rows from memory; those from `broken_from` on cannot be read."""

    def __init__(
        self,
        vectors: np.ndarray,
        *,
        ids: Sequence[str] | None = None,
        years: Sequence[int] | None = None,
        table_metadata: TableMetadata = TABLE_METADATA,
        broken_from: int | None = None,
    ) -> None:
        self.vectors, self.table_metadata, self.broken_from = vectors, table_metadata, broken_from
        self.all_ids = list(ids or (f"row {row}" for row in range(len(vectors))))
        self.years = years
        self.metadata: Mapping[str, str] = {} if years is None else {"year": "int"}

    def ids(self) -> Iterator[Sequence[str]]:
        for start in range(0, len(self.all_ids), 50):
            yield self.all_ids[start : start + 50]

    def batches(self) -> Iterator[pa.RecordBatch]:
        for start in range(0, len(self.vectors), 50):
            if self.broken_from is not None and start >= self.broken_from:
                raise DataError("these rows cannot be read.")
            rows = slice(start, start + 50)
            ids = self.all_ids[rows]
            columns = {} if self.years is None else {"year": pa.array(self.years[rows], type=pa.int64())}
            yield row_batch(ids, self.vectors[rows], pa.array([f"text of {one}" for one in ids]), columns)


def years(rows: int) -> list[int]:
    return [1990 + row % 30 for row in range(rows)]


def expected_hits(rows: ListedRows, query: np.ndarray, k: int, keep: np.ndarray) -> list[tuple[int, str, str]]:
    """What exact search in memory finds among the rows that are kept."""
    ids = [one for one, kept in zip(rows.all_ids, keep, strict=True) if kept]
    index = ExactIndex(ids=ids, texts=[f"text of {one}" for one in ids], vectors=rows.vectors[keep])
    return [(hit.rank, hit.id, hit.text) for hit in index.search(query, k=k)]


def seen(hits: Sequence[TableHit]) -> list[tuple[int, str, str | None]]:
    return [(hit.rank, hit.id, hit.text) for hit in hits]


@pytest.fixture
def rows(clustered: Clustered) -> ListedRows:
    return ListedRows(clustered(300), years=years(300))


@pytest.fixture
def query() -> np.ndarray:
    return np.random.default_rng(9).standard_normal(24).astype(np.float32)


@pytest.mark.parametrize(
    ("where", "fits"),
    [
        (None, lambda id_, year: True),
        ("year >= 2000", lambda id_, year: year >= 2000),
        ("year IN (1991, 1995) OR id = 'row 7'", lambda id_, year: year in (1991, 1995) or id_ == "row 7"),
        ("text LIKE '%; row%' OR year < 1993", lambda id_, year: year < 1993),
    ],
    ids=["all", "newer", "or", "semicolon"],
)
@pytest.mark.parametrize("exact_below", [1000, 100], ids=["exact", "index"])
def test_table_search_equals_exact_search_in_memory(
    rows: ListedRows,
    query: np.ndarray,
    tmp_path: Path,
    where: str | None,
    fits: Callable[[str, int], bool],
    exact_below: int,
) -> None:
    table = create_table(tmp_path / "table", rows, exact_below=exact_below)
    assert (table.index_type is None) == (exact_below == 1000)
    assert rows.years is not None
    keep = np.array([fits(one, year) for one, year in zip(rows.all_ids, rows.years, strict=True)])
    hits = table.search(query, k=12, where=where)
    assert seen(hits) == expected_hits(rows, query, 12, keep)
    scores = [float(rows.vectors[rows.all_ids.index(hit.id)] @ query / np.linalg.norm(query)) for hit in hits]
    np.testing.assert_allclose([hit.score for hit in hits], scores, atol=1e-5)
    assert [hit.metadata for hit in hits] == [{"year": rows.years[rows.all_ids.index(hit.id)]} for hit in hits]
    assert seen(VectorTable(tmp_path / "table").search(query, k=12, where=where)) == seen(hits)


def test_ties_are_ordered_by_row(tmp_path: Path, clustered: Clustered) -> None:
    vectors = np.repeat(clustered(1), 60, axis=0)
    table = create_table(tmp_path / "table", ListedRows(vectors))
    assert [hit.id for hit in table.search(vectors[0], k=60)] == [f"row {row}" for row in range(60)]


@pytest.mark.parametrize("exact_below", [1000, 100], ids=["exact", "index"])
def test_a_table_after_adding_and_deleting_is_one_made_of_what_is_left(
    clustered: Clustered, query: np.ndarray, tmp_path: Path, exact_below: int
) -> None:
    vectors, all_years = clustered(400), years(400)
    ids = [f"row {row}" for row in range(400)]
    table = create_table(
        tmp_path / "grown", ListedRows(vectors[:200], ids=ids[:200], years=all_years[:200]), exact_below=exact_below
    )
    assert table.add(ListedRows(vectors[200:], ids=ids[200:], years=all_years[200:])) == 200
    keep = np.array(all_years) >= 2000
    assert table.delete("year < 2000") == 400 - keep.sum()
    left = ListedRows(
        vectors[keep],
        ids=[one for one, kept in zip(ids, keep, strict=True) if kept],
        years=[year for year in all_years if year >= 2000],
    )
    fresh = create_table(tmp_path / "fresh", left, exact_below=exact_below)
    for opened in (table, VectorTable(tmp_path / "grown")):
        assert opened.rows == fresh.rows == keep.sum()
        assert (opened.table_metadata, opened.metadata, opened.exact_below) == (
            TABLE_METADATA,
            {"year": "int"},
            exact_below,
        )
        assert seen(opened.search(query, k=20)) == seen(fresh.search(query, k=20))
    assert table.add(ListedRows(vectors[:1], ids=["row 0"], years=[1990])) == 1  # an id that was deleted is free
    assert table.search(vectors[0], k=1)[0].id == "row 0"


def test_a_table_that_grows_over_the_limit_gets_an_index_and_finds_new_rows(
    clustered: Clustered, tmp_path: Path
) -> None:
    vectors = clustered(360)
    table = create_table(tmp_path / "table", ListedRows(vectors[:200]), exact_below=300)
    assert table.index_type is None
    table.add(ListedRows(vectors[200:320], ids=[f"new {row}" for row in range(120)]))
    assert table.index_type is not None
    table.add(ListedRows(vectors[320:], ids=[f"newer {row}" for row in range(40)]))
    assert VectorTable(tmp_path / "table").index_type is not None
    for row in (0, 199, 200, 319, 320, 359):
        hit = table.search(vectors[row], k=1)[0]
        assert hit.score == pytest.approx(1, abs=1e-5)
    assert {hit.id.split()[0] for hit in table.search(vectors[0], k=360)} == {"row", "new", "newer"}


def test_recall_is_that_of_a_slow_plain_reference(clustered: Clustered, tmp_path: Path) -> None:
    vectors = clustered(3000, dim=40, clusters=100)
    table = create_table(tmp_path / "table", ListedRows(vectors), exact_below=1000)
    report = measure_search(table, queries=50, k=10, seed=3)
    ids, queries = table.sample(50, seed=3)
    shares = []
    for own, query in zip(ids, queries, strict=True):
        scores = vectors.astype(np.float64) @ query
        scores[int(own.split()[1])] = -2
        nearest = {f"row {row}" for row in np.argsort(-scores)[:10]}
        found = [hit.id for hit in table.search(query, k=11) if hit.id != own][:10]
        shares.append(len(nearest & set(found)) / 10)
    assert report.recall == pytest.approx(np.mean(shares), abs=1e-9)
    assert report.recall > 0.97
    assert (report.queries, report.k) == (50, 10)
    assert 0 < report.p50_ms <= report.p99_ms


def test_exact_search_has_a_recall_of_one_and_a_small_table_fewer_hits(clustered: Clustered, tmp_path: Path) -> None:
    vectors = clustered(6)
    vectors[4:] = vectors[0]  # equally near rows count alike
    report = measure_search(create_table(tmp_path / "table", ListedRows(vectors)))
    assert (report.recall, report.queries, report.k) == (1.0, 6, 5)


def test_samples_are_rows_of_the_table_and_the_same_for_a_seed(rows: ListedRows, tmp_path: Path) -> None:
    table = create_table(tmp_path / "table", rows)
    table.delete("year = 1995")
    ids, vectors = table.sample(20, seed=1)
    assert len(set(ids)) == 20
    np.testing.assert_array_equal(vectors, rows.vectors[[rows.all_ids.index(one) for one in ids]])
    assert table.sample(20, seed=1)[0] == ids != table.sample(20, seed=2)[0]
    assert sorted(table.sample(1000, seed=0)[0]) == sorted(
        one for one, year in zip(rows.all_ids, rows.years or (), strict=True) if year != 1995
    )


def files_in(folder: Path) -> set[Path]:
    """All but locks, which stay."""
    return {path for path in folder.rglob("*") if path.suffix not in (".lock", ".owner")}


def test_failed_creation_leaves_no_files(clustered: Clustered, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        create_table(tmp_path / "table", ListedRows(clustered(120), broken_from=100))
    assert files_in(tmp_path) == set()
    with pytest.raises(DataError, match="is not a table"):
        VectorTable(tmp_path / "table")


def test_adding_that_fails_and_overwriting_that_fails_leave_the_table_as_it_was(
    rows: ListedRows, clustered: Clustered, query: np.ndarray, tmp_path: Path
) -> None:
    table = create_table(tmp_path / "table", rows)
    before, files = seen(table.search(query, k=300)), files_in(tmp_path)
    broken = ListedRows(clustered(120), ids=[f"new {row}" for row in range(120)], years=years(120), broken_from=100)
    with pytest.raises(DataError, match="cannot be read"):
        table.add(broken)
    with pytest.raises(DataError, match="cannot be read"):
        create_table(tmp_path / "table", broken, overwrite=True)
    assert files_in(tmp_path) == files
    assert seen(VectorTable(tmp_path / "table").search(query, k=300)) == before


def test_adding_that_is_stopped_while_it_makes_the_index_leaves_the_table_as_it_was(
    rows: ListedRows, query: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = create_table(tmp_path / "table", rows)
    before = seen(table.search(query, k=300))
    new = ListedRows(np.eye(24, dtype=np.float32), ids=[f"new {row}" for row in range(24)], years=years(24))

    def stopped(_: VectorTable) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(VectorTable, "update_index", stopped)
        with pytest.raises(KeyboardInterrupt):
            table.add(new)
    for opened in (table, VectorTable(tmp_path / "table")):
        assert seen(opened.search(query, k=300)) == before
    assert table.add(new) == 24


@pytest.mark.integration
def test_a_process_killed_while_it_adds_leaves_the_table_as_it_was(rows: ListedRows, tmp_path: Path) -> None:
    create_table(tmp_path / "table", rows)
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import numpy as np
import test_vector_table as made
class Killed(made.ListedRows):
    def batches(self):
        yield from super().batches()
        os.kill(os.getpid(), signal.SIGKILL)
new = Killed(np.eye(24, dtype=np.float32), ids=[f"new {{row}}" for row in range(24)], years=made.years(24))
made.VectorTable(Path({str(tmp_path / "table")!r})).add(new)
"""
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ}, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    table = VectorTable(tmp_path / "table")
    assert table.rows == 300
    assert table.add(ListedRows(np.eye(24, dtype=np.float32)[:1], ids=["new 0"], years=[1990])) == 1


def test_overwriting_takes_the_place_of_a_table_and_of_nothing_else(
    rows: ListedRows, clustered: Clustered, tmp_path: Path
) -> None:
    create_table(tmp_path / "table", rows)
    other = ListedRows(clustered(7, dim=5))
    with pytest.raises(DataError, match="is a table already. Use --add or --overwrite"):
        create_table(tmp_path / "table", other)
    table = create_table(tmp_path / "table", other, overwrite=True)
    assert (table.rows, table.dim, table.metadata) == (7, 5, {})
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == ["table"]
    home = tmp_path / "home"
    home.mkdir()
    assert create_table(home, other).rows == 7  # an empty folder is free
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("x")
    for name, told in (("file", "is a file"), ("full", "contains files that are not a table")):
        with pytest.raises(DataError, match=told):
            create_table(tmp_path / name, other, overwrite=True)
    assert (tmp_path / "full" / "letter.txt").read_text() == "x"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {
                "table_metadata": TableMetadata(
                    **{**vars(TABLE_METADATA), "model": "runs/two", "model_sha256": "cd" * 32}
                )
            },
            "not of runs/two",
        ),
        (
            {"table_metadata": replace(TABLE_METADATA, instruction="Sort them")},
            "have the instruction 'Sort them'",
        ),
        ({"years": None}, "metadata none, the table has year:int"),
        ({"ids": ["new", "row 7"]}, "the id 'row 7' is in the table already"),
        ({"ids": ["new", "new"]}, "the id 'new' is repeated"),
        ({"vectors": np.eye(5, dtype=np.float32)[:2]}, "have 5 dimensions, the table has 24"),
        ({"vectors": np.full((2, 24), np.nan, dtype=np.float32)}, "vector of 'new' is not finite"),
        ({"vectors": np.ones((2, 24), dtype=np.float32)}, "vector of 'new' has length 4.899, not 1"),
        ({"vectors": np.zeros((2, 24), dtype=np.float32)}, "vector of 'new' has length 0, not 1"),
        ({"vectors": np.eye(24, dtype=np.float32)[:0], "ids": []}, "there are no rows"),
    ],
    ids=["model", "instruction", "metadata", "there", "twice", "width", "NaN", "long", "zero", "none"],
)
def test_rows_that_do_not_fit_are_refused_by_name(
    rows: ListedRows, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    table = create_table(tmp_path / "table", rows)
    fitting = {
        "vectors": np.eye(24, dtype=np.float32)[:2],
        "ids": ["new", "newer"],
        "years": [1, 2],
        "table_metadata": TABLE_METADATA,
    }
    with pytest.raises(DataError, match=told):
        table.add(ListedRows(**{**fitting, **change}))
    assert (table.rows, VectorTable(tmp_path / "table").rows) == (300, 300)


def test_another_reader_of_the_same_model_is_refused(rows: ListedRows, tmp_path: Path) -> None:
    rows.table_metadata = TableMetadata(**{**vars(TABLE_METADATA), "reader": "smollm2-135m"})
    table = create_table(tmp_path / "table", rows)
    for reader in ("smollm2-135m", ""):
        table.table_metadata.check_model(replace(TABLE_METADATA, reader=reader))
    with pytest.raises(DataError, match="on the reader smollm2-135m, not on qwen. Use --reader smollm2-135m"):
        table.table_metadata.check_model(replace(TABLE_METADATA, reader="qwen"))


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("yeer >= 2000", "cannot filter by 'yeer >= 2000': .*yeer.* Columns: id, text, year."),
        ("year >=", "cannot filter by 'year >='"),
        ("year = 'x'", "cannot filter by"),
        ("year", "cannot filter by 'year': .*boolean"),
        (" ", "is not a filter"),
        ("year > 2000; AND id = 'row 1'", "is not a filter"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_refused_in_one_line(
    rows: ListedRows, query: np.ndarray, tmp_path: Path, where: str, told: str
) -> None:
    table = create_table(tmp_path / "table", rows)
    for call in (lambda: table.search(query, k=1, where=where), lambda: table.delete(where)):
        with pytest.raises(DataError, match=told) as error:
            call()
        assert "\n" not in str(error.value)
        assert "/root" not in str(error.value)
    assert table.rows == 300


def test_a_query_that_cannot_be_meant_is_refused(rows: ListedRows, query: np.ndarray, tmp_path: Path) -> None:
    table = create_table(tmp_path / "table", rows)
    for k in (0, -1):
        with pytest.raises(ConfigError, match=f"at least 1, got {k}"):
            table.search(query, k=k)
    with pytest.raises(DataError, match="query has 23 dimensions, the table has 24"):
        table.search(query[:-1], k=1)
    for broken in (query * np.nan, query * 0):
        with pytest.raises(DataError, match="vector of the query has length"):
            table.search(broken, k=1)


def test_a_table_without_rows_finds_none(rows: ListedRows, query: np.ndarray, tmp_path: Path) -> None:
    table = create_table(tmp_path / "table", rows)
    assert table.delete("true") == 300
    assert table.search(query, k=3) == []
    with pytest.raises(DataError, match="the table has 0 rows"):
        measure_search(table)


def test_a_disk_that_cannot_be_written_to_is_named(rows: ListedRows) -> None:
    with pytest.raises(DataError, match="cannot write /proc/promptembedder/table: "):
        create_table(Path("/proc/promptembedder/table"), rows)


def test_a_table_of_another_maker_is_refused(tmp_path: Path) -> None:
    import lancedb

    lancedb.connect(tmp_path / "theirs").create_table("vectors", [{"id": "a", "vector": [1.0, 0.0]}])
    with pytest.raises(DataError, match="has no record of its model"):
        VectorTable(tmp_path / "theirs")
    (tmp_path / "torn" / "vectors.lance").mkdir(parents=True)
    with pytest.raises(DataError, match="cannot be read"):
        VectorTable(tmp_path / "torn")
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(DataError, match="is not a table. Create one"):
        VectorTable(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_without_lancedb_the_line_that_installs_it_is_told(
    rows: ListedRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    for call in (lambda: VectorTable(tmp_path), lambda: create_table(tmp_path / "table", rows)):
        with pytest.raises(ImportError, match=r'lancedb is not installed. Run: pip install "promptembedder\[search\]"'):
            call()


def test_a_file_of_vectors_gives_the_rows_that_are_in_it(
    clustered: Clustered, write_vectors: Write, query: np.ndarray, tmp_path: Path
) -> None:
    vectors = clustered(250)
    columns = {"text": [f"text of row {row}" for row in range(250)], "year": years(250), "seen": [True, None] * 125}
    path = write_vectors(
        tmp_path / "vectors.parquet", {"embedding_0": vectors, "embedding_1": -vectors}, columns=columns
    )
    first = create_table(tmp_path / "first", open_embeddings(path, column="embedding_0"))
    assert first.metadata == {"year": "int", "seen": "bool"}
    assert first.table_metadata == TABLE_METADATA
    rows = ListedRows(vectors)
    assert seen(first.search(query, k=9)) == expected_hits(rows, query, 9, np.full(250, True))
    assert [hit.metadata["seen"] for hit in first.search(query, k=250, where="seen")] == [True] * 125
    second = create_table(tmp_path / "second", open_embeddings(path, instruction=" Another one, 1 ", keep=["year"]))
    assert second.table_metadata.instruction == "Another one, 1"
    assert second.metadata == {"year": "int"}
    assert seen(second.search(-query, k=9)) == seen(first.search(query, k=9))


def test_a_folder_of_shards_gives_what_one_file_gives(
    clustered: Clustered, write_vectors: Write, query: np.ndarray, tmp_path: Path
) -> None:
    vectors, ids = clustered(250), [f"row {row}" for row in range(250)]
    whole = write_vectors(tmp_path / "whole.parquet", vectors)
    lines = []
    for shard, start in ((1, 100), (0, 0), (2, 200)):  # shards end in any order
        rows = slice(start, start + 100)
        write_vectors(tmp_path / "job" / f"part-{shard}.parquet", vectors[rows], ids=ids[rows])
        lines.append(json.dumps({"shard": shard, "file": f"part-{shard}.parquet", "rows": len(ids[rows])}))
    (tmp_path / "job" / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    assert [one for some in open_embeddings(tmp_path / "job").ids() for one in some] == ids
    tables = [
        create_table(tmp_path / f"{path.name} table", open_embeddings(path)) for path in (whole, tmp_path / "job")
    ]
    assert seen(tables[0].search(query, k=250)) == seen(tables[1].search(query, k=250))
    assert tables[0].search(query, k=1)[0].text is None
    write_vectors(tmp_path / "job" / "part-2.parquet", vectors[200:], ids=ids[200:], said={"model_sha256": "cd" * 32})
    with pytest.raises(DataError, match="part-2.parquet is of another model"):
        open_embeddings(tmp_path / "job")
    (tmp_path / "job" / "part-2.parquet").unlink()
    with pytest.raises(DataError, match="part-2.parquet is listed .* but does not exist"):
        open_embeddings(tmp_path / "job")
    (tmp_path / "job" / "manifest.jsonl").write_text('{"shard": 0}\n')
    with pytest.raises(DataError, match="line 1: no shard and file"):
        open_embeddings(tmp_path / "job")
    (tmp_path / "job" / "manifest.jsonl").unlink()
    with pytest.raises(DataError, match="is not the output of an embedding job"):
        open_embeddings(tmp_path / "job")


def test_a_file_that_cannot_be_used_is_refused_by_name(
    clustered: Clustered, write_vectors: Write, tmp_path: Path
) -> None:
    vectors, path = clustered(4), tmp_path / "vectors.parquet"
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"said": {"model_sha256": None}}, {}, "has no record of the model .*promptembedder.model_sha256"),
        ({"said": {"columns": None}}, {}, "has no record of the model .*promptembedder.columns"),
        ({}, {"column": "embedding_3"}, r"no vectors of 'embedding_3': found 'embedding' \('Find"),
        ({}, {"instruction": "Sort"}, "no vectors of 'Sort'"),
        ({}, {"keep": ["year"]}, r"has no column 'year': found \['id', 'embedding'\]"),
        ({}, {"text_column": "body"}, "has no column 'body'"),
        ({"columns": {"text": [1, 2, 3, 4]}}, {}, "column 'text' contains int64, not strings"),
        ({"columns": {"tags": [["a"], [], [], []]}}, {}, "column 'tags' contains list.* Name the columns to store"),
    ]
    for written, asked, told in cases:
        write_vectors(path, vectors, **written)
        with pytest.raises(DataError, match=told):
            open_embeddings(path, **asked)
    write_vectors(path, {"embedding_0": vectors, "embedding_1": vectors})
    with pytest.raises(DataError, match="several vector columns: .* Choose one with --column or --instruction"):
        open_embeddings(path)
    write_vectors(path, vectors, columns={"_seen": [1, 2, 3, 4]})
    with pytest.raises(ConfigError, match="'_seen' is not a valid name of a metadata column"):
        create_table(tmp_path / "table", open_embeddings(path))
    write_vectors(path, vectors, ids=["a", "b", "c", "b"])
    with pytest.raises(DataError, match="the id 'b' is repeated"):
        create_table(tmp_path / "table", open_embeddings(path))
    write_vectors(path, vectors)
    table = pq.read_table(path)
    pq.write_table(table.append_column("id", table["id"]), path)
    with pytest.raises(DataError, match="has two columns 'id'. Rename one of them"):
        open_embeddings(path)
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="is not a readable Parquet file"):
        open_embeddings(path)
    with pytest.raises(DataError, match="does not exist"):
        open_embeddings(tmp_path / "missing.parquet")


def test_table_of_an_earlier_version_accepts_its_model_by_the_hash_of_the_manifest() -> None:
    """Earlier tables contain the manifest's hash as model_sha256."""
    current = replace(TABLE_METADATA, model_sha256="12" * 32, manifest_sha256=TABLE_METADATA.model_sha256)
    TABLE_METADATA.check_model(current)
    current.check_model(TABLE_METADATA)


def test_compiled_instructions_do_not_change_the_model_of_a_table() -> None:
    """The manifest's hash identified the model, so that compiling an instruction invalidated its tables."""
    before = replace(TABLE_METADATA, manifest_sha256="12" * 32)
    before.check_model(replace(before, manifest_sha256="34" * 32))
