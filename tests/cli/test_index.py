"""Laws of `promptembedder index`, and of `search` in the table that it made."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import Result

from promptembedder import PromptEmbedder

pytestmark = pytest.mark.slow

COMPILED = "Find texts on the same topic"
OTHER = "Find the text that answers the question"  # saved with the model, for queries
DEFAULT = "Represent the text for retrieval"

Run = Callable[..., Result]
Refused = Callable[..., str]


@pytest.fixture
def dated(tmp_path: Path) -> Path:
    """A corpus with columns to filter by."""
    path = tmp_path / "dated.jsonl"
    rows = [
        {
            "id": f"doc-{row}",
            "text": f"text {row} on {'rivers' if row % 2 else 'stones'}",
            "year": 1990 + row,
            "lang": "en",
        }
        for row in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def vectors(run: Run, saved_model: Path, corpus: Path, tmp_path: Path) -> Path:
    """What `embed` makes of the corpus under two instructions."""
    output = tmp_path / "vectors.parquet"
    words = ("--instruction", COMPILED, "--instruction", OTHER, "-o", output)
    assert run("embed", saved_model, corpus, *words).exit_code == 0
    return output


def said(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    content: dict[str, Any] = json.loads(result.stdout)  # nothing else is on stdout
    return content


def test_long_work_begins_with_an_estimate(
    run: Run, saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`index` printed neither an estimate nor the number of rows, and ran for hours."""
    monkeypatch.setattr("promptembedder.cli.progress._SHORT_WORK_S", -1.0)  # all work is long
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"text {row}\n" for row in range(200)))
    result = run("index", texts, "--table", tmp_path / "table", "--model", saved_model)
    assert result.exit_code == 0
    assert "rows/s on this machine (64 rows measured)" in result.stderr


def test_a_table_of_texts_finds_what_search_in_the_file_finds(
    run: Run, saved_model: Path, corpus: Path, tmp_path: Path
) -> None:
    table = tmp_path / "table"
    made = said(run("index", corpus, "--table", table, "--model", saved_model, "--json"))
    assert (made["rows"], made["added"], made["deleted"], made["dim"]) == (7, 7, 0, 40)
    assert (made["model"], made["instruction"], made["reader"]) == (str(saved_model), DEFAULT, "random:tiny-qwen3")
    assert (made["index"], made["verify"], made["metadata"]) == (None, None, {})
    for words in ((), ("--instruction", COMPILED)):
        asked = ("search", saved_model, "where does it end?", "-k", "4", *words, "--json")
        in_table, in_file = said(run(*asked, "--table", table)), said(run(*asked, "--corpus", corpus))
        assert (in_table["instruction"], in_table["documents"]) == (in_file["instruction"], in_file["documents"])
        assert [(hit["rank"], hit["id"], hit["text"]) for hit in in_table["hits"]] == [
            (hit["rank"], hit["id"], hit["text"]) for hit in in_file["hits"]
        ]
        scores = [[hit["score"] for hit in found["hits"]] for found in (in_table, in_file)]
        np.testing.assert_allclose(*scores, atol=1e-5)


def test_a_table_of_vectors_is_the_table_of_their_texts(
    run: Run, saved_model: Path, corpus: Path, vectors: Path, tmp_path: Path
) -> None:
    ready, embedded = tmp_path / "ready", tmp_path / "embedded"
    made = said(run("index", vectors, "--table", ready, "--instruction", COMPILED, "--json"))
    assert (made["rows"], made["instruction"], made["reader"]) == (7, COMPILED, "random:tiny-qwen3")
    assert pq.read_schema(vectors).metadata[b"promptembedder.model_sha256"].decode() == made["model_sha256"]
    run("index", corpus, "--table", embedded, "--model", saved_model, "--instruction", COMPILED)
    asked = ("search", saved_model, "short", "-k", "7", "--json", "--table")
    found, expected = (said(run(*asked, table))["hits"] for table in (ready, embedded))
    assert [(hit["id"], round(hit["score"], 4)) for hit in found] == [
        (hit["id"], round(hit["score"], 4)) for hit in expected
    ]
    assert found[0]["text"] is None
    assert found[0]["id"] in run("search", saved_model, "short", "--table", ready).stdout
    by_column = said(run("index", vectors, "--table", tmp_path / "other", "--column", "embedding_1", "--json"))
    assert by_column["instruction"] == OTHER


