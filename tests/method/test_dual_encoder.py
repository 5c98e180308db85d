"""The same vector alone, in any batch, in any order and under any padding; and it is the one of the method."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from promptembedder import BackboneConfig, ModelConfig, PromptEmbedder, PrompterConfig
from promptembedder.backbone import prefill
from promptembedder.data import clean_text
from promptembedder.errors import ConfigError, DataError, WeightsError
from promptembedder.method import AlignmentConfig, RelaxationConfig, SoftTokenEncoder, TextEncoder
from promptembedder.model import DualEncoder, PromptedSentenceTransformer

NewModel = Callable[..., PromptEmbedder]
SlowVectors = Callable[[PromptEmbedder, Sequence[str], str], Tensor]
INSTRUCTION = "find the same thing"
ANY_TEXT = st.text(st.characters(), max_size=25)  # lone surrogates included


PREFIX, WITH_TEXT = {"placement": "prefix"}, {"with_text": True}
VARIANTS = [
    *((name, {}) for name in ("tiny-llama", "tiny-qwen3", "tiny-gemma3", "tiny-gpt2", "tiny-phi3")),
    *((name, PREFIX) for name in ("tiny-gemma3", "tiny-gpt2")),
    ("tiny-gemma3", WITH_TEXT),
    ("tiny-gpt2", PREFIX | WITH_TEXT),
]
each_variant = pytest.mark.parametrize(
    ("name", "changes"), VARIANTS, ids=["-".join([name, *map(str, changes.values())]) for name, changes in VARIANTS]
)


def vectors(model: PromptEmbedder, texts: list[str], **changes: Any) -> np.ndarray:
    return model.encode(texts, **{"prompt": INSTRUCTION, **changes})


def padded(features: dict[str, Any], left: int, right: int) -> dict[str, Any]:
    """The same features with more padding on either side, as losses make it that join columns."""
    ids, mask = features["input_ids"], features["attention_mask"]
    return {
        **features,
        "input_ids": F.pad(ids, (left, right), value=33),
        "attention_mask": F.pad(mask, (left, right)),
    }


def right_padded(features: dict[str, Any]) -> dict[str, Any]:
    order = (1 - features["attention_mask"]).argsort(dim=1, stable=True)
    return {**features, **{name: features[name].gather(1, order) for name in ("input_ids", "attention_mask")}}


def forward(model: PromptEmbedder, features: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model.eval()(features)["sentence_embedding"]


@pytest.mark.parametrize("placement", ["suffix", "prefix"])
@pytest.mark.every_family
def test_a_vector_is_that_of_the_method_read_plainly(
    family: str, placement: str, new_model: NewModel, slow_vectors: SlowVectors, texts: list[str]
) -> None:
    model = new_model(family, placement=placement)
    slow = slow_vectors(model, texts, INSTRUCTION).detach().numpy()
    np.testing.assert_allclose(vectors(model, texts), slow, atol=1e-5)


@pytest.mark.parametrize("placement", ["suffix", "prefix"])
def test_the_last_state_alone_may_be_the_vector(
    placement: str, new_model: NewModel, slow_vectors: SlowVectors, texts: list[str]
) -> None:
    model = new_model("tiny-qwen3", placement=placement, pooling="last")
    slow = slow_vectors(model, texts, INSTRUCTION).detach().numpy()
    np.testing.assert_allclose(vectors(model, texts), slow, atol=1e-5)


@pytest.mark.parametrize("alignment", ["linear", "vocabulary"])
def test_reader_and_prompter_may_be_of_different_families(
    alignment: str, new_model: NewModel, slow_vectors: SlowVectors, texts: list[str]
) -> None:
    model = new_model("tiny-gemma3", "tiny-gpt2", alignment=AlignmentConfig(kind=alignment))
    slow = slow_vectors(model, texts, INSTRUCTION).detach().numpy()
    np.testing.assert_allclose(vectors(model, texts), slow, atol=1e-5)


@each_variant
def test_a_text_has_the_same_vector_alone_and_in_any_batch(
    name: str, changes: dict[str, Any], new_model: NewModel, texts: list[str]
) -> None:
    """With soft tokens as prefix, padding between them and the text pushed them out of Gemma's sliding window."""
    model = new_model(name, **changes)
    alone = np.concatenate([vectors(model, [text]) for text in texts])
    for batch_size in (2, 6):
        np.testing.assert_allclose(vectors(model, texts, batch_size=batch_size), alone, atol=1e-5)
    np.testing.assert_allclose(vectors(model, texts[::-1])[::-1], alone, atol=1e-5)


