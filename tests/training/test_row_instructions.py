"""Laws of pairs that have an instruction each: several instructions in one batch, and other answers as negatives."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from promptembedder import ModelConfig, PromptEmbedder
from promptembedder.data import Pair, add_other_answers, read_mixture, read_pairs
from promptembedder.errors import DataError
from promptembedder.method import RowInstructions
from promptembedder.model import BaselineConfig, BaselineEmbedder
from promptembedder.training import DataConfig, Recipe, load_training_data, new_model, train_model
from promptembedder.training.data import InstructionCollator

TEXTS = ["one", "two"]
QUESTIONS = ["Who is it about?", "Where does it happen?"]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [
        {"text": f"{name} walked through {place}", "question": question, "answer": answer}
        for name, place in [("Ann", "Rome"), ("Bob", "Oslo"), ("Eve", "Bonn"), ("Kim", "Lima")]
        for question, answer in zip(QUESTIONS, (name, place), strict=True)
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def data_config(questions: Path) -> DataConfig:
    return DataConfig(pairs=str(questions), columns=("text", "answer"), instruction_column="question")


def test_a_batch_of_several_instructions_equals_its_texts_one_by_one(
    new_config: Callable[..., ModelConfig],
) -> None:
    texts = ["a", "The quick brown fox jumps over the lazy dog, twice.", "short text", "short text"]
    model = PromptEmbedder.create(config=new_config(instruction_heads=2))
    each = RowInstructions(QUESTIONS[row % 2] for row in range(len(texts)))
    for training in (False, True):
        encoder = model.encoder.train(training)
        with torch.set_grad_enabled(training):
            together = encoder(encoder.preprocess(texts, prompt=each))["sentence_embedding"]
            columns = [encoder.preprocess(texts, prompt=each), encoder.preprocess(texts)]
            encoder.embed_columns(columns)
            for row, (text, instruction) in enumerate(zip(texts, each, strict=True)):
                alone = encoder(encoder.preprocess([text], prompt=instruction))["sentence_embedding"][0]
                torch.testing.assert_close(together[row], alone, atol=2e-4, rtol=0)
                torch.testing.assert_close(columns[0]["sentence_embedding"][row], alone, atol=2e-4, rtol=0)


def test_a_baseline_writes_each_instruction_into_its_template(new_config: Callable[..., ModelConfig]) -> None:
    model = BaselineEmbedder.create(config=new_config(), baseline=BaselineConfig(kind="frozen", template="instruct"))
    together = model.preprocess(TEXTS, prompt=RowInstructions(QUESTIONS))["input_ids"]
    alone = [model.preprocess([text], prompt=one)["input_ids"] for text, one in zip(TEXTS, QUESTIONS, strict=True)]
    assert [row[row != 0].tolist() for row in together] == [row[0][row[0] != 0].tolist() for row in alone]


def test_anchors_get_their_own_instruction_and_documents_the_default(data_config: DataConfig) -> None:
    data = load_training_data(data_config, seed=0)
    prompts = []

    def preprocess(texts: list[str], prompt: str | tuple[str, ...] | None = None, **_: object) -> dict[str, object]:
        prompts.append(prompt)
        return {"texts": texts}

    (task,) = data.tasks.values()
    rows = list(task.train)
    InstructionCollator(preprocess_fn=preprocess)(rows)
    assert prompts == [tuple(row["instruction"] for row in rows), None, None]
    assert all(
        row["negative"] != row["positive"]
        and row["negative"] in {"Ann", "Bob", "Eve", "Kim", "Rome", "Oslo", "Bonn", "Lima"}
        for row in rows
    )


def test_the_answer_to_another_question_about_the_same_text_is_the_negative() -> None:
    pairs = [Pair("t", "a", instruction="p"), Pair("t", "b", instruction="q"), Pair("u", "a", instruction="p")]
    assert [pair.negative for pair in add_other_answers(pairs, seed=0)] == ["b", "a", None]
    second_answer = Pair("t", "c", instruction="p")
    assert add_other_answers([*pairs, second_answer], seed=0)[0].negative == "b"
    assert add_other_answers([replace(pairs[0], negative="n")], seed=0)[0].negative == "n"
    without = [Pair("t", "a"), Pair("t", "b")]
    assert add_other_answers(without, seed=0) == without


@pytest.mark.parametrize("kind", [None, "lora"])
def test_a_run_trains_on_them(
    kind: str | None, data_config: DataConfig, recipe_of: Callable[..., Recipe], caplog: pytest.LogCaptureFixture
) -> None:
    recipe = recipe_of(steps=2, data=data_config)
    recipe = replace(recipe, baseline=None if kind is None else BaselineConfig(kind=kind))
    data = load_training_data(data_config, seed=0)
    result = train_model(new_model(recipe, data, device="cpu"), data, recipe)
    assert result.train_loss > 0
    assert "no instruction" not in caplog.text


def test_a_column_named_instruction_is_found(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"anchor": "a", "positive": "b", "instruction": "Find b"}\n')
    assert read_pairs(path).pairs == [Pair("a", "b", instruction="Find b")]
    path.write_text('{"instruction": "a", "response": "b"}\n')
    assert read_pairs(path).pairs == [Pair("a", "b")]
    path.write_text('{"anchor": "a", "positive": "b", "instruction": "c"}\n{"anchor": "a", "positive": "b"}\n')
    with pytest.raises(DataError, match="row 2 has no 'instruction'"):
        read_pairs(path)


def test_a_mixture_names_the_column(questions: Path, tmp_path: Path) -> None:
    entry = {
        "name": "questions",
        "file": questions.name,
        "columns": ["text", "answer"],
        "instruction_column": "question",
        "document_instruction": None,
        "in_batch_negatives": True,
    }
    path = tmp_path / "mixture.json"
    path.write_text(json.dumps([entry]))
    (task,) = read_mixture(path)
    assert (task.columns, task.instruction_column, task.instructions) == (("text", "answer"), "question", ())
    data = load_training_data(DataConfig(mixture=str(path)), seed=0)
    assert data.pair_count == 8
    path.write_text(json.dumps([{**entry, "columns": "text"}]))
    with pytest.raises(DataError, match="columns is 'text'"):
        read_mixture(path)
