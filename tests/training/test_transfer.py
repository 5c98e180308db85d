"""Laws of the move: the same prompter on another reader."""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from promptembedder import BackboneConfig, ModelConfig, PromptEmbedder
from promptembedder.backbone import RANDOM_MODELS
from promptembedder.data import Pair
from promptembedder.errors import BackboneError, ConfigError, DataError, ModelFormatError
from promptembedder.method import AlignmentConfig, LinearAlignment
from promptembedder.method.text_encoder import trained_state
from promptembedder.model import TransferConfig, transfer_encoder
from promptembedder.training import (
    OptimConfig,
    build_task_data,
    build_transferred_model,
    choose_early_exit_fraction,
    transfer_to,
)
from promptembedder.training.data import TrainingData

pytestmark = pytest.mark.slow

NewModel = Callable[..., PromptEmbedder]
SEEN, UNSEEN = "find the same thing", "say what it is about"
TEXTS = ["a red house", "", "the river is cold", "fast fast car", "Grüße"]
PAIRS = [
    Pair(f"a {one} thing", f"the thing is {one}", None) for one in "red green blue cold warm fast slow old".split()
]
TINY = sorted(name for name in RANDOM_MODELS if name.startswith("tiny-"))


def reader(name: str) -> BackboneConfig:
    return BackboneConfig(source=f"random:{name}", dtype="float32")


@pytest.fixture
def data() -> TrainingData:
    return TrainingData(build_task_data(PAIRS, "pairs", instructions=[SEEN]))


def moved(model: PromptEmbedder, name: str, **options: object) -> PromptEmbedder:
    return transfer_to(
        model, reader(name), PAIRS, steps=2, instructions=[SEEN], optim=OptimConfig(batch_size=4), **options
    )


def vectors(model: PromptEmbedder, prompt: str = UNSEEN) -> np.ndarray:
    return model.encode(TEXTS, prompt=prompt)


def test_compiled_instructions_stay_compiled_for_the_new_reader(new_model: NewModel) -> None:
    """`transfer_to` dropped them without a word."""
    model = new_model("tiny-llama")
    model.compile_instructions([UNSEEN])
    assert set(moved(model, "tiny-gemma3").encoder.parts().compiled) == {UNSEEN}


def test_a_move_to_the_same_reader_gives_the_same_vectors(family: str, new_model: NewModel) -> None:
    model = new_model(family, "tiny-llama", text_pooling_layer=2)
    same = transfer_to(model, model.encoder.config.reader, steps=0)
    assert same.readers == (f"random:{family}",)
    for prompt in (SEEN, UNSEEN):
        np.testing.assert_allclose(vectors(same, prompt), vectors(model, prompt), atol=1e-4)


@pytest.mark.parametrize("name", TINY)
def test_every_family_can_be_moved_to_and_the_old_model_stays_as_it_was(name: str, new_model: NewModel) -> None:
    model = new_model("tiny-qwen3", "tiny-llama")
    before, weights = vectors(model), {k: w.clone() for k, w in trained_state(model.encoder.prompter).items()}
    new = moved(model, name)
    for prompt in (SEEN, UNSEEN):
        found = vectors(new, prompt)
        assert found.shape == (len(TEXTS), new.encoder.reader.dim)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert np.abs(vectors(new, SEEN) - vectors(new, UNSEEN)).max() > 1e-4
    np.testing.assert_array_equal(vectors(model), before)
    assert new.encoder.prompter is model.encoder.prompter
    for key, weight in trained_state(new.encoder.prompter).items():
        assert torch.equal(weight, weights[key]), key
    assert new.encoder.config.num_soft_tokens == model.encoder.config.num_soft_tokens


def test_training_changes_the_alignment_side_and_nothing_else(new_model: NewModel) -> None:
    model = new_model("tiny-qwen3", "tiny-llama")
    start, trained = transfer_to(model, reader("tiny-gemma3"), steps=0), moved(model, "tiny-gemma3")
    changed = {
        name.split(".")[0]
        for (name, before), (_, after) in zip(
            start.encoder.named_parameters(), trained.encoder.named_parameters(), strict=True
        )
        if not torch.equal(before, after)
    }
    assert changed == {"alignment", "deep"}


def test_while_training_there_is_no_prompter_and_what_it_said_stands_in(
    new_model: NewModel, data: TrainingData
) -> None:
    model = new_model("tiny-qwen3", "tiny-llama")
    away, fit = build_transferred_model(model, TransferConfig(reader=reader("tiny-gemma3")), data)
    assert away.encoder.prompter is None
    assert fit.shared_strings == 255
    assert not any("prompter" in name for name, _ in away.encoder.named_parameters())
    seen = vectors(away, SEEN)
    with pytest.raises(ConfigError, match="is not compiled and the model was loaded without its prompter"):
        vectors(away, UNSEEN)
    away.encoder.attach_prompter(model.encoder.prompter)
    np.testing.assert_allclose(vectors(away, SEEN), seen, atol=1e-6)
    vectors(away, UNSEEN)