@each_variant
def test_padding_on_either_side_changes_nothing(
    name: str, changes: dict[str, Any], new_model: NewModel, texts: list[str]
) -> None:
    model = new_model(name, **changes)
    features = model.preprocess(texts, prompt=INSTRUCTION)
    plain = forward(model, features)
    for other in (right_padded(features), padded(features, 0, 9), padded(features, 9, 0), padded(features, 4, 5)):
        torch.testing.assert_close(forward(model, other), plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["tiny-gemma3", "tiny-gpt2"])
@settings(max_examples=15)
@given(texts=st.lists(ANY_TEXT, min_size=1, max_size=5), data=st.data())
def test_any_texts_in_any_order_have_the_vectors_they_have_alone(
    name: str, texts: list[str], data: st.DataObject, shared_models: dict[str, PromptEmbedder]
) -> None:
    model = shared_models[name]
    order = data.draw(st.permutations(range(len(texts))))
    together = vectors(model, [texts[row] for row in order])
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    for row, vector in zip(order, together, strict=True):
        np.testing.assert_allclose(vectors(model, [texts[row]])[0], vector, atol=1e-5)


@pytest.fixture(scope="module")
def shared_models(lively_backbones: None) -> dict[str, PromptEmbedder]:
    """Made once: hypothesis asks them many times."""
    prompter = PrompterConfig(backbone=BackboneConfig(source="random:tiny-llama", dtype="float32"), lora_rank=4)
    return {
        name: PromptEmbedder.create(
            config=ModelConfig(prompter=prompter, reader=BackboneConfig(source=f"random:{name}", dtype="float32"))
        )
        for name in ("tiny-gemma3", "tiny-gpt2")
    }


def test_another_instruction_or_another_text_gives_another_vector(
    family: str, new_model: NewModel, texts: list[str]
) -> None:
    model = new_model(family)
    found = vectors(model, texts)
    assert np.abs(found - vectors(model, texts, prompt="count the verbs")).max(axis=1).min() > 1e-3
    distances = np.abs(found[:, None] - found[None]).max(axis=-1) + np.eye(len(texts))
    assert distances.min() > 1e-3


def test_conditioned_on_the_text_the_soft_tokens_depend_on_it(new_model: NewModel, texts: list[str]) -> None:
    model = new_model(with_text=True)
    features = model.preprocess(texts, prompt=INSTRUCTION)
    with torch.no_grad():
        soft = model.encoder.soft_tokens_of_batch(features, len(texts))
    assert float((soft[0] - soft[1]).abs().max()) > 1e-3


@each_variant
def test_columns_embedded_together_have_the_vectors_they_have_alone(
    name: str, changes: dict[str, Any], new_model: NewModel, texts: list[str]
) -> None:
    model = new_model(name, **changes).eval()
    rows = [(texts[:2], INSTRUCTION), (texts[2:3], INSTRUCTION), (texts[3:], "represent the document")]
    columns = [model.preprocess(some, prompt=instruction) for some, instruction in rows]
    alone = [forward(model, features) for features in columns]
    with torch.no_grad():
        model.encoder.embed_columns(columns)
    for features, expected in zip(columns, alone, strict=True):
        torch.testing.assert_close(features["sentence_embedding"], expected, atol=1e-5, rtol=0)
        assert forward(model, features) is features["sentence_embedding"]


# -- text is text ------------------------------------------------------------------------------------------------------

ODD_TEXTS = {
    "empty": "",
    "blank": " \n\t",
    "special": "<|end|>",
    "only specials": "<|start|><|end|><|end|>",
    "lone surrogate": "\ud800 and \udfff",
    "mixed scripts": "Übung 練習 упражнение تمرين 🙂",
    "nul": "a\x00b\x00",
    "controls": "\x01\x02\x7f\u200b\ufeff",
    "long": "word " * 20_000,
}


