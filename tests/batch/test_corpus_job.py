"""Laws of the sharded job: whatever the engine, and however often it was cut off, it is `encode` of each text."""

import dataclasses
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from promptembedder import PromptEmbedder
from promptembedder.batch import (
    CorpusProgress,
    CorpusReport,
    EmbedConfig,
    PassthroughColumn,
    ShardFolder,
    ShardRecord,
    embed_corpus,
    embed_files,
)
from promptembedder.batch.shard_worker import ShardWorker
from promptembedder.cli.app import app
from promptembedder.errors import ConfigError, DataError, ModelFormatError
from promptembedder.model import model_identity
from promptembedder.storage import MANIFEST_NAME, file_sha256, lock_directory, read_manifest, write_manifest

pytestmark = pytest.mark.slow

TOPIC, QUESTION = "Find texts on the same topic", "Find the text that answers the question"
WORDS = ("red", "green", "blue", "cold", "warm", "house", "river", "car", "stone", "song")


def written_corpus(path: Path, rows: int, *, first: int = 0) -> Path:
    lines = [
        {"id": f"d{i}", "text": " ".join(WORDS[(i * k) % 10] for k in range(1, 2 + i % 5)), "year": 1900 + i}
        for i in range(first, first + rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "corpus").mkdir()
    written_corpus(tmp_path / "corpus" / "a.jsonl", 25)
    written_corpus(tmp_path / "corpus" / "b.jsonl", 13, first=25)
    return tmp_path / "corpus"


@pytest.fixture
def done(saved_model: Path, corpus: Path, tmp_path: Path) -> Callable[..., CorpusReport]:
    def run(output: str = "out", **config: Any) -> CorpusReport:
        chosen = EmbedConfig(**{"instructions": (TOPIC,), "shard_rows": 4, **config})
        return embed_corpus(saved_model, [corpus], tmp_path / output, config=chosen)

    return run


def records_in(folder: Path) -> list[ShardRecord]:
    return [record for _, record in sorted(ShardFolder(folder).finished().items())]


def table_of(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(folder / record.file) for record in records_in(folder)])


def vectors_in(table: pa.Table, name: str) -> np.ndarray:
    return np.array(table[name].to_pylist(), dtype=np.float32)


def content_of(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in folder.iterdir()}


def test_shards_equal_encode_of_each_text_in_order(
    done: Callable[..., CorpusReport], saved_model: Path, corpus: Path, tmp_path: Path
) -> None:
    (corpus / "a.jsonl").write_text((corpus / "a.jsonl").read_text().replace("}", ', "lang": "en"}', 1))
    report = done(
        instructions=(TOPIC, QUESTION), passthrough=(PassthroughColumn("year", "int"), PassthroughColumn("lang"))
    )
    lines = [json.loads(line) for path in sorted(corpus.iterdir()) for line in path.read_text().splitlines()]
    table = table_of(tmp_path / "out")
    assert table["id"].to_pylist() == [line["id"] for line in lines]
    assert table["year"].to_pylist() == [line["year"] for line in lines]
    assert table["lang"].to_pylist() == ["en"] + [None] * (len(lines) - 1)
    model = PromptEmbedder.from_pretrained(saved_model, device="cpu")
    for name, instruction in report.columns.items():
        alone = [model.encode([line["text"]], prompt=instruction)[0] for line in lines]
        np.testing.assert_allclose(vectors_in(table, name), np.stack(alone), atol=1e-5)
    assert (report.rows, report.rejected, report.shards, report.skipped_shards) == (38, 0, 7 + 4, 0)
    assert (report.embedded_rows, report.embedded_tokens) == (38, report.tokens)
    for record in records_in(tmp_path / "out"):
        metadata = pq.read_schema(tmp_path / "out" / record.file).metadata
        assert metadata[b"promptembedder.model_sha256"].decode() == record.model_sha256
        assert record.model_sha256 == model_identity(saved_model).sha256
        assert record.source_sha256 == file_sha256(Path(record.source))


def test_shards_equal_the_single_file_output(
    done: Callable[..., CorpusReport], saved_model: Path, corpus: Path, tmp_path: Path
) -> None:
    done(shard_rows=100)
    model = PromptEmbedder.from_pretrained(saved_model, device="cpu")
    embed_files(model, [corpus / "a.jsonl"], tmp_path / "a.parquet", config=EmbedConfig(instructions=(TOPIC,)))
    one = pq.read_table(tmp_path / "a.parquet")
    np.testing.assert_array_equal(
        vectors_in(one, "embedding"), vectors_in(table_of(tmp_path / "out"), "embedding")[:25]
    )


