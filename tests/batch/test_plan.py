"""Laws of the plan: the shards are the corpus, in order, and each of their rows is found again from its place."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from promptembedder.batch import shards as shards_module
from promptembedder.batch.shards import CorpusPlan, plan_corpus, read_shard_rows
from promptembedder.data import SourceFile, TextRow, find_sources, read_texts
from promptembedder.errors import DataError

TEXTS = ["one", 'with "quotes", a comma', "Grüße 🙂", "two\nlines", "x" * 300, "end"]


def planned(*paths: Path, shard_rows: int = 2, **columns: str | None) -> CorpusPlan:
    chosen = {"text_column": None, "id_column": None} | columns
    return plan_corpus([SourceFile(str(path)) for path in paths], shard_rows=shard_rows, **chosen)


def rows_of(plan: CorpusPlan) -> list[TextRow]:
    """Read shard by shard, the last one first: each has to be found from its place alone."""
    shards = [[row for _, row in read_shard_rows(task) if isinstance(row, TextRow)] for task in reversed(plan.tasks)]
    return [row for shard in reversed(shards) for row in shard]


def written(folder: Path, ending: str, texts: list[str]) -> Path:
    path = folder / f"corpus{ending}"
    if ending == ".parquet":
        table = pa.table({"id": [f"d{i}" for i in range(len(texts))], "text": texts})
        pq.write_table(table, path, row_group_size=4)
        return path
    if ending.startswith(".csv"):
        cells = [text.replace('"', '""') for text in texts]
        content = "id,text\n" + "".join(f'd{i},"{cell}"\r\n' for i, cell in enumerate(cells))
    elif ending == ".txt":
        content = "".join(text.replace("\n", " ") + "\n\n" for text in texts)
    else:
        lines = [json.dumps({"id": f"d{i}", "text": text}, ensure_ascii=False) for i, text in enumerate(texts)]
        content = "\ufeff" + "\n\n".join(lines)
    path.write_bytes(gzip.compress(content.encode()) if ending.endswith(".gz") else content.encode())
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".txt", ".parquet"])
@pytest.mark.parametrize("shard_rows", [1, 2, 4, 100])
def test_the_shards_of_a_file_are_its_rows(tmp_path: Path, ending: str, shard_rows: int) -> None:
    path = written(tmp_path, ending, TEXTS)
    plan = planned(path, shard_rows=shard_rows)
    assert rows_of(plan) == list(read_texts(path))
    assert [task.number for task in plan.tasks] == list(range(-(-len(TEXTS) // shard_rows)))
    assert plan.rows == len(TEXTS)


@given(
    texts=st.lists(st.text(min_size=1).filter(lambda text: text.strip() != ""), min_size=1, max_size=12),
    shard_rows=st.integers(1, 5),
    ending=st.sampled_from([".csv", ".jsonl"]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_texts_hold(tmp_path: Path, texts: list[str], shard_rows: int, ending: str) -> None:
    texts = [text.replace("\r", " ").encode("utf-8", "replace").decode() for text in texts]
    path = written(tmp_path, ending, texts)
    assert [row.text for row in rows_of(planned(path, shard_rows=shard_rows))] == texts


def test_files_follow_each_other_and_rows_without_ids_are_named_by_file_and_number(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_text("one\ntwo\nthree\n")
    plan = plan_corpus(find_sources([tmp_path]), shard_rows=2, text_column=None, id_column=None)
    assert [row.id for row in rows_of(plan)] == [f"{name}:{i}" for name in ("a.txt", "b.txt") for i in range(3)]
    assert [task.rows for task in plan.tasks] == [2, 1, 2, 1]
    assert [row.id for row in rows_of(planned(tmp_path / "a.txt"))] == ["0", "1", "2"]


def test_rows_that_cannot_be_used_keep_their_number_and_say_why(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('broken\n{"text": "one"}\n\n[1]\n{"text": 3}\n{"body": "no"}\n{"text": "last"}\n')
    plan = planned(path)
    assert plan.rows == 6
    found = [(place.start.row, row) for task in plan.tasks for place, row in read_shard_rows(task)]
    assert [number for number, _ in found] == list(range(6))
    assert [row for _, row in found if isinstance(row, TextRow)] == [TextRow("1", "one"), TextRow("5", "last")]
    reasons = " | ".join(str(row) for _, row in found if isinstance(row, DataError))
    for words in ("line 1: broken JSON", "line 4: a row must be a JSON object", "holds 3 (int)", "no column 'text'"):
        assert words in reasons


def test_an_id_that_comes_twice_is_named_with_both_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": f"d{i}", "text": "x"} for i in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, [{"id": "other", "text": "x"}, rows[17]])))
    monkeypatch.setattr(shards_module, "_HASHES_PER_PASS", 8)  # so that they are looked at in several parts
    with pytest.raises(DataError, match=r"b\.jsonl, row 2: the id 'd17' is repeated, first in .*a\.jsonl, row 18\."):
        planned(tmp_path / "a.jsonl", tmp_path / "b.jsonl")


def test_two_ids_with_the_same_hash_are_two_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, ".jsonl", TEXTS)
    monkeypatch.setattr(shards_module, "_id_hash", lambda row_id: 7)
    assert len(rows_of(planned(path))) == len(TEXTS)


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ('{"words": "x"}\n', {}, "row 1 has no text column: found 'words'"),
        ('{"text": "x"}\n', {"text_column": "body"}, "has no column 'body'"),
        ('{"text": "x"}\n', {"id_column": "key"}, "has no column 'key'"),
        ("broken\n", {}, "broken JSON"),
        ("\n", {}, "holds no rows"),
    ],
)
def test_a_corpus_without_a_usable_row_is_refused(
    tmp_path: Path, content: str, columns: dict[str, str], message: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        planned(path, **columns)