@each_variant
def test_any_text_has_a_finite_unit_vector(name: str, changes: dict[str, Any], new_model: NewModel) -> None:
    model = new_model(name, **changes)
    found = vectors(model, list(ODD_TEXTS.values()))
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)


def test_a_special_tokens_string_is_read_as_its_characters(new_model: NewModel) -> None:
    model = new_model()
    ids = model.preprocess(["<|end|>"])["input_ids"][0].tolist()
    characters = [model.preprocess([character])["input_ids"][0, -1].item() for character in "<|end|>"]
    assert ids[1:] == characters
    assert model.tokenizer.eos_token_id not in ids


def test_half_an_emoji_is_the_replacement_character(new_model: NewModel) -> None:
    model = new_model()
    np.testing.assert_array_equal(vectors(model, ["cut \ud83d"]), vectors(model, ["cut \ufffd"]))
    np.testing.assert_array_equal(
        vectors(model, ["a"], prompt="cut \ud83d"), vectors(model, ["a"], prompt="cut \ufffd")
    )


def test_a_text_over_the_limit_loses_its_end_and_is_counted_and_told(
    new_model: NewModel, caplog: pytest.LogCaptureFixture
) -> None:
    model = new_model(max_seq_length=9)  # one for the newline before the text
    found = vectors(model, ["12345678", "12345678 and more", "123456789", "1"])
    assert model.encoder.truncated_texts == 2
    assert "2 texts so far were longer than 9 tokens and lost their end" in caplog.text
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    assert np.abs(found[0] - found[3]).max() > 1e-3


def test_truncation_is_told_again_when_its_count_doubles_but_not_each_time(
    new_model: NewModel, caplog: pytest.LogCaptureFixture
) -> None:
    model = new_model(max_seq_length=2)
    for _ in range(8):
        model.preprocess(["too long"])
    assert model.encoder.truncated_texts == 8
    assert [record.args[0] for record in caplog.records if "lost their end" in record.message] == [1, 2, 4, 8]


@pytest.mark.parametrize("prompt", [None, "", "  \n"])
def test_without_an_instruction_the_default_one_stands_in(prompt: str | None, new_model: NewModel) -> None:
    model = new_model()
    default = vectors(model, ["a text"], prompt=model.encoder.config.default_instruction)
    np.testing.assert_array_equal(vectors(model, ["a text"], prompt=prompt), default)


def test_a_text_that_is_no_string_is_refused_with_its_type(new_model: NewModel, as_users_run_it: None) -> None:
    model = new_model()
    for value in (None, 3, b"bytes", ["a", "b"], ("query", "document")):
        with pytest.raises(DataError, match=f"a text must be a str, got {type(value).__name__}"):
            model.encode(["good", value])