def test_rerun_embeds_only_missing_or_damaged_shards(
    done: Callable[..., CorpusReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done()
    whole = content_of(tmp_path / "out")
    loads: list[object] = []
    monkeypatch.setattr(ShardWorker, "__init__", lambda self, config: loads.append(config))
    again = done(max_batch_tokens=100)  # how much is read at once may change
    assert (again.skipped_shards, again.embedded_rows, loads) == (11, 0, [])
    monkeypatch.undo()
    records = records_in(tmp_path / "out")
    (tmp_path / "out" / records[2].file).write_bytes(b"damaged")
    (tmp_path / "out" / records[5].file).unlink()
    (tmp_path / "out" / ".part-00003.left-behind").write_bytes(b"x")
    manifest = tmp_path / "out" / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])  # as a kill leaves it
    assert done().skipped_shards == 11 - 3
    assert content_of(tmp_path / "out") == whole


@pytest.mark.integration
def test_killed_job_resumes_to_identical_shards(
    done: Callable[..., CorpusReport], saved_model: Path, corpus: Path, tmp_path: Path
) -> None:
    done("whole", shard_rows=2)
    manifest = tmp_path / "out" / "manifest.jsonl"
    command = [sys.executable, "-m", "promptembedder", "embed", saved_model, corpus, "-o", tmp_path / "out"]
    command += ["--instruction", TOPIC, "--shard-rows", "2"]
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        while process.poll() is None and _line_count(manifest) < 3:
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert _line_count(manifest) >= 3
    finished = _line_count(manifest)
    assert finished < 20  # it was cut off indeed
    assert done(shard_rows=2).skipped_shards == finished
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")


