"""How the parts come to be."""

from collections.abc import Callable

import pytest
import torch

from promptembedder.backbone import Backbone
from promptembedder.errors import BackboneError
from promptembedder.method import (
    AlignmentConfig,
    LinearAlignment,
    VocabularyAlignment,
    alignment_fit,
    build_parts,
    closed_form_map,
    fit_alignment,
)

NewBackbone = Callable[..., Backbone]


def test_the_linear_start_maps_the_inputs_of_shared_strings_onto_each_other(new_backbone: NewBackbone) -> None:
    """In the scale that the first layers read: Gemma's table is smaller than its inputs."""
    prompter, reader = new_backbone("tiny-gemma3", head=True), new_backbone("tiny-qwen3")
    alignment = fit_alignment(prompter, reader, AlignmentConfig(ridge=1e-3))
    assert isinstance(alignment, LinearAlignment)
    ids = torch.arange(1, 256)  # both vocabularies are the bytes; Gemma's first row is its padding's, of zeros
    with torch.no_grad():
        source, target = (each.model.get_input_embeddings()(ids) for each in (prompter, reader))
    by_frequency = (torch.arange(255) + 10.0).rsqrt()
    expected = closed_form_map(source, target, AlignmentConfig(ridge=1e-3), seed=0, weights=by_frequency)
    torch.testing.assert_close(alignment.base, expected.weight, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(alignment.bias.detach(), expected.bias, atol=1e-5, rtol=1e-4)


def test_one_backbone_with_itself_starts_near_the_identity(family: str, new_backbone: NewBackbone) -> None:
    prompter, reader = new_backbone(family, head=True), new_backbone(family)
    alignment = fit_alignment(prompter, reader, AlignmentConfig(ridge=1e-6))
    torch.testing.assert_close(alignment.base, torch.eye(reader.dim), atol=1e-3, rtol=0)


def test_the_vocabulary_alignment_pairs_the_shared_strings(new_backbone: NewBackbone) -> None:
    prompter, reader = new_backbone("tiny-gemma3", head=True), new_backbone("tiny-qwen3")
    alignment = fit_alignment(prompter, reader, AlignmentConfig(kind="vocabulary"))
    assert isinstance(alignment, VocabularyAlignment)
    assert alignment.source_ids.tolist() == alignment.target_ids.tolist() == list(range(1, 256))


def test_rows_that_training_never_touched_are_left_out(new_backbone: NewBackbone) -> None:
    """Zero rows, tiny ones, and such as are all alike say nothing about a string."""
    prompter, reader = new_backbone("tiny-llama", head=True), new_backbone("tiny-qwen3")
    with torch.no_grad():
        prompter.input_embeddings[3] = 0
        reader.input_embeddings[5] *= 1e-3
        reader.input_embeddings[[7, 9]] = reader.input_embeddings[11].clone()
    alignment = fit_alignment(prompter, reader, AlignmentConfig(kind="vocabulary"))
    assert isinstance(alignment, VocabularyAlignment)
    assert alignment.source_ids.tolist() == [i for i in range(256) if i not in (3, 5, 7, 9, 11)]
    assert alignment_fit(prompter, reader, AlignmentConfig()).shared_strings == 251


def test_vocabularies_that_share_too_few_strings_are_refused(
    new_backbone: NewBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = torch.arange(31)
    monkeypatch.setattr("promptembedder.method.alignment.shared_token_ids", lambda *_: (few, few))
    with pytest.raises(
        BackboneError, match="'random:tiny-llama' and 'random:tiny-qwen3' share 31 strings, at least 32"
    ):
        fit_alignment(new_backbone("tiny-llama", head=True), new_backbone("tiny-qwen3"), AlignmentConfig())


def test_new_parts_are_the_same_each_time(new_config: Callable) -> None:
    one, other = (build_parts(new_config("tiny-qwen3"), seed=3) for _ in range(2))
    for left, right in ((one.alignment, other.alignment), (one.prompter, other.prompter)):
        assert all(torch.equal(*pair) for pair in zip(left.parameters(), right.parameters(), strict=True))


def test_the_reader_has_no_head_and_does_not_train(new_config: Callable) -> None:
    parts = build_parts(new_config())
    assert parts.reader.model.get_output_embeddings() is None
    assert not any(weight.requires_grad for weight in parts.reader.parameters())