@pytest.fixture
def as_users_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the type checks of this test suite, which would notice a wrong type first."""
    for cls in (PromptedSentenceTransformer, DualEncoder):
        monkeypatch.setattr(cls, "preprocess", inspect.unwrap(cls.preprocess))
    monkeypatch.setattr(SoftTokenEncoder, "instructed_features", inspect.unwrap(SoftTokenEncoder.instructed_features))
    monkeypatch.setattr(TextEncoder, "token_features", inspect.unwrap(TextEncoder.token_features))
    monkeypatch.setattr("promptembedder.method.text_encoder.clean_text", inspect.unwrap(clean_text))


def test_no_texts_have_no_vectors(new_model: NewModel) -> None:
    model = new_model()
    assert len(model.encode([])) == 0
    assert model.preprocess([])["input_ids"].shape == (0, 0)


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["suffix", "prefix"])
@pytest.mark.parametrize("with_text", [False, True])
def test_text_and_soft_tokens_never_exceed_the_positions_of_gpt2(
    placement: str, with_text: bool, new_model: NewModel
) -> None:
    model = new_model("tiny-gpt2", "tiny-gpt2", placement=placement, with_text=with_text, num_soft_tokens=7)
    long = ["x" * 500, "y" * 96, "z" * 89]
    seen: list[int] = []

    def watch(_: torch.nn.Module, __: tuple, kwargs: dict[str, Any]) -> None:
        seen.append(int(kwargs["position_ids"].max()))

    for decoder in (model.encoder.reader.decoder, model.encoder.prompter.backbone.decoder):
        decoder.register_forward_pre_hook(watch, with_kwargs=True)
    # beside a text a long instruction makes it give way; alone it must fit
    found = model.encode(long, prompt="find " * 100 if with_text else "find")
    assert model.max_seq_length == 96 - 7
    assert max(seen) == 95
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)


def test_an_instruction_that_would_be_cut_is_refused(new_model: NewModel) -> None:
    """It once lost its end without a word, and the vectors were those of another instruction."""
    model = new_model("tiny-gpt2", "tiny-gpt2")
    room = 96 - model.encoder.config.num_soft_tokens
    with pytest.raises(ConfigError, match=f"an instruction is longer than the {room} tokens that are read"):
        model.encode(["a text"], prompt="find " * 100)


def test_the_limit_can_be_changed_within_the_positions_that_exist(new_model: NewModel) -> None:
    model = new_model("tiny-gpt2")
    model.max_seq_length = 91
    assert model.preprocess(["x" * 200])["input_ids"].shape == (1, 91)
    for value in (92, 0):
        with pytest.raises(ConfigError, match=f"max_seq_length must be between 1 and 91, got {value}"):
            model.max_seq_length = value
    assert model.max_seq_length == 91


def test_more_soft_tokens_than_positions_are_refused(new_model: NewModel) -> None:
    """Texts were cut to nothing, and past that the table of positions was overrun."""
    with pytest.raises(ConfigError, match="num_soft_tokens must be at most 95 for this reader, got 96"):
        new_model("tiny-gpt2", num_soft_tokens=96)
    assert new_model("tiny-gpt2", num_soft_tokens=95).max_seq_length == 1


# -- what is not finite -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_an_error_and_no_vector(value: float, new_model: NewModel) -> None:
    model = new_model()
    with torch.no_grad():
        model.encoder.alignment.bias[0] = value
    with pytest.raises(WeightsError, match="not finite: the weights contain NaN or inf. Load an earlier checkpoint"):
        model.encode(["a"])
    with pytest.raises(WeightsError, match="not finite"):
        model.encode_instructions(["a"], ["find"])


def test_noise_of_gumbel_is_in_training_only(new_model: NewModel) -> None:
    model = new_model(relaxation=RelaxationConfig(kind="gumbel"))
    features = model.preprocess(["a text"], prompt=INSTRUCTION)
    calm = [forward(model, features) for _ in range(2)]
    model.encoder.store.clear()
    assert torch.equal(calm[0], calm[1])
    assert torch.equal(calm[0], forward(model, features))
    model.train()
    with torch.no_grad():
        noisy = [model(features)["sentence_embedding"] for _ in range(2) if model.encoder.store.clear() is None]
    assert float((noisy[0] - noisy[1]).abs().max()) > 1e-4


def test_diagnostics_of_the_soft_tokens_are_taken_in_training(new_model: NewModel) -> None:
    model = new_model()
    model.encode(["a"])
    assert model.encoder.diagnostics == {}
    model.train()(model.preprocess(["a"]))
    assert set(model.encoder.diagnostics) == {"soft_token_entropy", "soft_token_norm_ratio", "soft_token_cosine"}


def test_a_text_that_comes_twice_in_a_step_is_read_once(new_model: NewModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = new_model().train()
    read: list[int] = []

    def counted(decoder: object, ids: Tensor, mask: Tensor, **options: object) -> object:
        read.append(len(ids))
        return prefill(decoder, ids, mask, **options)

    monkeypatch.setattr("promptembedder.method.soft_token_encoder.prefill", counted)
    columns = [
        model.preprocess(["red car", "blue", "red car"], prompt="find"),
        model.preprocess(["blue", "a much longer text about an old house"], prompt="tell"),
    ]
    model.encoder.embed_columns(columns)
    assert sum(read) == 3
    first = columns[0]["sentence_embedding"]
    assert torch.equal(first[0], first[2])
    assert not torch.allclose(first[1], columns[1]["sentence_embedding"][0], atol=1e-3)  # another instruction