def _line_count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.minutes
def test_ray_writes_the_same_bytes_and_a_killed_actor_loses_nothing(
    done: Callable[..., CorpusReport], saved_model: Path, corpus: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    psutil = pytest.importorskip("psutil", reason="psutil is not installed")
    done("local", shard_rows=1)
    command = [sys.executable, "-m", "promptembedder", "embed", saved_model, corpus, "-o", tmp_path / "ray"]
    command += ["--instruction", TOPIC, "--shard-rows", "1", "--engine", "ray", "--workers", "2", "--json"]
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    actors: list[Any] = []
    begun = time.monotonic()
    try:
        while process.poll() is None and not actors and time.monotonic() < begun + 120:
            time.sleep(0.01)
            children = psutil.Process(process.pid).children(recursive=True)
            actors = [each for each in children if "MapWorker" in _title(each)]
        actors[0].kill()
        said, complaints = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, complaints
    assert json.loads(said.splitlines()[-1])["rows"] == 38, said
    assert content_of(tmp_path / "ray").keys() == content_of(tmp_path / "local").keys()
    assert {record.sha256 for record in records_in(tmp_path / "ray")} == {
        record.sha256 for record in records_in(tmp_path / "local")
    }


def _title(process: Any) -> str:
    try:
        return " ".join(process.cmdline())
    except Exception:  # it has ended
        return ""


def test_invalid_rows_are_counted_and_listed_with_their_reason(
    done: Callable[..., CorpusReport], corpus: Path, tmp_path: Path
) -> None:
    with (corpus / "b.jsonl").open("a") as file:
        file.write('{"id": "x", "text": 7}\nbroken\n{"id": "y", "text": "red", "year": "old"}\n')
    report = done(passthrough=(PassthroughColumn("year", "int"),))
    assert (report.rows, report.rejected) == (38, 3)
    rejects = [record.rejects for record in records_in(tmp_path / "out") if record.rejects]
    told = [json.loads(line) for name in rejects for line in (tmp_path / "out" / name).read_text().splitlines()]
    assert [line["row"] for line in told] == [14, 15, 16]  # from 1, as in the reasons
    for line, words in zip(told, ("holds 7 (int)", "broken JSON", "'year' contains 'old' (str), not int"), strict=True):
        assert line["source"].endswith("b.jsonl")
        assert words in line["reason"]


def test_progress_counts_every_row_once(saved_model: Path, corpus: Path, tmp_path: Path) -> None:
    seen: list[CorpusProgress] = []
    config = EmbedConfig(shard_rows=10, max_batch_tokens=80)
    embed_corpus(saved_model, [corpus], tmp_path / "out", config=config, on_progress=seen.append)
    rows = [at.rows for at in seen]
    assert rows == sorted(rows)
    assert {0, 10, 20, 25, 35, 38} < set(rows)  # within a shard, too
    assert (rows[0], rows[-1]) == (0, 38)
    assert {at.total_rows for at in seen} == {38}
    assert seen[-1].tokens > 38


def test_another_job_in_the_folder_is_refused_with_the_reason_and_left_as_it_is(
    done: Callable[..., CorpusReport], corpus: Path, tmp_path: Path
) -> None:
    done()
    whole = content_of(tmp_path / "out")
    for changes, words in (
        ({"instructions": (QUESTION,)}, "columns was"),
        ({"shard_rows": 5}, "shard_rows was 4, now it is 5"),
        ({"passthrough": (PassthroughColumn("year", "int"),)}, "kept was"),
    ):
        with pytest.raises(DataError, match=f"contains shards of another job: {words}.*or pass --overwrite"):
            done(**changes)
    text = (corpus / "b.jsonl").read_text()
    (corpus / "b.jsonl").write_text(text.replace("red", "blue"))
    with pytest.raises(DataError, match=r"b\.jsonl has changed\. Name another output, or pass --overwrite"):
        done()
    written_corpus(corpus / "c.jsonl", 1, first=90)
    (corpus / "b.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"c\.jsonl is in only one of the jobs"):
        done()
    assert content_of(tmp_path / "out") == whole
    assert done(overwrite=True).skipped_shards == 0
    assert table_of(tmp_path / "out").num_rows == 39


def test_folder_with_other_files_is_refused_and_unchanged(done: Callable[..., CorpusReport], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(DataError, match=r"contains other files, the first 'thesis\.txt'"):
            done(overwrite=overwrite)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_a_second_process_in_the_folder_is_refused(done: Callable[..., CorpusReport], tmp_path: Path) -> None:
    with lock_directory(tmp_path / "out"), pytest.raises(ConfigError, match=f"is in use by process {os.getpid()}"):
        done()


def test_full_disk_exits_with_one_line_and_the_job_resumes(
    done: Callable[..., CorpusReport], saved_model: Path, corpus: Path, tmp_path: Path
) -> None:
    """A limit on the size of files stands for it: the write fails in the middle."""
    done("whole", passthrough=(PassthroughColumn("year", "int"),))
    largest = max(path.stat().st_size for path in (tmp_path / "whole").glob("part-*"))
    command = ["embed", saved_model, corpus, "-o", tmp_path / "out"]
    command += ["--instruction", TOPIC, "--shard-rows", "4", "--keep", "year:int"]
    with _files_limited_to(largest - 1):
        failed = CliRunner().invoke(app, [str(word) for word in command])
    assert failed.exit_code == 2
    assert "error: cannot write" in failed.stderr and "Free the disk and run the command again." in failed.stderr
    assert done(passthrough=(PassthroughColumn("year", "int"),)).rows == 38
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")


@contextmanager
def _files_limited_to(limit: int) -> Iterator[None]:
    """A write beyond the limit fails: Python ignores the signal that comes with it."""
    resource = pytest.importorskip("resource", reason="Windows has no limits on files")
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


def test_a_worker_that_finds_another_model_says_where(
    done: Callable[..., CorpusReport], saved_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    shutil.copytree(saved_model, model)
    before = ShardWorker.__init__

    def elsewhere(self: ShardWorker, config: Any) -> None:
        manifest = read_manifest(model)
        write_manifest(model, dataclasses.replace(manifest, config={**manifest.config, "max_seq_length": 9}))
        before(self, config)

    monkeypatch.setattr(ShardWorker, "__init__", elsewhere)
    with pytest.raises(ModelFormatError, match=r"a worker on .* finds another model in .*model\. Copy the model to"):
        embed_corpus(model, [corpus], tmp_path / "out", config=EmbedConfig())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"workers": 2}, "the local engine has one worker, got workers 2"),
        ({"engine": "spark"}, "engine must be local or ray, got 'spark'"),
        ({"shard_rows": 0}, "shard_rows must be at least 1, got 0"),
        ({"instructions": ("a", " a")}, "the instruction 'a' is given twice"),
        ({"instructions": (" ",)}, "an instruction is blank"),
        ({"passthrough": (PassthroughColumn("a"), PassthroughColumn("a", "int"))}, "the column 'a' is given twice"),
    ],
)
def test_invalid_config_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EmbedConfig(**config)