def test_an_encoder_that_lets_go_of_its_prompter_gives_the_same_vectors_and_saves_the_same_file(
    new_model: NewModel, tmp_path: Path
) -> None:
    model = new_model("tiny-qwen3", "tiny-llama")
    model.save(str(tmp_path / "old"))
    before = vectors(model, SEEN)
    model.encoder.offload_prompter([f" {SEEN} "])
    assert model.encoder.prompter is None
    np.testing.assert_array_equal(vectors(model, SEEN), before)
    model.save(str(tmp_path / "new"))
    old, new = ((tmp_path / name / "prompter.safetensors").read_bytes() for name in ("old", "new"))
    assert old == new


def test_a_carried_alignment_is_the_old_one_followed_by_the_map_between_the_tables(new_model: NewModel) -> None:
    model = new_model("tiny-qwen3", "tiny-llama")
    new = transfer_encoder(model.encoder, TransferConfig(reader=reader("tiny-gemma3"))).encoder
    old, alignment = model.encoder.alignment, new.alignment
    assert isinstance(old, LinearAlignment)
    assert isinstance(alignment, LinearAlignment)
    ids, share = torch.arange(1, 256), (torch.arange(255) + 10.0).rsqrt().double().sqrt()[:, None]
    with torch.no_grad():
        source, target = (one.reader.model.get_input_embeddings()(ids).double() for one in (model.encoder, new))
        with_one = torch.cat([source, torch.ones(255, 1, dtype=torch.float64)], dim=1)
        slow = torch.linalg.lstsq(share * with_one, share * target).solution
        slow = slow * (target.norm(dim=-1).mean() / (with_one @ slow).norm(dim=-1).mean())
        expected = torch.cat([old.base + old.delta, old.bias[None]]).double() @ slow[:-1]
        expected[-1] += slow[-1]
        found = torch.cat([alignment.base, alignment.bias[None]]).double()
    torch.testing.assert_close(found, expected, atol=1e-2 * float(expected.abs().max()), rtol=0)  # up to the ridge


def test_a_fresh_or_random_start_owes_the_old_alignment_nothing(new_model: NewModel) -> None:
    model, other = new_model("tiny-qwen3", "tiny-llama"), new_model("tiny-qwen3", "tiny-llama")
    with torch.no_grad():
        other.encoder.alignment.delta.add_(1.0)
    for move in (
        TransferConfig(reader=reader("tiny-gemma3"), compose_alignment=False),
        TransferConfig(reader=reader("tiny-gemma3"), alignment=AlignmentConfig(start="random")),
    ):
        one, two = (transfer_encoder(each.encoder, move).encoder.alignment for each in (model, other))
        assert torch.equal(one.base, two.base)
        assert torch.equal(one.bias, two.bias)