def test_rows_are_added_filtered_and_deleted(run: Run, saved_model: Path, dated: Path, tmp_path: Path) -> None:
    table = tmp_path / "table"
    words = ("--metadata", "year:int", "--metadata", "lang")
    made = said(run("index", dated, "--table", table, "--model", saved_model, *words, "--json"))
    assert made["metadata"] == {"year": "int", "lang": "str"}
    asked = ("search", saved_model, "stones", "--table", table, "-k", "20", "--json")
    hits = said(run(*asked, "--where", "year >= 1995 AND lang = 'en'"))["hits"]
    assert sorted(hit["id"] for hit in hits) == sorted(f"doc-{row}" for row in range(5, 12))
    assert {hit["id"]: hit["metadata"] for hit in hits}["doc-7"] == {"year": 1997, "lang": "en"}
    more = tmp_path / "more.csv"
    more.write_text("id,text,year,lang\nnew,über Steine,2001,de\nblank,ein Fluss,,de\n", encoding="utf-8")
    added = said(run("index", more, "--table", table, "--model", saved_model, "--add", "--json"))
    assert (added["rows"], added["added"], added["instruction"]) == (14, 2, DEFAULT)
    hits = said(run(*asked, "--where", "lang = 'de'"))["hits"]
    empty = run(*asked, "--where", "year > 9999")
    assert (empty.exit_code, said(empty)["hits"]) == (0, [])
    assert "no row fits the filter" in empty.stderr  # an empty table looked like a failure
    assert {hit["id"]: hit["metadata"]["year"] for hit in hits} == {"new": 2001, "blank": None}
    left = said(run("index", "--table", table, "--delete", "year < 2000", "--json"))
    assert (left["rows"], left["deleted"], left["added"]) == (4, 10, 0)
    assert {hit["id"] for hit in said(run(*asked))["hits"]} == {"doc-10", "doc-11", "new", "blank"}


def test_verify_reports_recall_and_times(run: Run, saved_model: Path, dated: Path, tmp_path: Path) -> None:
    table = tmp_path / "table"
    words = ("--table", table, "--model", saved_model, "--exact-below", "10", "--verify", "--json")
    made = said(run("index", dated, *words))
    assert made["index"] == "IVF_HNSW_SQ"
    assert (made["verify"]["queries"], made["verify"]["k"], made["verify"]["recall"]) == (12, 10, 1.0)
    result = run("index", "--table", table, "--verify")
    assert "recall@10 1.0000 against exact search, over 12 of its rows; p50" in result.stdout
    assert "approximate index: IVF_HNSW_SQ" in result.stdout
    assert result.stderr == ""


def test_an_instruction_is_told_as_it_is(run: Run, saved_model: Path, corpus: Path, tmp_path: Path) -> None:
    result = run(
        "index", corpus, "--table", tmp_path / "table", "--model", saved_model, "--instruction", "[b]sort[/b] them"
    )
    assert "instruction: [b]sort[/b] them" in result.stdout


def test_a_query_with_another_model_is_refused_before_it_is_loaded(
    run: Run, refused: Refused, saved_model: Path, corpus: Path, tmp_path: Path, loaded: list[PromptEmbedder]
) -> None:
    table, other = tmp_path / "table", tmp_path / "other"
    run("index", corpus, "--table", table, "--model", saved_model)
    shutil.copytree(saved_model, other)
    content = json.loads((other / "promptembedder.json").read_text())
    content["config"]["max_seq_length"] = 99
    del content["sha256"]  # format 2 has none, and may be edited
    (other / "promptembedder.json").write_text(json.dumps({**content, "format": 2}))
    loaded.clear()
    for words in (
        ("search", other, "x", "--table", table),
        ("index", corpus, "--table", table, "--model", other, "--add"),
    ):
        told = refused(*words)
        assert f"vectors of the model {saved_model} (sha256 " in told
        assert f"not of {other} (sha256 " in told
    assert loaded == []
    moved = tmp_path / "moved"
    shutil.copytree(saved_model, moved)
    assert run("search", moved, "x", "--table", table).exit_code == 0  # the same model in another place


