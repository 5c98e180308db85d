"""Laws of `promptembedder transfer`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import Result

from promptembedder import PromptEmbedder
from promptembedder.storage import file_sha256

pytestmark = pytest.mark.slow

Run = Callable[..., Result]
Refused = Callable[..., str]
READER = "random:tiny-gemma3"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [{"anchor": f"a {one} thing", "positive": f"the thing is {one}"} for one in ("red", "green", "blue", "cold")]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 3), encoding="utf-8")
    return path


def last(result: Result) -> dict[str, object]:
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.strip().splitlines()[-1])
    assert isinstance(found, dict)
    return found


def test_transferred_model_runs_on_both_readers_with_the_same_prompter(
    saved_model: Path, pairs: Path, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "moved"
    words = ("transfer", saved_model, "--to", READER, "--data", pairs, "--instruction", "Find it", "--dtype", "float32")
    result = last(run(*words, "--steps", 3, "--batch-size", 4, "-o", out, "--json"))
    assert result["readers"] == [READER, "random:tiny-qwen3"]
    assert result["steps"] == 3
    assert result["trained_bytes"]
    assert result["fit"]["shared_strings"] == 255
    assert file_sha256(out / "prompter.safetensors") == file_sha256(saved_model / "prompter.safetensors")
    old = PromptEmbedder.from_pretrained(saved_model, device="cpu")
    back = PromptEmbedder.from_pretrained(out, reader="random:tiny-qwen3", device="cpu")
    np.testing.assert_array_equal(back.encode(["a", ""], prompt="new"), old.encode(["a", ""], prompt="new"))
    new = PromptEmbedder.from_pretrained(out, device="cpu")
    assert new.prompts["query"] == old.prompts["query"]
    assert new.encode(["a"]).shape == (1, new.encoder.reader.dim)
    shown = run("info", out)
    assert "also runs on" in shown.output
    assert "random:tiny-qwen3" in shown.output
    assert [one["backbone"]["source"] for one in last(run("info", out, "--json"))["readers"]] == ["random:tiny-qwen3"]


def test_the_other_commands_open_a_moved_model_on_either_reader(
    saved_model: Path, corpus: Path, benchmark_files: Path, tmp_path: Path, run: Run, refused: Refused
) -> None:
    out, old = tmp_path / "moved", "random:tiny-qwen3"
    last(run("transfer", saved_model, "--to", READER, "--dtype", "float32", "--steps", 0, "-o", out, "--json"))
    made = {}
    for name, words in (("new", ()), ("old", ("--reader", old))):
        path = tmp_path / f"{name}.parquet"
        result = last(run("embed", out, corpus, "-o", path, "--instruction", "Find it", "--json", *words))
        made[name] = result["dim"]
        assert last(run("search", out, "a river", "--corpus", corpus, "--json", *words))["documents"] == 7
    models = (PromptEmbedder.from_pretrained(out, reader=reader) for reader in (READER, old))
    assert made == dict(zip(("new", "old"), (model.encoder.reader.dim for model in models), strict=True))
    line = refused("search", out, "x", "--corpus", corpus, "--reader", "random:tiny-gpt2")
    assert "none for 'random:tiny-gpt2'" in line
    tasks = benchmark_files / "tasks.json"
    line = refused("evaluate", "frozen:mean:random:tiny-llama", "--tasks", tasks, "--reader", READER)
    assert "is no PromptEmbedder, so it has one reader" in line


@pytest.mark.parametrize("steps", [0, 1])
def test_compiled_instructions_stay_compiled_and_the_models_own_is_trained_by_default(
    saved_model: Path, pairs: Path, tmp_path: Path, run: Run, steps: int
) -> None:
    """The transferred model had no compiled instructions, and needed its prompter again.

    Without `--instruction`, the new alignment was trained under an instruction unknown to the model.
    """
    out = tmp_path / "moved"
    words = ("--data", pairs) if steps else ()
    result = last(run("transfer", saved_model, "--to", READER, *words, "--steps", steps, "-o", out, "--json"))
    assert result["instructions"] == ["Find texts on the same topic"]
    if steps:
        recipe = yaml.safe_load((out / "recipe.yaml").read_text())
        assert recipe["data"]["instructions"] == ["Find the text that answers the question"]
    served = PromptEmbedder.from_pretrained(out, with_prompter=False, device="cpu")
    generated = PromptEmbedder.from_pretrained(out, device="cpu")
    generated.encoder.store.clear()
    expected = generated.encode(["a"], prompt="Find texts on the same topic")
    np.testing.assert_allclose(served.encode(["a"], prompt="Find texts on the same topic"), expected, atol=1e-5)


def test_interrupted_transfer_resumes_to_the_same_vectors(
    saved_model: Path, pairs: Path, tmp_path: Path, run: Run
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    words = ("transfer", saved_model, "--to", READER, "--data", pairs, "--instruction", "Find it", "--dtype", "float32")
    words = (*words, "--steps", 4, "--batch-size", 4, "--json")
    last(run(*words, "-o", whole))
    last(run(*words, "-o", cut))
    for path in [*cut.glob("checkpoint-4"), *(path for path in cut.iterdir() if path.suffix == ".safetensors")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (cut / "promptembedder.json").unlink()
    resumed = run(*words, "-o", cut)
    assert f"resuming from {cut / 'checkpoint-3'}" in resumed.output.replace("\n", "")
    one, other = (PromptEmbedder.from_pretrained(path, device="cpu") for path in (whole, cut))
    np.testing.assert_allclose(one.encode(["a", "bb"]), other.encode(["a", "bb"]), atol=1e-6)


@pytest.mark.parametrize("start", ["vocabulary", "random"])
def test_no_steps_need_no_data(start: str, saved_model: Path, tmp_path: Path, run: Run) -> None:
    words = (
        "transfer",
        saved_model,
        "--to",
        READER,
        "--steps",
        0,
        "--start",
        start,
        "-o",
        tmp_path / "moved",
        "--json",
    )
    result = last(run(*words))
    assert result["trained_bytes"] == 0
    model = PromptEmbedder.from_pretrained(tmp_path / "moved", device="cpu")
    assert np.isfinite(model.encode(["a", ""], prompt="anything")).all()


def test_an_exit_is_chosen_by_loss_or_named(saved_model: Path, pairs: Path, tmp_path: Path, run: Run) -> None:
    words = (
        "transfer",
        saved_model,
        "--to",
        READER,
        "--data",
        pairs,
        "--instruction",
        "Find it",
        "--steps",
        0,
        "--json",
    )
    auto = last(run(*words, "--early-exit-fraction", "auto", "-o", tmp_path / "auto"))
    losses = auto["exit_losses"]
    assert isinstance(losses, dict)
    assert losses[str(auto["early_exit_fraction"])] <= 1.02 * losses["1.0"] + 1e-3
    assert (
        PromptEmbedder.from_pretrained(tmp_path / "auto", device="cpu").early_exit_fraction
        == auto["early_exit_fraction"]
    )
    named = last(run(*words, "--early-exit-fraction", 0.5, "-o", tmp_path / "named"))
    assert (named["early_exit_fraction"], named["exit_losses"]) == (0.5, {})
    assert PromptEmbedder.from_pretrained(tmp_path / "named", device="cpu").early_exit_fraction == 0.5
    assert "0.5 of the reader's layers" in run("info", tmp_path / "named").stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--steps", 5), "5 steps need data"),
        (
            ("--steps", 0, "--early-exit-fraction", "auto"),
            "auto compares losses and needs --data",
        ),
        (("--steps", 0, "--early-exit-fraction", "last"), "must be a number in (0, 1] or auto, got 'last'"),
        (("--steps", 0, "--early-exit-fraction", "0"), "early_exit_fraction must be above 0 and at most 1, got 0.0"),
        (("--steps", 0, "--start", "magic"), "unknown alignment start 'magic'"),
        (("--steps", 5, "--data", "m.json", "--instruction", "x"), "a mixture contains its instructions"),
        (("--steps", 5, "--data", "nowhere.jsonl", "--instruction", "x"), "nowhere.jsonl"),
    ],
)
def test_invalid_transfer_is_one_line_error_without_output(
    words: tuple[object, ...], message: str, saved_model: Path, tmp_path: Path, refused: Refused
) -> None:
    out = tmp_path / "moved"
    assert message in refused("transfer", saved_model, "--to", READER, "-o", out, *words)
    assert not out.exists()


def test_an_unknown_backbone_and_a_folder_that_is_no_model_are_one_line(
    saved_model: Path, tmp_path: Path, refused: Refused
) -> None:
    line = refused("transfer", saved_model, "--to", "random:tiny-gemma", "--steps", 0, "-o", tmp_path / "moved")
    assert "random:tiny-gemma" in line
    assert "is not a saved model" in refused(
        "transfer", tmp_path, "--to", READER, "--steps", 0, "-o", tmp_path / "moved"
    )


def test_a_folder_that_holds_a_model_is_not_overwritten(saved_model: Path, refused: Refused) -> None:
    line = refused("transfer", saved_model, "--to", READER, "--steps", 0, "-o", saved_model)
    assert "already contains a trained model" in line


def test_transfer_refuses_a_folder_of_other_files(saved_model: Path, tmp_path: Path, refused: Refused) -> None:
    """`-o` overwrote files of a folder that is neither a model nor a run."""
    (tmp_path / "README.md").write_text("mine")
    line = refused("transfer", saved_model, "--to", READER, "--steps", 0, "-o", tmp_path)
    assert "contains other files" in line
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
