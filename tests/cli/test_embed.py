"""Laws of `promptembedder embed`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import Result

from promptembedder import PromptEmbedder
from promptembedder.model import model_identity

pytestmark = pytest.mark.slow

COMPILED, OTHER = "Find texts on the same topic", "Find the text that answers the question"

Run = Callable[..., Result]
Refused = Callable[..., str]


def vectors_in(path: Path, column: str = "embedding") -> np.ndarray:
    return np.array(pq.read_table(path)[column].to_pylist(), dtype=np.float32)


def texts_in(corpus: Path) -> list[str]:
    return [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()]


def test_json_result_describes_the_written_file(run: Run, saved_model: Path, corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    result = run(
        "embed", saved_model, corpus, "--instruction", COMPILED, "--instruction", OTHER, "-o", output, "--json"
    )
    assert result.exit_code == 0
    said = json.loads(result.stdout)  # nothing else is on stdout
    assert said["columns"] == {"embedding_0": COMPILED, "embedding_1": OTHER}
    assert (said["output"], said["rows"], said["dim"], said["truncated"]) == (str(output), 7, 40, 0)
    assert said["rows_per_second"] == pytest.approx(said["rows"] / said["seconds"])
    assert said["model_sha256"] == model_identity(saved_model).sha256
    assert pq.read_schema(output).metadata[b"promptembedder.model_sha256"].decode() == said["model_sha256"]
    model = PromptEmbedder.from_pretrained(saved_model, device="cpu")
    for name, instruction in said["columns"].items():
        expected = model.encode(texts_in(corpus), prompt=instruction)
        np.testing.assert_allclose(vectors_in(output, name), expected, atol=1e-5)


def test_summary_contains_rows_dimensions_and_literal_instructions(
    run: Run, saved_model: Path, corpus: Path, tmp_path: Path
) -> None:
    result = run("embed", saved_model, corpus, "--instruction", "[b]sort[/b] them", "-o", tmp_path / "out.parquet")
    assert result.exit_code == 0
    assert "7 rows of 40 dimensions" in result.stdout
    assert "embedding: [b]sort[/b] them" in result.stdout
    assert result.stderr == ""


def test_the_prompter_is_loaded_only_for_an_instruction_that_is_not_compiled(
    run: Run, saved_model: Path, corpus: Path, tmp_path: Path, loaded: list[PromptEmbedder]
) -> None:
    for words, with_prompter in (
        ((COMPILED,), False),
        ((f" {COMPILED}",), False),
        ((COMPILED, OTHER), True),
        ((), True),
    ):
        asked = [part for word in words for part in ("--instruction", word)]
        result = run("embed", saved_model, corpus, *asked, "-o", tmp_path / "out.parquet", "--overwrite", "--json")
        assert result.exit_code == 0
        assert (loaded[-1].encoder.prompter is not None) == with_prompter
        assert run("embed", saved_model, "--text", "a river", *asked).exit_code == 0
        assert len(loaded) % 2 == 0
        assert (loaded[-1].encoder.prompter is not None) == with_prompter
    default = loaded[-1].encoder.config.default_instruction
    assert json.loads(result.stdout)["columns"] == {"embedding": default}


def test_bad_input_is_one_line_and_exit_code_2(
    refused: Refused, saved_model: Path, corpus: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.parquet"
    assert "is not a saved model" in refused("embed", tmp_path / "nowhere", corpus, "-o", output)
    assert "does not exist" in refused("embed", saved_model, corpus, tmp_path / "missing.txt", "-o", output)
    assert "no column 'words'" in refused("embed", saved_model, corpus, "-o", output, "--text-column", "words")
    assert "no column 'key'" in refused("embed", saved_model, corpus, "-o", output, "--id-column", "key")
    assert "blank" in refused("embed", saved_model, corpus, "-o", output, "--instruction", " ")
    assert not output.exists()
    output.write_bytes(b"of yesterday")
    assert "exists" in refused("embed", saved_model, corpus, "-o", output)
    assert output.read_bytes() == b"of yesterday"


def test_invalid_input_fails_before_a_model_is_loaded(
    refused: Refused, saved_model: Path, corpus: Path, tmp_path: Path, loaded: list[PromptEmbedder]
) -> None:
    refused("embed", saved_model, corpus, tmp_path / "missing.txt", "-o", tmp_path / "out.parquet")
    assert loaded == []


def test_a_file_of_options_does_what_the_options_do_and_a_flag_wins(
    run: Run, saved_model: Path, corpus: Path, tmp_path: Path
) -> None:
    config = tmp_path / "embed.yaml"
    output = tmp_path / "out.parquet"
    content = {"model": str(saved_model), "files": [str(corpus)], "output": str(output), "max-batch-tokens": 100}
    config.write_text(json.dumps({**content, "instruction": [COMPILED, OTHER], "overwrite": True}))
    result = run("embed", "--config", config, "--json")
    assert json.loads(result.stdout)["columns"] == {"embedding_0": COMPILED, "embedding_1": OTHER}
    result = run("embed", "--config", config, "--instruction", OTHER, "--json")
    assert json.loads(result.stdout)["columns"] == {"embedding": OTHER}


def test_an_unknown_key_in_a_file_of_options_is_named(
    run: Run, saved_model: Path, corpus: Path, tmp_path: Path
) -> None:
    config = tmp_path / "embed.yaml"
    config.write_text("instructon: [one]\n")
    result = run("embed", saved_model, corpus, "-o", tmp_path / "out.parquet", "--config", config)
    assert result.exit_code == 2
    assert "instructon" in result.stderr
    assert not (tmp_path / "out.parquet").exists()


def test_an_instruction_in_the_environment_is_not_cut_into_words(
    run: Run, saved_model: Path, corpus: Path, tmp_path: Path
) -> None:
    """Options that can be given several times are split at spaces when they come from the environment."""
    words = ("embed", saved_model, corpus, "-o", tmp_path / "out.parquet", "--json")
    result = run(*words, env={"PROMPTEMBEDDER_EMBED_INSTRUCTION": "Find the same"})
    assert list(json.loads(result.stdout)["columns"]) == ["embedding"]


def test_a_data_file_as_output_is_no_folder(refused: Refused, saved_model: Path, corpus: Path, tmp_path: Path) -> None:
    """`-o x.csv` made a folder of shards of that name."""
    line = refused("embed", saved_model, corpus, "-o", tmp_path / "x.csv")
    assert "would be a folder of shards. End the name in .parquet, .jsonl, .npy" in line
    assert not (tmp_path / "x.csv").exists()


def test_vectors_in_an_array_are_those_of_the_other_files_in_fewer_bytes(
    run: Run, saved_model: Path, corpus: Path, tmp_path: Path
) -> None:
    words = ("embed", saved_model, corpus, "--instruction", COMPILED, "--dimensions", 16)
    assert run(*words, "-o", tmp_path / "a.npy").exit_code == 0
    assert run(*words, "-o", tmp_path / "a.jsonl").exit_code == 0
    assert run(*words, "-o", tmp_path / "shards").exit_code == 0
    array = np.load(tmp_path / "a.npy")
    assert array.shape == (7, 16)
    np.testing.assert_allclose(np.linalg.norm(array, axis=1), 1, atol=1e-6)
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    np.testing.assert_array_equal(np.array([line["embedding"] for line in lines], dtype=np.float32), array)
    shards = [pq.read_table(path) for path in sorted((tmp_path / "shards").glob("part-*.parquet"))]
    np.testing.assert_allclose([row["embedding"] for part in shards for row in part.to_pylist()], array, atol=1e-5)
    printed = run("embed", saved_model, "--text", "short", *words[3:], "--precision", "int8")
    assert max(map(abs, json.loads(printed.stdout)["embedding"])) == 127


def test_same_command_resumes_a_folder_of_shards(run: Run, saved_model: Path, corpus: Path, tmp_path: Path) -> None:
    words = ("embed", saved_model, corpus, "--instruction", COMPILED, "-o", tmp_path / "out", "--shard-rows", 3)
    said = json.loads(run(*words, "--json").stdout)
    assert (said["rows"], said["shards"], said["skipped_shards"], said["rejected"]) == (7, 3, 0, 0)
    model = PromptEmbedder.from_pretrained(saved_model, device="cpu")
    shards = sorted((tmp_path / "out").glob("part-*.parquet"))
    vectors = np.concatenate([vectors_in(shard) for shard in shards])
    np.testing.assert_allclose(vectors, model.encode(texts_in(corpus), prompt=COMPILED), atol=1e-5)
    again = run(*words)
    assert again.exit_code == 0
    assert "7 rows in 3 shards (3 already complete)" in again.stdout
    assert again.stderr == ""


def test_rejected_rows_are_counted(run: Run, saved_model: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "one", "year": "1999"}\nbroken\n')
    result = run("embed", saved_model, tmp_path / "texts.jsonl", "-o", tmp_path / "out", "--keep", "year:int")
    assert result.exit_code == 0
    assert "1 row was rejected" in result.stdout
    assert "rejected-*.jsonl" in result.stdout
    assert pq.read_table(next((tmp_path / "out").glob("part-*")))["year"].to_pylist() == [1999]


def test_invalid_corpus_options_are_one_line_errors(
    refused: Refused, saved_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert "is one file. Give a folder" in refused("embed", saved_model, corpus, "-o", "v.parquet", "--engine", "ray")
    assert "engine must be local or ray" in refused("embed", saved_model, corpus, "-o", out, "--engine", "spark")
    assert "has the unknown type 'date'" in refused("embed", saved_model, corpus, "-o", out, "--keep", "day:date")
    assert "stands for no file" in refused("embed", saved_model, tmp_path / "*.csv", "-o", out)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    told = refused("embed", saved_model, corpus, "-o", out, "--engine", "ray")
    assert 'pip install "promptembedder[ray]"' in told
    assert not out.exists()


def printed(result: Result) -> list[dict[str, object]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_texts_of_the_command_line_are_printed(run: Run, saved_model: Path) -> None:
    texts = ["a river", "Grüße 🙂"]
    words = [word for text in texts for word in ("--text", text)]
    result = run("embed", saved_model, *words, "--instruction", COMPILED, "--instruction", OTHER)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = printed(result)
    asked = [(text, words) for text in texts for words in (COMPILED, OTHER)]
    assert [(line["text"], line["instruction"]) for line in lines] == asked
    model = PromptEmbedder.from_pretrained(saved_model, device="cpu")
    expected = model.encode_instructions(texts, [COMPILED, OTHER])
    found = np.array([line["embedding"] for line in lines]).reshape(2, 2, -1).swapaxes(0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_lines_of_standard_input_are_texts(saved_model: Path) -> None:
    from typer.testing import CliRunner

    from promptembedder.cli.app import app

    words = ["embed", str(saved_model), "-", "--instruction", COMPILED]
    result = CliRunner().invoke(app, words, input="one\r\n\n two\n", catch_exceptions=False)
    assert [line["text"] for line in printed(result)] == ["one", " two"]
    empty = CliRunner().invoke(app, words, input="\n\n", catch_exceptions=False)
    assert (empty.exit_code, empty.stdout) == (2, "")
    assert "no text on standard input. Write one text per line." in empty.stderr


def test_backbone_is_embedded_untrained_with_a_warning(run: Run) -> None:
    result = run("embed", "random:tiny-llama", "--text", "one", "--instruction", COMPILED)
    assert result.exit_code == 0 and len(printed(result)) == 1
    assert result.stderr == ("random:tiny-llama is a backbone: the vectors come from an untrained model\n")


def test_texts_are_not_mixed_with_files(refused: Refused, saved_model: Path, corpus: Path, tmp_path: Path) -> None:
    message = "the vectors of --text and - are printed. Omit --output and other files."
    assert message in refused("embed", saved_model, corpus, "--text", "one")
    assert message in refused("embed", saved_model, "--text", "one", "-o", tmp_path / "out.parquet")
    assert message in refused("embed", saved_model, "-", "-o", tmp_path / "out.parquet")