def test_options_that_cannot_be_meant_are_one_line_and_exit_code_2_before_a_model_is_loaded(
    run: Run,
    refused: Refused,
    saved_model: Path,
    dated: Path,
    vectors: Path,
    tmp_path: Path,
    loaded: list[PromptEmbedder],
) -> None:
    table = tmp_path / "table"
    run("index", dated, "--table", table, "--model", saved_model, "--metadata", "year:int")
    loaded.clear()
    new, texts = ("--table", tmp_path / "new"), ("--model", saved_model)
    cases: list[tuple[tuple[object, ...], str]] = [
        (("--table", table), "nothing to do"),
        (("--table", table, "--add"), "no rows to add"),
        ((dated, "--table", table, "--delete", "true"), "does not accept a SOURCE"),
        ((vectors, "--table", table, "--add", "--overwrite"), "Give one of the two"),
        ((vectors, "--table", table, "--add", "--exact-below", "5"), "applies only to a new table"),
        ((dated, "--table", table, *texts), "is a table already"),
        ((dated, "--table", tmp_path, *texts, "--overwrite"), "contains files that are not a table"),
        ((dated, *new), "is not a readable Parquet file"),
        ((vectors, *new), "several vector columns"),
        ((vectors, *new, *texts), "already contains vectors. Omit --model"),
        ((vectors, *new, "--id-column", "key"), "--id-column needs --model"),
        ((vectors, *new, "--reader", "x"), "--reader needs --model"),
        ((dated, *new, *texts, "--column", "embedding"), "--column selects existing vectors"),
        ((dated, *new, "--model", tmp_path / "nowhere"), "is not a saved model"),
        ((tmp_path / "missing.txt", *new, *texts), "does not exist"),
        ((dated, *new, *texts, "--metadata", "author"), "row 1 has no column 'author' for the metadata: found id"),
        ((dated, *new, *texts, "--metadata", "year"), "contains '1990' (int), which is not of type str"),
        ((dated, *new, *texts, "--metadata", "lang:int"), "contains 'en' (str), which is not of type int"),
        ((dated, *new, *texts, "--metadata", "year:date"), "has the unknown type 'date'"),
        ((dated, *new, *texts, "--metadata", "text"), "'text' is not a valid name of a metadata column"),
        ((dated, *new, *texts, "--text-column", "words"), "no column 'words'"),
        ((dated, *new, *texts, "--id-column", "lang"), "the id 'en' is repeated"),
        ((dated, "--table", table, *texts, "--add"), "the id 'doc-0' is in the table already"),
        ((dated, "--table", table, *texts, "--add", "--instruction", "Sort"), "the rows have the instruction 'Sort'"),
        ((dated, "--table", table, *texts, "--add", "--metadata", "lang"), "metadata lang:str, the table has year:int"),
        (("--table", table, "--delete", "yeer < 2000"), "cannot filter by 'yeer < 2000'"),
        (("--table", tmp_path / "nowhere", "--verify"), "is not a table"),
    ]
    for words, told in cases:
        assert told in refused("index", *words)
    asked = ("search", saved_model, "x")
    for words, told in (
        ((), "either --corpus FILE or --table DIR"),
        (("--corpus", dated, "--table", table), "either --corpus FILE or --table DIR"),
        (("--corpus", dated, "--where", "year > 1"), "--where needs --table"),
        (("--table", table, "--document-instruction", "x"), "a table has a fixed instruction"),
        (("--table", table, "--where", "yeer > 2000"), "Columns: id, text, year."),
        (("--table", tmp_path / "nowhere"), "is not a table"),
    ):
        assert told in refused(*asked, *words)
    assert "query is blank" in refused("search", saved_model, " ", "--table", table)
    assert loaded == []
    assert not (tmp_path / "new").exists()
    assert said(run("index", "--table", table, "--delete", "false", "--json"))["rows"] == 12


def test_without_lancedb_the_line_that_installs_it_is_told(
    refused: Refused, saved_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    line = 'lancedb is not installed. Run: pip install "promptembedder[search]"'
    assert line in refused("index", corpus, "--table", tmp_path / "table", "--model", saved_model)
    assert line in refused("search", saved_model, "x", "--table", tmp_path / "table")


def test_the_prompter_stays_at_home_if_the_instruction_is_compiled(
    run: Run, saved_model: Path, corpus: Path, tmp_path: Path, loaded: list[PromptEmbedder]
) -> None:
    table = tmp_path / "table"
    run("index", corpus, "--table", table, "--model", saved_model, "--instruction", COMPILED)
    run("search", saved_model, "x", "--table", table, "--instruction", COMPILED)
    assert [model.encoder.prompter for model in loaded] == [None, None]


def test_a_file_of_options_does_what_the_options_do(run: Run, saved_model: Path, dated: Path, tmp_path: Path) -> None:
    config, table = tmp_path / "index.yaml", tmp_path / "table"
    content = {"source": str(dated), "table": str(table), "model": str(saved_model), "metadata": ["year:int", "lang"]}
    config.write_text(json.dumps(content))
    assert said(run("index", "--config", config, "--json"))["metadata"] == {"year": "int", "lang": "str"}
    config.write_text("tables: x\n")
    result = run("index", dated, "--table", table, "--config", config)
    assert (result.exit_code, "tables" in result.stderr) == (2, True)


def test_shards_of_a_corpus_make_the_table_that_the_corpus_makes(
    run: Run, saved_model: Path, dated: Path, tmp_path: Path
) -> None:
    shards = ("-o", tmp_path / "shards", "--shard-rows", "5", "--keep", "text", "--keep", "year:int")
    assert run("embed", saved_model, dated, *shards).exit_code == 0
    made = said(run("index", tmp_path / "shards", "--table", tmp_path / "a", "--json"))
    said(run("index", dated, "--table", tmp_path / "b", "--model", saved_model, "--metadata", "year:int", "--json"))
    assert (made["rows"], made["metadata"], made["reader"]) == (12, {"year": "int"}, "random:tiny-qwen3")
    found = []
    for table in ("a", "b"):
        asked = ("search", saved_model, "stones", "--table", tmp_path / table, "--where", "year > 1995")
        hits = said(run(*asked, "--json"))["hits"]
        found.append([(hit["id"], hit["text"], hit["metadata"]) for hit in hits])
    assert found[0] == found[1]
    assert found[0][0][1].startswith("text")
