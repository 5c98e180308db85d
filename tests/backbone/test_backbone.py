"""A backbone: frozen, measured, shortened."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from promptembedder.backbone import Backbone, BackboneConfig, BackboneIdentity, TextTokenizer, load_backbone
from promptembedder.backbone.random_models import random_model, random_tokenizer
from promptembedder.errors import BackboneError

NewBackbone = Callable[..., Backbone]
IDS = torch.arange(1, 13)[None]


@pytest.fixture
def folder(tmp_path: Path, family: str, lively_backbones: None) -> Path:
    """A tiny backbone as `save_pretrained` writes it."""
    random_model(family, layers=None, dtype=torch.float32).save_pretrained(tmp_path / "backbone")
    random_tokenizer().save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


def from_folder(folder: Path, *, head: bool = False, layers: int | None = None, dtype: str = "float32") -> Backbone:
    return load_backbone(BackboneConfig(source=str(folder), dtype=dtype, layers=layers), head=head)


def outputs(backbone: Backbone) -> torch.Tensor:
    with torch.no_grad():
        return backbone.decoder(input_ids=IDS).last_hidden_state


def cut(backbone: Backbone, count: int) -> Backbone:
    """Cut off the later layers by hand."""
    for name in ("layers", "h"):
        if hasattr(backbone.decoder, name):
            setattr(backbone.decoder, name, getattr(backbone.decoder, name)[:count])
    backbone.decoder.config.num_hidden_layers = count
    return backbone


def test_a_folder_gives_the_model_that_was_saved_in_it(folder: Path, family: str, new_backbone: NewBackbone) -> None:
    loaded = from_folder(folder, head=True)
    assert torch.equal(outputs(loaded), outputs(new_backbone(family, head=True)))
    assert loaded.tokenizer.tokenize(["aé <|end|>"], max_length=20).ids.tolist() == (
        new_backbone(family).tokenizer.tokenize(["aé <|end|>"], max_length=20).ids.tolist()
    )


def test_a_folders_fingerprint_is_the_hash_of_its_weights(folder: Path) -> None:
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert from_folder(folder).identity == BackboneIdentity(
        source=str(folder), revision=None, dtype="float32", layers=3, fingerprint=f"sha256:{digest}"
    )


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_layers_keeps_the_first_ones(folder: Path, layers: int) -> None:
    short, whole = from_folder(folder, layers=layers), from_folder(folder)
    kept, every = short.model.state_dict(), whole.model.state_dict()
    assert kept.keys() <= every.keys()
    assert all(torch.equal(weight, every[name]) for name, weight in kept.items())
    assert short.identity.layers == layers
    torch.testing.assert_close(outputs(short), outputs(cut(whole, layers)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("layers", [0, 4, -1])
def test_a_number_of_layers_out_of_range_is_refused(new_backbone: NewBackbone, layers: int) -> None:
    with pytest.raises(BackboneError, match=f"layers must be between 1 and 3 for this backbone, got {layers}"):
        new_backbone("tiny-llama", layers=layers)


@pytest.mark.parametrize("head", [True, False])
def test_the_head_is_there_if_asked_for_and_the_decoder_never_has_one(
    family: str, head: bool, new_backbone: NewBackbone
) -> None:
    backbone = new_backbone(family, head=head)
    assert (backbone.model.get_output_embeddings() is not None) == head
    assert backbone.decoder.get_output_embeddings() is None
    assert torch.equal(outputs(backbone), outputs(new_backbone(family)))


def test_a_backbone_is_frozen_and_stays_in_evaluation(family: str, new_backbone: NewBackbone) -> None:
    backbone = new_backbone(family)
    torch.nn.Sequential(backbone).train()
    assert not any(module.training for module in backbone.modules())
    assert not any(weight.requires_grad for weight in backbone.parameters())


def test_the_scale_turns_a_row_of_the_table_into_what_the_first_layer_reads(
    family: str, new_backbone: NewBackbone
) -> None:
    backbone = new_backbone(family)
    inputs = backbone.model.get_input_embeddings()(torch.arange(260))
    torch.testing.assert_close(backbone.embedding_scale * backbone.input_embeddings, inputs, atol=1e-4, rtol=1e-4)
    assert backbone.mean_embedding_norm == pytest.approx(float(inputs.norm(dim=-1).mean()), rel=1e-4)
    assert backbone.dim == inputs.shape[1]


def test_a_scale_that_the_table_of_quirks_does_not_know_is_refused() -> None:
    """A family that scales its inputs would read soft tokens of the wrong size without a word."""
    model = random_model("tiny-llama", layers=1, dtype=torch.float32)
    model.get_input_embeddings().register_forward_hook(lambda _, __, out: 3.0 * out)
    ref = BackboneIdentity(source="odd", revision=None, dtype="float32", layers=1, fingerprint="")
    with pytest.raises(BackboneError, match=r"'odd' \(llama\) scales its input table by 3, expected 1: .*load.py"):
        Backbone(model, TextTokenizer(random_tokenizer(), needs_bos=False), ref)


def test_only_a_learned_table_limits_the_positions(family: str, new_backbone: NewBackbone) -> None:
    assert new_backbone(family).max_positions == (96 if family == "tiny-gpt2" else None)


def test_only_gemma_begins_a_text_without_being_told_to(family: str, new_backbone: NewBackbone) -> None:
    ids = new_backbone(family).tokenizer.tokenize(["a"], max_length=9).ids[0].tolist()
    assert (ids[0] == 256) == (family == "tiny-gemma3")


@pytest.mark.parametrize("family", ["tiny-llama"], indirect=True)
def test_a_folder_without_safetensors_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BackboneError, match=r"holds no .safetensors weights. Save the model with safetensors"):
        from_folder(folder)


@pytest.mark.parametrize("family", ["tiny-llama"], indirect=True)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_file_in_a_folder_is_refused_with_the_folders_name(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-30])
    with pytest.raises(BackboneError, match=f"cannot load backbone '{folder}'"):
        from_folder(folder)


@pytest.mark.parametrize("family", ["tiny-llama", "tiny-gpt2"], indirect=True)
@pytest.mark.parametrize("head", [True, False])
def test_a_folder_that_lacks_a_weight_is_refused(folder: Path, head: bool) -> None:
    """The missing weight was drawn at random, a new one at each load."""
    weights = load_file(folder / "model.safetensors")
    gone = next(
        name for name in sorted(weights) if name.endswith("mlp.up_proj.weight") or name.endswith("mlp.c_fc.weight")
    )
    save_file({name: weight for name, weight in weights.items() if name != gone}, folder / "model.safetensors")
    with pytest.raises(BackboneError, match=f"lacks 1 weights, .*{gone.split('.', 1)[1]}"):
        from_folder(folder, head=head)


@pytest.mark.parametrize("family", ["tiny-llama"], indirect=True)
def test_weights_of_another_shape_than_the_configuration_says_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    with pytest.raises(BackboneError, match=f"cannot load backbone '{folder}'"):
        from_folder(folder)


def test_a_hub_model_that_cannot_be_reached_is_refused() -> None:
    with pytest.raises(BackboneError, match="cannot load backbone 'no-such-org/no-such-model'"):
        load_backbone(BackboneConfig(source="no-such-org/no-such-model"), head=False)