def test_a_pipe_is_refused(done: Callable[..., CorpusReport], saved_model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DataError, match="can be read only once"):
        embed_corpus(saved_model, [tmp_path / "pipe.txt"], tmp_path / "out", config=EmbedConfig())


@pytest.mark.parametrize(
    ("words", "row", "value"),
    [
        ("a", {"a": "x\ud800"}, "x\ufffd"),
        ("a:int", {"a": "12"}, 12),
        ("a:int", {"a": -3}, -3),
        ("a:float", {"a": 2}, 2.0),
        ("a:float", {"a": "1e3"}, 1000.0),
        ("a:bool", {"a": "False"}, False),
        ("a:bool", {"a": True}, True),
        ("a:b:int", {"a:b": 1}, 1),
        ("a:int", {}, None),
    ],
)
def test_a_kept_value_is_of_its_columns_type(words: str, row: dict[str, Any], value: object) -> None:
    kept = PassthroughColumn.parse(words).value(row, "row 1")
    assert (kept, type(kept)) == (value, type(value))


@pytest.mark.parametrize(
    ("words", "row"),
    [("a", {"a": 1}), ("a:int", {"a": True}), ("a:int", {"a": 1.5}), ("a:int", {"a": 1 << 63}), ("a:bool", {"a": 2})],
)
def test_a_kept_value_of_another_type_is_refused(words: str, row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="row 1: column 'a' contains"):
        PassthroughColumn.parse(words).value(row, "row 1")


def test_a_kept_column_that_makes_no_sense_is_refused() -> None:
    for words, message in (("a:date", "type 'date'. Use one of"), (":int", "no name"), ("id", "always written")):
        with pytest.raises(ConfigError, match=message):
            PassthroughColumn.parse(words)


def test_passthrough_column_that_no_row_has_is_refused_before_the_model_is_loaded(
    done: Callable[..., CorpusReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job ran to its end and wrote a column of nulls."""
    monkeypatch.setattr(ShardWorker, "__init__", lambda self, config: pytest.fail("a model was loaded"))
    with pytest.raises(DataError, match="has the column 'yeer': found 'id', 'text', 'year'. Name one of these"):
        done(passthrough=(PassthroughColumn("year", "int"), PassthroughColumn("yeer", "int")))
    assert not list((tmp_path / "out").glob("part-*"))


def test_compiling_another_instruction_keeps_finished_shards(saved_model: Path, corpus: Path, tmp_path: Path) -> None:
    """The manifest's hash identified the model, so that a new compiled instruction invalidated every shard."""
    model, config = tmp_path / "model", EmbedConfig(instructions=(TOPIC,), shard_rows=4)
    shutil.copytree(saved_model, model)
    first = embed_corpus(model, [corpus], tmp_path / "out", config=config)
    embedder = PromptEmbedder.from_pretrained(model, device="cpu")
    embedder.compile_instructions(["Find texts in the same language"])
    embedder.save(str(tmp_path / "compiled"))
    assert file_sha256(tmp_path / "compiled" / MANIFEST_NAME) != file_sha256(model / MANIFEST_NAME)
    assert model_identity(tmp_path / "compiled").sha256 == model_identity(model).sha256
    shutil.rmtree(model)
    (tmp_path / "compiled").rename(model)
    again = embed_corpus(model, [corpus], tmp_path / "out", config=config)
    assert (again.skipped_shards, again.embedded_rows) == (first.shards, 0)


def test_job_of_an_earlier_version_is_resumed_under_the_hash_of_the_manifest(
    done: Callable[..., CorpusReport], saved_model: Path, tmp_path: Path
) -> None:
    done()
    old, path = file_sha256(saved_model / MANIFEST_NAME), tmp_path / "out" / "job.json"
    path.write_text(path.read_text().replace(model_identity(saved_model).sha256, old))
    (tmp_path / "out" / records_in(tmp_path / "out")[3].file).unlink()
    assert done().skipped_shards == 10
    assert records_in(tmp_path / "out")[3].model_sha256 == old


def test_nothing_is_logged(done: Callable[..., CorpusReport], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        done()
    assert caplog.text == ""