@pytest.mark.parametrize(
    "alignment",
    [AlignmentConfig(kind="vocabulary"), AlignmentConfig(start="procrustes"), AlignmentConfig(rank=2)],
    ids=["vocabulary", "procrustes", "rank"],
)
def test_other_starts_are_trained_saved_and_loaded(
    alignment: AlignmentConfig, new_model: NewModel, tmp_path: Path
) -> None:
    model = new_model("tiny-qwen3", "tiny-llama")
    data = TrainingData(build_task_data(PAIRS, "pairs", instructions=[SEEN]))
    new, _ = build_transferred_model(model, TransferConfig(reader=reader("tiny-gemma3"), alignment=alignment), data)
    new.encoder.attach_prompter(model.encoder.prompter)
    new.save(str(tmp_path / "model"))
    loaded = PromptEmbedder.from_pretrained(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(vectors(loaded), vectors(new))


def test_alignments_for_several_readers_come_back_each_on_its_own(new_model: NewModel, tmp_path: Path) -> None:
    model = new_model("tiny-qwen3", "tiny-llama")
    model.compile_instructions([SEEN])
    second = moved(model, "tiny-gemma3")
    third = moved(second, "tiny-gpt2")
    assert third.readers == ("random:tiny-gpt2", "random:tiny-gemma3", "random:tiny-qwen3")
    third.save(str(tmp_path / "model"))
    for one, name in ((third, None), (second, "random:tiny-gemma3"), (model, "random:tiny-qwen3")):
        loaded = PromptEmbedder.from_pretrained(tmp_path / "model", reader=name, device="cpu")
        assert loaded.readers[0] == (name or "random:tiny-gpt2")
        np.testing.assert_array_equal(vectors(loaded), vectors(one))
        loaded.save(
            str(tmp_path / "again"),
        )
        again = PromptEmbedder.from_pretrained(tmp_path / "again", device="cpu")
        assert set(again.readers) == set(third.readers)
        np.testing.assert_array_equal(vectors(again), vectors(one))
    light = PromptEmbedder.from_pretrained(
        tmp_path / "model", reader="random:tiny-qwen3", with_prompter=False, device="cpu"
    )
    np.testing.assert_array_equal(vectors(light, SEEN), vectors(model, SEEN))


def test_a_moved_model_keeps_no_difference_beside_its_alignment(new_model: NewModel, tmp_path: Path) -> None:
    model = new_model("tiny-qwen3", "tiny-llama")
    moved(model, "tiny-gemma3").save(str(tmp_path / "model"))
    assert "delta" not in load_file(tmp_path / "model" / "alignment.safetensors")
    assert "delta" in load_file(tmp_path / "model" / "alignment.1.safetensors")


def test_a_trained_move_is_saved_in_fewer_bytes_and_comes_back_exactly(new_model: NewModel, tmp_path: Path) -> None:
    model = moved(new_model("tiny-qwen3", "tiny-llama"), "tiny-gemma3")
    model.save(str(tmp_path / "model"))
    saved = load_file(tmp_path / "model" / "alignment.safetensors")
    deep = {name for name in saved if name.startswith("deep.")}
    assert deep
    assert {name for name, tensor in saved.items() if tensor.dtype == torch.bfloat16 and tensor.ndim} == deep
    loaded = PromptEmbedder.from_pretrained(tmp_path / "model", device="cpu")
    assert all(weight.dtype == torch.float32 for weight in trained_state(loaded.encoder).values())
    np.testing.assert_array_equal(vectors(loaded), vectors(model))


def test_training_the_old_model_on_does_not_reach_into_the_moved_one(new_model: NewModel, tmp_path: Path) -> None:
    model = new_model("tiny-qwen3", "tiny-llama")
    before, new = vectors(model), moved(model, "tiny-gemma3")
    with torch.no_grad():
        for weight in (*model.encoder.alignment.parameters(), *model.encoder.deep.parameters()):
            weight.add_(1.0)
    new.save(str(tmp_path / "model"))
    loaded = PromptEmbedder.from_pretrained(tmp_path / "model", reader="random:tiny-qwen3", device="cpu")
    np.testing.assert_array_equal(vectors(loaded), before)


def test_moving_back_replaces_that_reader(new_model: NewModel) -> None:
    there = moved(new_model("tiny-qwen3", "tiny-llama"), "tiny-gemma3")
    assert moved(there, "tiny-qwen3").readers == ("random:tiny-qwen3", "random:tiny-gemma3")


def test_the_saved_prompter_is_the_same_file(new_model: NewModel, data: TrainingData, tmp_path: Path) -> None:
    model = new_model("tiny-qwen3", "tiny-llama")
    model.save(str(tmp_path / "old"))
    away, _ = build_transferred_model(model, TransferConfig(reader=reader("tiny-gemma3")), data)
    away.save(str(tmp_path / "new"))
    old, new = ((tmp_path / name / "prompter.safetensors").read_bytes() for name in ("old", "new"))
    assert old == new


def test_the_earliest_exit_that_costs_no_loss_is_chosen(new_model: NewModel, data: TrainingData) -> None:
    model, _ = build_transferred_model(
        new_model("tiny-qwen3", "tiny-llama"), TransferConfig(reader=reader("tiny-gemma3")), data
    )
    depth, losses = choose_early_exit_fraction(model, data)
    assert model.early_exit_fraction == depth == min(one for one, loss in losses.items() if loss <= 1.02 * losses[1.0])
    assert losses[0.4] != losses[1.0]  # the first of 3 layers
    assert losses[0.7] == pytest.approx(losses[1.0], abs=1e-6)  # two: of the last one keys and values are enough


def test_no_exit_is_tried_above_the_text_s_own_states(new_model: NewModel, data: TrainingData) -> None:
    model, _ = build_transferred_model(
        new_model("tiny-qwen3", "tiny-llama"), TransferConfig(reader=reader("tiny-gemma3"), text_pooling_layer=2), data
    )
    assert list(choose_early_exit_fraction(model, data)[1]) == [0.5, 0.6, 0.7, 0.8, 1.0]


def test_an_exit_goes_along_with_a_move_or_is_named(new_model: NewModel, data: TrainingData) -> None:
    model = new_model("tiny-qwen3", "tiny-llama", early_exit_fraction=0.4)
    for named, depth in ((None, 0.4), (0.9, 0.9)):
        moved, _ = build_transferred_model(
            model, TransferConfig(reader=reader("tiny-gemma3"), early_exit_fraction=named), data
        )
        assert moved.early_exit_fraction == depth


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_steps_without_data_are_refused(new_model: NewModel) -> None:
    with pytest.raises(ConfigError, match="5 steps need data. Give pairs, or steps=0"):
        transfer_to(new_model(), reader("tiny-gemma3"), steps=5)


def test_a_model_without_its_prompter_cannot_be_moved(new_model: NewModel, tmp_path: Path) -> None:
    new_model().save(str(tmp_path / "model"))
    light = PromptEmbedder.from_pretrained(tmp_path / "model", with_prompter=False, device="cpu")
    with pytest.raises(ConfigError, match="loaded without its prompter and cannot be moved"):
        transfer_to(light, reader("tiny-gemma3"), steps=0)


def test_soft_tokens_that_depend_on_texts_cannot_be_moved(new_model: NewModel) -> None:
    with pytest.raises(ConfigError, match="prompter.template contains {text}"):
        transfer_to(new_model(with_text=True), reader("tiny-gemma3"), steps=0)


def test_a_third_backbone_is_refused_and_the_known_ones_are_named(new_model: NewModel, tmp_path: Path) -> None:
    moved(new_model("tiny-qwen3", "tiny-llama"), "tiny-gemma3").save(str(tmp_path / "model"))
    with pytest.raises(ModelFormatError, match="random:tiny-gemma3, random:tiny-qwen3, none for 'random:tiny-gpt2'"):
        PromptEmbedder.from_pretrained(tmp_path / "model", reader="random:tiny-gpt2")


def test_a_table_with_nan_is_refused_and_both_sides_are_named(backbone_folder: Path, new_model: NewModel) -> None:
    weights = load_file(backbone_folder / "model.safetensors")
    weights["model.embed_tokens.weight"][5, 3] = float("nan")
    save_file(weights, backbone_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        BackboneError, match=r"cannot move from 'random:tiny-qwen3' to '.*backbone': .* holds NaN or inf"
    ):
        transfer_to(new_model("tiny-qwen3", "tiny-llama"), str(backbone_folder), steps=0)


def test_a_model_of_another_modality_is_refused_and_both_sides_are_named(
    backbone_folder: Path, new_model: NewModel
) -> None:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32)
    ViTModel(config).save_pretrained(backbone_folder)
    with pytest.raises(BackboneError, match=r"cannot move from 'random:tiny-qwen3' to '.*backbone': ") as error:
        transfer_to(new_model("tiny-qwen3", "tiny-llama"), str(backbone_folder), steps=0)
    assert "\n" not in str(error.value)


