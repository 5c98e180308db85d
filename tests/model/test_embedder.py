"""What users touch."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from promptembedder import PromptEmbedder
from promptembedder.errors import BackboneError, ConfigError, DataError, ModelFormatError
from promptembedder.method import soft_token_encoder
from promptembedder.model import Encoder, embedder

NewModel = Callable[..., PromptEmbedder]
INSTRUCTIONS = ["find the answer", "tell the mood", "name the language"]


@pytest.fixture
def model(new_model: NewModel) -> PromptEmbedder:
    return new_model("tiny-gemma3")


# -- many instructions -------------------------------------------------------------------------------------------------


def test_many_instructions_in_one_pass_give_what_each_gives_alone(
    family: str, new_model: NewModel, texts: list[str]
) -> None:
    model = new_model(family)
    alone = np.stack([model.encode(texts, prompt=instruction) for instruction in INSTRUCTIONS])
    for batch_size in (4, 32):
        together = model.encode_instructions(texts, INSTRUCTIONS, batch_size=batch_size)
        assert together.dtype == np.float32
        np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("instruction", ["", "  ", " find the answer\n", "half an emoji \ud83d", "find the answer"])
def test_an_instruction_means_the_same_in_every_call(model: PromptEmbedder, instruction: str) -> None:
    """`encode` cleans and strips its prompt and has a default for an empty one; the others took it as it came."""
    vectors = model.encode(["a text"], prompt=instruction)
    np.testing.assert_allclose(model.encode_instructions(["a text"], [instruction])[0], vectors, atol=1e-5)
    model.compile_instructions([instruction])
    np.testing.assert_allclose(model.encode(["a text"], prompt=instruction), vectors, atol=1e-5)
    default = model.encoder.config.default_instruction
    expected = instruction.replace("\ud83d", "\ufffd").strip() or default
    assert torch.equal(model.soft_tokens(instruction), model.soft_tokens(expected))


def test_each_text_is_read_once_however_many_instructions_there_are(
    model: PromptEmbedder, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    prefill = soft_token_encoder.prefill

    def counted(decoder: object, ids: torch.Tensor, mask: torch.Tensor, **options: object) -> object:
        read.append(len(ids))
        return prefill(decoder, ids, mask, **options)

    monkeypatch.setattr(soft_token_encoder, "prefill", counted)
    model.encode_instructions(texts, INSTRUCTIONS, batch_size=4)
    assert sum(read) == len(texts)


def test_no_texts_or_no_instructions_give_an_empty_array(model: PromptEmbedder) -> None:
    assert model.encode_instructions([], INSTRUCTIONS).shape == (3, 0, 48)
    assert model.encode_instructions(["a"], []).shape == (0, 1, 48)


def test_one_pass_gives_tensors_shows_a_bar_and_truncates_as_encode_does(
    model: PromptEmbedder, texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """`encode_instructions` had none of these options of `encode`, and ignored `truncate_dim`."""
    model.truncate_dim = 8
    alone = np.stack([model.encode(texts, prompt=instruction) for instruction in INSTRUCTIONS])
    capsys.readouterr()
    tensor = model.encode_instructions(texts, INSTRUCTIONS, convert_to_tensor=True, show_progress_bar=True)
    assert isinstance(tensor, torch.Tensor) and not tensor.requires_grad
    np.testing.assert_allclose(tensor.numpy(), alone, atol=1e-5)
    assert f"{len(texts)}/{len(texts)}" in capsys.readouterr().err
    assert isinstance(model.encode_instructions(texts, INSTRUCTIONS), np.ndarray)
    assert capsys.readouterr().err == ""


def test_prompts_and_dimensions_given_on_loading_override_the_saved_ones(model: PromptEmbedder, tmp_path: Path) -> None:
    """Both are arguments of SentenceTransformer, but `from_pretrained` had neither."""
    model.prompts = {"query": INSTRUCTIONS[0], "document": INSTRUCTIONS[1]}
    model.save(str(tmp_path / "saved"))
    loaded = PromptEmbedder.from_pretrained(
        tmp_path / "saved", truncate_dim=8, prompts={"query": INSTRUCTIONS[2]}, device="cpu"
    )
    assert loaded.prompts == {"query": INSTRUCTIONS[2], "document": INSTRUCTIONS[1]}
    expected = model.encode(["a"], prompt=INSTRUCTIONS[2])[:, :8]
    np.testing.assert_allclose(loaded.encode_query(["a"]), expected, atol=1e-6)
    for dim in (0, 49):
        with pytest.raises(ConfigError, match=f"truncate_dim must be between 1 and 48, got {dim}"):
            PromptEmbedder.from_pretrained(tmp_path / "saved", truncate_dim=dim, device="cpu")


@pytest.mark.parametrize("changes", [{"placement": "prefix"}, {"with_text": True}])
def test_one_pass_is_refused_where_texts_are_read_under_their_instruction(changes: dict, new_model: NewModel) -> None:
    with pytest.raises(ConfigError, match="needs placement 'suffix' and a prompter.template without"):
        new_model(**changes).encode_instructions(["a"], INSTRUCTIONS)


def test_soft_tokens_that_depend_on_the_text_cannot_be_asked_for_alone(new_model: NewModel) -> None:
    model = new_model(with_text=True)
    for ask in (lambda: model.soft_tokens("find"), lambda: model.compile_instructions(["find"])):
        with pytest.raises(ConfigError, match="soft tokens depend on the text here"):
            ask()


def test_soft_tokens_have_the_readers_width_and_no_gradient(model: PromptEmbedder) -> None:
    soft = model.soft_tokens("find")
    assert soft.shape == (5, 3 * 48)  # at the input and two deeper layers
    assert soft.dtype == torch.float32
    assert not soft.requires_grad


# -- a SentenceTransformer ---------------------------------------------------------------------------------------------


def test_prompts_by_name_are_instructions(model: PromptEmbedder) -> None:
    model.prompts = {"query": INSTRUCTIONS[0], "document": INSTRUCTIONS[1], "other": INSTRUCTIONS[2]}
    expected = [model.encode(["a", "b"], prompt=instruction) for instruction in INSTRUCTIONS]
    np.testing.assert_array_equal(model.encode_query(["a", "b"]), expected[0])
    np.testing.assert_array_equal(model.encode_document(["a", "b"]), expected[1])
    np.testing.assert_array_equal(model.encode(["a", "b"], prompt_name="other"), expected[2])
    model.default_prompt_name = "query"
    np.testing.assert_array_equal(model.encode(["a", "b"]), expected[0])


def test_an_instruction_is_not_glued_to_the_text(model: PromptEmbedder) -> None:
    features = model.preprocess(["a text"], prompt=INSTRUCTIONS[0])
    assert features["instruction"] == INSTRUCTIONS[0]
    assert torch.equal(features["input_ids"], model.preprocess(["a text"])["input_ids"])


def test_one_text_gives_one_vector_and_tensors_come_if_asked_for(model: PromptEmbedder) -> None:
    assert model.encode("a text").shape == (48,)
    tensor = model.encode(["a text"], convert_to_tensor=True)
    np.testing.assert_array_equal(tensor.numpy(), model.encode(["a text"]))
    assert model.encode(["a text"], truncate_dim=8).shape == (1, 8)


def test_it_says_its_width_and_its_limit(model: PromptEmbedder) -> None:
    assert model.get_embedding_dimension() == 48
    assert model.max_seq_length == 512
    assert model.tokenizer is model.encoder.reader.tokenizer.hf


def test_similarity_is_the_cosine(model: PromptEmbedder) -> None:
    vectors = model.encode(["a", "b"])
    np.testing.assert_allclose(model.similarity(vectors, vectors).numpy(), vectors @ vectors.T, atol=1e-5)


def test_it_is_an_encoder(model: PromptEmbedder) -> None:
    assert isinstance(model, Encoder)
    assert not isinstance(object(), Encoder)


# -- making one --------------------------------------------------------------------------------------------------------


def test_one_name_stands_for_both_backbones() -> None:
    model = PromptEmbedder.create(prompter="random:tiny-llama", device="cpu")
    assert (
        model.encoder.reader.identity.source == model.encoder.prompter.backbone.identity.source == "random:tiny-llama"
    )
    assert model.encoder.reader is not model.encoder.prompter.backbone


def test_a_configuration_and_names_together_are_refused(new_config: Callable) -> None:
    with pytest.raises(ConfigError, match="give either prompter and reader or config, not both"):
        PromptEmbedder.create(reader="random:tiny-llama", config=new_config())


def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(BackboneError, match="no random model is named 'nobody'"):
        PromptEmbedder.create(prompter="random:nobody")


def test_automatic_dtype_gives_float32_vectors(texts: list[str]) -> None:
    model = PromptEmbedder.create(prompter="random:tiny-llama", reader="random:tiny-gemma3", device="cpu")
    vectors = model.encode(texts)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("role", ["reader", "prompter"])
def test_a_model_in_bfloat16_is_near_the_one_in_float32(role: str, new_config: Callable, texts: list[str]) -> None:
    from dataclasses import replace

    config = new_config("tiny-qwen3")
    low = replace(config.reader, dtype="bfloat16")
    if role == "reader":
        other = replace(config, reader=low)
    else:
        backbone = replace(config.prompter.backbone, dtype="bfloat16")
        other = replace(config, prompter=replace(config.prompter, backbone=backbone))
    exact, rough = (PromptEmbedder.create(config=each, device="cpu").encode(texts) for each in (config, other))
    assert (exact * rough).sum(axis=1).min() > 0.99


def test_many_instructions_refuse_a_text_that_is_no_string(
    model: PromptEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import inspect

    from promptembedder.data import check_text_list, clean_text

    monkeypatch.setattr(PromptEmbedder, "encode_instructions", inspect.unwrap(PromptEmbedder.encode_instructions))
    for checked in (clean_text, check_text_list):
        monkeypatch.setattr(embedder, checked.__name__, inspect.unwrap(checked))
    with pytest.raises(DataError, match="a text must be a str, got int"):
        model.encode_instructions(["a", 3], INSTRUCTIONS)


def test_a_hub_id_that_cannot_be_had_is_one_clear_error() -> None:
    with pytest.raises(ModelFormatError, match="nobody/nothing is no folder, and the hub does not give it"):
        PromptEmbedder.from_pretrained("nobody/nothing")


# -- what users try ----------------------------------------------------------------------------------------------------


def test_any_sequence_of_texts_is_a_batch(new_model: NewModel) -> None:
    """A pandas Series was taken for one text and refused."""

    class Series:
        """Behaves as a pandas Series: it has a length and is indexed by labels, not by positions."""

        def __iter__(self) -> Iterator[str]:
            return iter(("a", "b"))

        def __len__(self) -> int:
            return 2

    model = new_model()
    expected = model.encode(["a", "b"])
    for texts in (Series(), ("a", "b"), {"a": 0, "b": 1}.keys(), np.array(["a", "b"])):
        assert np.array_equal(model.encode(texts), expected)
        assert np.array_equal(model.encode_query(texts), expected)
    assert model.encode("a").shape == expected[0].shape


def test_constructor_opens_a_saved_model(new_model: NewModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`PromptEmbedder("saved/one")` refused a model of its own."""
    model = new_model()
    model.prompts["query"] = "find it"
    model.save(str(tmp_path / "saved" / "one"))
    monkeypatch.chdir(tmp_path)
    opened = PromptEmbedder("saved/one", device="cpu")
    assert opened.prompts["query"] == "find it"
    assert not opened.training
    assert np.array_equal(opened.encode(["a"], prompt="x"), model.encode(["a"], prompt="x"))
    assert PromptEmbedder("saved/one", device="cpu", prompts={"query": "y"}).prompts["query"] == "y"


def test_conversion_to_another_dtype_is_refused(new_model: NewModel) -> None:
    """`model.half()` succeeded, and `encode` then failed in a matrix product."""
    model = new_model()
    for convert in (model.half, model.bfloat16, lambda: model.to(dtype=torch.float16)):
        with pytest.raises(
            ConfigError, match=r"cannot be converted to torch\.b?float16: its trained parts need float32"
        ):
            convert()
    assert model.to("cpu") is model
