"""Laws of the embedding job: whatever the files, chunks and batches, it is `encode` of each text alone."""

import csv
import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from promptembedder import BackboneConfig, ModelConfig, PromptEmbedder, PrompterConfig
from promptembedder.batch import EmbedConfig, EmbedReport, check_files, embed_files
from promptembedder.batch import job as job_module
from promptembedder.data import TextRow
from promptembedder.errors import ConfigError, DataError
from promptembedder.model import ModelIdentity

pytestmark = pytest.mark.slow

TEXTS = ["a rather long text about rivers and their mouths", "short", "", "Grüße 🙂", "two\nlines", "short", "end"]
TEXTS_OF_ANY_FORMAT = ["a rather long text about rivers, and their mouths", "short", 'with "quotes"', "Grüße 🙂", "end"]
TOPIC, QUESTION = "Find texts on the same topic", "Find the text that answers the question"

CONFIG = ModelConfig(
    prompter=PrompterConfig(backbone=BackboneConfig(source="random:tiny-llama", dtype="float32")),
    reader=BackboneConfig(source="random:tiny-qwen3", dtype="float32"),
)


@pytest.fixture(scope="module")
def model() -> PromptEmbedder:
    torch.set_num_threads(1)  # on tensors this small, threads spend their time waiting for each other
    return PromptEmbedder.create(config=CONFIG, device="cpu")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return written_jsonl(tmp_path / "corpus.jsonl", TEXTS)


