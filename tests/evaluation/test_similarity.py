"""A similarity test from a file."""

import json
from pathlib import Path

import pytest

from promptembedder import BackboneConfig, ModelConfig, PromptEmbedder, PrompterConfig
from promptembedder.errors import DataError
from promptembedder.evaluation import similarity_evaluator

ROWS = [
    {"sentence1": "a cat sits", "sentence2": "a cat is sitting", "score": 4.5, "split": "dev"},
    {"sentence1": "a cat sits", "sentence2": "stocks fell", "score": 0.2, "split": "dev"},
    {"sentence1": "x", "sentence2": "y", "score": 1.0, "split": "test"},
    {"sentence1": "rain again", "sentence2": "it rains", "score": 3.9, "split": "dev"},
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "sts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def test_it_scores_the_split_under_the_instruction(path: Path) -> None:
    from scipy.stats import spearmanr

    backbone = BackboneConfig(source="random:tiny-llama", dtype="float32")
    model = PromptEmbedder.create(
        config=ModelConfig(prompter=PrompterConfig(backbone=backbone), reader=backbone), device="cpu"
    )
    evaluator = similarity_evaluator(path, instruction="Which mean the same?", split="dev")
    metrics = evaluator(model)
    rows = [row for row in ROWS if row["split"] == "dev"]
    left, right = (
        model.encode([str(row[key]) for row in rows], prompt="Which mean the same?")
        for key in ("sentence1", "sentence2")
    )
    expected = spearmanr((left * right).sum(axis=1), [row["score"] for row in rows]).statistic
    assert metrics["sts_spearman_cosine"] == pytest.approx(expected)


def test_a_subsample_says_so_in_its_name(path: Path) -> None:
    assert similarity_evaluator(path, instruction="x", split="dev", limit=2).name == "sts_first_2"


@pytest.mark.parametrize(
    ("split", "drop", "message"), [("nope", None, "no row with split 'nope'"), ("dev", "score", "no column 'score'")]
)
def test_a_file_that_cannot_be_scored_is_refused(path: Path, split: str, drop: str | None, message: str) -> None:
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != drop}) + "\n" for row in ROWS))
    with pytest.raises(DataError, match=message):
        similarity_evaluator(path, instruction="x", split=split)