def test_no_shared_strings_are_refused_and_both_sides_are_named(
    new_model: NewModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = new_model("tiny-qwen3", "tiny-llama")
    none = torch.zeros(0, dtype=torch.long)
    monkeypatch.setattr("promptembedder.method.alignment.shared_token_ids", lambda *_: (none, none))
    with pytest.raises(BackboneError, match="cannot move from 'random:tiny-qwen3' to 'random:tiny-gemma3': .* share 0"):
        transfer_to(model, reader("tiny-gemma3"), steps=0)


def test_configurations_differ_in_the_reader_alone(new_model: NewModel) -> None:
    model = new_model("tiny-qwen3", "tiny-llama", text_pooling_layer=2)
    new = transfer_to(model, reader("tiny-gemma3"), steps=0).encoder.config
    old = dataclasses.replace(model.encoder.config, reader=new.reader, text_pooling_layer=None, alignment=new.alignment)
    assert isinstance(new, ModelConfig)
    assert new == old


def test_pairs_may_be_tuples(new_model: NewModel) -> None:
    """A list of tuples ended in an AttributeError, and one of single texts would have been letters."""
    model = new_model("tiny-llama")
    rows = [(pair.anchor, pair.positive) for pair in PAIRS]
    optim = OptimConfig(batch_size=4)
    from_tuples = transfer_to(model, reader("tiny-gemma3"), rows, steps=1, instructions=[SEEN], optim=optim)
    from_pairs = transfer_to(model, reader("tiny-gemma3"), PAIRS, steps=1, instructions=[SEEN], optim=optim)
    np.testing.assert_array_equal(vectors(from_tuples), vectors(from_pairs))
    for wrong in (["ab"], [("a",)], [("a", 1)]):
        with pytest.raises(DataError, match=r"a pair must be a Pair or \(query, text\), got"):
            inspect.unwrap(transfer_to)(model, reader("tiny-gemma3"), wrong, steps=1)  # without the suite's type checks