def written_jsonl(path: Path, texts: list[str], *, ids: list[str] | None = None) -> Path:
    names = [f"doc-{row}" for row in range(len(texts))] if ids is None else ids
    rows = [{"id": name, "text": text} for name, text in zip(names, texts, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def column(path: Path, name: str) -> np.ndarray:
    return np.array(pq.read_table(path)[name].to_pylist(), dtype=np.float32)


def one_by_one(model: PromptEmbedder, texts: list[str], instruction: str | None) -> np.ndarray:
    return np.stack([model.encode([text], prompt=instruction, batch_size=1)[0] for text in texts])


@pytest.mark.parametrize(("max_batch_tokens", "chunk_rows"), [(8192, 2048), (400, 3), (300, 2), (250, 1)])
def test_the_file_holds_what_encode_says_of_each_text_alone_in_order(
    model: PromptEmbedder, corpus: Path, tmp_path: Path, max_batch_tokens: int, chunk_rows: int
) -> None:
    output = tmp_path / "new" / "out.parquet"
    config = EmbedConfig(instructions=(TOPIC,), max_batch_tokens=max_batch_tokens, chunk_rows=chunk_rows)
    report = embed_files(model, [corpus], output, config=config)
    np.testing.assert_allclose(column(output, "embedding"), one_by_one(model, TEXTS, TOPIC), atol=1e-5)
    assert pq.read_table(output)["id"].to_pylist() == [f"doc-{row}" for row in range(len(TEXTS))]
    assert (report.rows, report.dim, report.columns) == (len(TEXTS), model.encoder.reader.dim, {"embedding": TOPIC})
    assert report.output == output
    assert report.rows_per_second == pytest.approx(report.rows / report.seconds)
    ids = model.encoder.reader.tokenizer.tokenize(TEXTS, max_length=model.encoder.max_seq_length).mask
    assert report.tokens == int(ids.sum())
    assert 0 <= report.padding_share < 0.5


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"placement": "prefix", "deep_prompt_interval": 0, "text_pooling_weight": 0.0},
        {"prompter": dataclasses.replace(CONFIG.prompter, template="{text}\n\n" + CONFIG.prompter.template)},
    ],
    ids=["one_pass", "prefix", "text"],
)
def test_several_instructions_are_as_one_by_one_for_every_kind_of_model(
    corpus: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    model = PromptEmbedder.create(config=dataclasses.replace(CONFIG, max_seq_length=20, **changes), device="cpu")
    output = tmp_path / "out.parquet"
    config = EmbedConfig(instructions=(TOPIC, QUESTION), max_batch_tokens=50, chunk_rows=5)
    report = embed_files(model, [corpus], output, config=config)
    assert report.columns == {"embedding_0": TOPIC, "embedding_1": QUESTION}
    assert report.truncated == 1  # a text, not a text for each instruction
    for name, instruction in report.columns.items():
        np.testing.assert_allclose(column(output, name), one_by_one(model, TEXTS, instruction), atol=1e-5)


def test_without_instructions_the_default_one_is_used(model: PromptEmbedder, corpus: Path, tmp_path: Path) -> None:
    report = embed_files(model, [corpus], tmp_path / "out.parquet", config=EmbedConfig())
    assert report.columns == {"embedding": CONFIG.default_instruction}
    np.testing.assert_allclose(column(report.output, "embedding"), one_by_one(model, TEXTS, None), atol=1e-5)


def test_an_instruction_means_the_same_with_blanks_around_it(
    model: PromptEmbedder, corpus: Path, tmp_path: Path
) -> None:
    report = embed_files(model, [corpus], tmp_path / "out.parquet", config=EmbedConfig(instructions=(f" {TOPIC}\n",)))
    assert report.columns == {"embedding": TOPIC}
    np.testing.assert_allclose(column(report.output, "embedding"), one_by_one(model, TEXTS, f" {TOPIC}\n"), atol=1e-5)


def test_all_formats_of_the_same_texts_give_the_same_vectors(model: PromptEmbedder, tmp_path: Path) -> None:
    texts = TEXTS_OF_ANY_FORMAT
    files = {kind: tmp_path / f"texts.{kind}" for kind in ("jsonl", "csv", "txt", "parquet")}
    written_jsonl(files["jsonl"], texts)
    with files["csv"].open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    files["txt"].write_text("\n".join(texts), encoding="utf-8")
    pq.write_table(pa.table({"text": texts}), files["parquet"])
    vectors = {}
    for kind, path in files.items():
        output = tmp_path / f"{kind}-out.parquet"
        embed_files(model, [path], output, config=EmbedConfig(max_batch_tokens=100))
        vectors[kind] = column(output, "embedding")
    for kind in files:
        np.testing.assert_array_equal(vectors[kind], vectors["jsonl"])


def test_files_follow_each_other_and_repeated_ids_are_kept_and_told(
    model: PromptEmbedder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = written_jsonl(tmp_path / "a.jsonl", ["one", "two"], ids=["x", "y"])
    second = written_jsonl(tmp_path / "b.jsonl", ["three", "four", "five"], ids=["y", "z", "x"])
    with caplog.at_level(logging.WARNING, logger="promptembedder"):
        report = embed_files(model, [first, second], tmp_path / "out.parquet", config=EmbedConfig(chunk_rows=2))
    assert pq.read_table(report.output)["id"].to_pylist() == ["x", "y", "y", "z", "x"]
    expected = one_by_one(model, ["one", "two", "three", "four", "five"], None)
    np.testing.assert_allclose(column(report.output, "embedding"), expected, atol=1e-5)
    assert "2 of 5 rows have an id that came before" in caplog.text


def test_distinct_ids_are_not_worth_a_word(
    model: PromptEmbedder, corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    embed_files(model, [corpus], tmp_path / "out.parquet", config=EmbedConfig())
    assert caplog.text == ""


def test_the_metadata_says_what_made_the_file(model: PromptEmbedder, corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    identity = ModelIdentity(sha256="ab12", manifest_sha256="cd34", reader="")
    config = EmbedConfig(instructions=(TOPIC, "Zu welchem Thema gehört der Text?"))
    embed_files(model, [corpus], output, config=config, model_name="runs/x", identity=identity)
    found = pq.read_schema(output).metadata
    said = {key.decode().removeprefix("promptembedder."): value.decode() for key, value in found.items()}
    assert said["model"] == "runs/x"
    assert said["model_sha256"] == "ab12"
    assert said["reader"] == model.readers[0]
    assert json.loads(said["columns"]) == {"embedding_0": TOPIC, "embedding_1": "Zu welchem Thema gehört der Text?"}
    assert (said["dim"], said["normalised"], said["max_seq_length"]) == ("40", "true", "512")
    sha256 = hashlib.sha256(corpus.read_bytes()).hexdigest()
    assert json.loads(said["files"]) == [{"name": "corpus.jsonl", "sha256": sha256}]
    assert json.loads(said["versions"]).keys() >= {"promptembedder", "torch", "transformers"}


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_a_job_that_is_stopped_leaves_everything_as_it_was(
    model: PromptEmbedder, corpus: Path, tmp_path: Path, existing: bool, stop: type[BaseException]
) -> None:
    output = tmp_path / "out.parquet"
    if existing:
        output.write_bytes(b"of yesterday")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    done = 0

    def stop_in_the_second_chunk(rows: int) -> None:
        nonlocal done
        done += rows
        if done > 3:
            raise stop

    config = EmbedConfig(chunk_rows=3, overwrite=True)
    with pytest.raises(stop):
        embed_files(model, [corpus], output, config=config, on_rows=stop_in_the_second_chunk)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_existing_output_is_replaced_only_on_demand(model: PromptEmbedder, corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    output.write_bytes(b"of yesterday")
    with pytest.raises(DataError, match="exists"):
        embed_files(model, [corpus], output, config=EmbedConfig())
    assert output.read_bytes() == b"of yesterday"
    embed_files(model, [corpus], output, config=EmbedConfig(overwrite=True))
    assert pq.read_metadata(output).num_rows == len(TEXTS)


def test_no_more_than_a_chunk_of_rows_is_read_ahead(
    model: PromptEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, done, ahead = 0, 0, []

    def counted(path: Path, **_: object) -> Iterator[TextRow]:
        nonlocal read
        for row in range(10):
            read += 1
            yield TextRow(id=str(row), text=f"text {row}")

    def watch(rows: int) -> None:
        nonlocal done
        ahead.append(read - done)
        done += rows

    monkeypatch.setattr(job_module, "read_texts", counted)
    config = EmbedConfig(chunk_rows=4, max_batch_tokens=20)
    # a path that is no file stands for a pipe: it is neither hashed nor looked into beforehand
    report = embed_files(model, [tmp_path / "pipe.jsonl"], tmp_path / "out.parquet", config=config, on_rows=watch)
    assert (report.rows, done) == (10, 10)
    assert max(ahead) == 4


def test_a_fault_of_the_last_file_shows_before_the_first_is_embedded(
    model: PromptEmbedder, corpus: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    other = tmp_path / "other.csv"
    other.write_text("words\nhello\n")
    for bad in (tmp_path / "missing.jsonl", empty, other):
        with pytest.raises(DataError, match=bad.name):
            embed_files(model, [corpus, bad], tmp_path / "out.parquet", config=EmbedConfig(), on_rows=pytest.fail)


def test_outputs_that_cannot_be_meant_are_refused(corpus: Path, tmp_path: Path) -> None:
    config = EmbedConfig(overwrite=True)
    with pytest.raises(DataError, match="no files"):
        check_files([], tmp_path / "out.parquet", config=config)
    with pytest.raises(DataError, match=r"end in \.parquet"):
        check_files([corpus], tmp_path / "out.csv", config=config)
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        check_files([corpus], tmp_path / "folder.parquet", config=config)
    table = tmp_path / "texts.parquet"
    pq.write_table(pa.table({"text": TEXTS}), table)
    with pytest.raises(DataError, match="both a file to embed and the output"):
        check_files([table], tmp_path / "." / "texts.parquet", config=config)


def test_settings_are_checked_at_the_door() -> None:
    with pytest.raises(ConfigError, match="max_batch_tokens must be at least 1, got 0"):
        EmbedConfig(max_batch_tokens=0)
    with pytest.raises(ConfigError, match="chunk_rows must be at least 1, got -1"):
        EmbedConfig(chunk_rows=-1)
    with pytest.raises(ConfigError, match="blank"):
        EmbedConfig(instructions=(TOPIC, " "))
    with pytest.raises(ConfigError, match="twice"):
        EmbedConfig(instructions=(TOPIC, QUESTION, f"{TOPIC} "))


def test_a_model_that_cuts_its_vectors_is_refused(corpus: Path, tmp_path: Path) -> None:
    model = PromptEmbedder.create(config=CONFIG, device="cpu")
    model.truncate_dim = 16
    with pytest.raises(ConfigError, match="cut to 16"):
        embed_files(model, [corpus], tmp_path / "out.parquet", config=EmbedConfig())


def test_reports_are_values() -> None:
    values = {"output": Path("x"), "rows": 6, "dim": 2, "columns": {}, "truncated": 0, "seconds": 2.0}
    values |= {"tokens": 90, "padding_share": 0.1}
    assert EmbedReport(**values) == EmbedReport(**values)
    assert EmbedReport(**values).tokens_per_second == 45.0
    assert EmbedReport(**values).rows_per_second == 3.0
