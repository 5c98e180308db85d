"""The corpus benchmark: what it measures is looked at again, and faults that it finds are told."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.corpus.benchmark import CorpusBenchConfig, run_corpus
from benchmarks.corpus.report import corpus_markdown, write_corpus
from benchmarks.corpus.runs import check_output, made_corpus, made_model
from promptembedder.batch import EmbedConfig, ShardFolder, embed_corpus
from promptembedder.errors import ConfigError, DataError

pytestmark = pytest.mark.integration


def test_a_size_is_measured_and_its_output_checked(tmp_path: Path) -> None:
    settings = CorpusBenchConfig(rows=(60,), workers=(), shard_rows=25, faults=0, work=tmp_path)
    content = run_corpus(settings)
    (row,) = content["rows"]
    assert (row["engine"], row["rows"], row["same_shards_as_local"]) == ("local", 60, True)
    assert [row[name] for name in ("lost", "doubled", "out_of_order", "broken_shards", "strays")] == [0] * 5
    assert row["driver_peak_megabytes"] > 50
    assert 0 < row["embedding_seconds"] <= row["seconds"] <= row["command_seconds"]
    assert list(tmp_path.iterdir()) == []
    files = write_corpus(content, tmp_path / "results")
    assert json.loads(files[0].read_text()) == json.loads(json.dumps(content))
    assert f"| 60 | local | 1 | {row['seconds'] - row['embedding_seconds']:.1f} |" in files[1].read_text()


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    corpus = made_corpus(folder / "c.jsonl", 9, seed=1)
    embed_corpus(made_model(folder), [str(corpus)], folder / "out", config=EmbedConfig(shard_rows=3))
    return folder / "out"


def test_what_is_wrong_with_an_output_is_counted(output: Path) -> None:
    assert set(check_output(output, 9).values()) == {0}
    assert check_output(output, 11)["lost"] == 2
    records = ShardFolder(output).finished()
    manifest, whole = output / "manifest.jsonl", (output / "manifest.jsonl").read_text()
    lines = whole.splitlines(keepends=True)
    manifest.write_text(lines[0] + lines[2])
    assert check_output(output, 9)["lost"] == 3
    first = json.loads(lines[0])
    manifest.write_text(whole + json.dumps({**first, "shard": 3}) + "\n")
    assert check_output(output, 9)["doubled"] == 3
    manifest.write_text(whole.replace(first["sha256"], "0" * 64))
    assert check_output(output, 9)["broken_shards"] == 1
    manifest.write_text("")
    with pytest.raises(DataError, match="holds no finished shard"):
        check_output(output, 9)
    manifest.write_text(whole)
    (output / ".part-00001.x").touch()
    assert check_output(output, 9)["strays"] == 1
    assert len(records) == 3


def test_faults_are_summed_by_kind_and_stay_beside_other_results(tmp_path: Path) -> None:
    fault: dict[str, Any] = {"fault": "worker", "engine": "ray", "hit": True, "lost": 0, "doubled": 2}
    fault |= {"broken_shards": 0, "strays": 1, "same_shards_as_undisturbed": False}
    content: dict[str, Any] = {"rows": [], "faults": [fault, fault], "commands": ["a"], "machine": {"cores": 2}}
    content |= {"versions": {}, "settings": {}}
    assert "| a worker killed (-9) | ray | 2 | 2 | 0 | 4 | 0 | 2 | 0 of 2 |" in corpus_markdown(content)
    write_corpus(content, tmp_path)
    other = copy.deepcopy(content) | {"faults": [], "commands": ["b"]}
    write_corpus(other, tmp_path)
    held = json.loads((tmp_path / "corpus.json").read_text())
    assert (len(held["faults"]), held["commands"]) == (2, ["a", "b"])
    write_corpus(other | {"machine": {"cores": 4}}, tmp_path)
    assert json.loads((tmp_path / "corpus.json").read_text())["faults"] == []


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        CorpusBenchConfig(rows=(0,))
