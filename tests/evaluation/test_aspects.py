"""Laws of the steering evaluation: a steered model scores 100 and 0, a blind one 50 on average."""

import json
from pathlib import Path

import numpy as np
import pytest

from promptembedder.errors import DataError
from promptembedder.evaluation.aspects import (
    answer_choice_score,
    aspect_scores,
    read_aspects,
    read_questions,
    triplet_accuracy,
)

COLOURS, SIZES = ("red", "green", "blue"), ("large", "small", "tiny")
TEXTS = [f"{colour} {size} {number}" for number in range(3) for colour in COLOURS for size in SIZES]


class WordModel:
    """Embed the word that the instruction names; without an instruction, both words."""

    def encode(self, texts: list[str], *, prompt: str | None = None, batch_size: int = 64) -> np.ndarray:
        colours = np.array([[colour in text.split() for colour in COLOURS] for text in texts], dtype=np.float32)
        sizes = np.array([[size in text.split() for size in SIZES] for text in texts], dtype=np.float32)
        with_colour = prompt is None or "colour" in prompt
        with_size = prompt is None or "size" in prompt
        return np.concatenate([colours * with_colour, sizes * with_size], axis=1) + 1e-3


def conflict_triplets(shared: int, other: int) -> list[list[int]]:
    """Triplets in which word `shared` decides and word `other` misleads."""
    words = [text.split() for text in TEXTS]
    rows = range(len(TEXTS))
    return [
        [a, p, n]
        for a in rows
        for p in rows
        for n in rows
        if words[a][shared] == words[p][shared] != words[n][shared]
        and words[a][other] == words[n][other] != words[p][other]
    ][:60]


@pytest.fixture
def aspects_file(tmp_path: Path) -> Path:
    rows = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "texts.jsonl").write_text(rows, encoding="utf-8")
    entries = [
        {
            "corpus": "things",
            "attribute": name,
            "file": "texts.jsonl",
            "kind": "seen",
            "instruction": f"Group by {name}",
            "unseen_wordings": [f"Which {name}?"],
            "triplets": conflict_triplets(index, 1 - index),
        }
        for index, name in enumerate(("colour", "size"))
    ]
    path = tmp_path / "aspects.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def test_steered_model_is_right_under_its_own_and_wrong_under_a_foreign_instruction(aspects_file: Path) -> None:
    for score in aspect_scores(WordModel(), read_aspects(aspects_file)):
        assert (score.own, score.others, score.unseen_wording) == (100, 0, 100)


def test_model_without_instructions_scores_the_same_under_every_instruction(aspects_file: Path) -> None:
    scores = aspect_scores(WordModel(), read_aspects(aspects_file), takes_instructions=False)
    assert [score.own for score in scores] == [score.others for score in scores]
    assert np.mean([score.own for score in scores]) == pytest.approx(50)


def test_prompt_embedder_scores_equal_those_of_encoding_under_each_instruction(aspects_file: Path, new_model) -> None:
    model = new_model("tiny-llama")
    aspects = read_aspects(aspects_file)
    for score, aspect in zip(aspect_scores(model, aspects), aspects, strict=True):
        vectors = model.encode(list(aspect.texts), prompt=aspect.instruction)
        assert score.own == pytest.approx(triplet_accuracy(vectors, aspect.triplets), abs=2)


def test_equal_cosines_count_half() -> None:
    assert triplet_accuracy(np.ones((3, 4)), np.array([[0, 1, 2]])) == 50


def test_limit_keeps_the_first_triplets(aspects_file: Path) -> None:
    assert [len(aspect.triplets) for aspect in read_aspects(aspects_file, limit=7)] == [7, 7]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"triplets": [[0, 1, 99]]}, "names row 99"),
        ({"triplets": [[0, 1]]}, "lists of three row numbers"),
        ({"instruction": ""}, "lacks 'instruction'"),
        ({"file": "nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
def test_unusable_aspect_is_refused_with_one_line(change: dict, message: str, aspects_file: Path) -> None:
    entries = json.loads(aspects_file.read_text(encoding="utf-8"))
    aspects_file.write_text(json.dumps([{**entries[0], **change}]), encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read_aspects(aspects_file)
    assert "\n" not in str(caught.value)


def test_answer_choice_is_perfect_for_a_steered_model_and_blind_for_another(tmp_path: Path) -> None:
    rows = [{"text": text, "questions": ["which colour", "which size"], "answers": text.split()[:2]} for text in TEXTS]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    score = answer_choice_score(WordModel(), read_questions(path))
    assert (score.accuracy, score.blind, score.gain) == (100, 50, 100)
    assert answer_choice_score(WordModel(), rows, takes_instructions=False).accuracy == 50


def test_question_without_answer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"text": "a", "questions": ["b", "c"], "answers": ["d"]}), encoding="utf-8")
    with pytest.raises(DataError, match="as many answers"):
        read_questions(path)
