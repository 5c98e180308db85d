"""Gradients through the reused text states: exact, only where something trains, and without the text's activations."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor
from torch.nn import functional as F

from promptembedder import PromptEmbedder
from promptembedder.backbone import forward_embeddings, forward_suffix, prefill
from promptembedder.method import AlignmentConfig, RelaxationConfig

NewModel = Callable[..., PromptEmbedder]
SlowVectors = Callable[[PromptEmbedder, Sequence[str], str], Tensor]

QUERY, DOCUMENT = "find the answer", "represent the document"
COLUMNS = {
    "anchor": ["what is red?", "who runs", "", "where does the river end, and when?"],
    "positive": ["the house is red", "the dog", "nothing at all", "in the sea"],
    "negative": ["a song", "no", "stone and lamp and door and road", "x"],
}


def features_of(model: PromptEmbedder, *, document: str = QUERY) -> list[dict[str, Any]]:
    prompts = {"anchor": QUERY, "positive": document, "negative": document}
    return [model.preprocess(texts, prompt=prompts[name]) for name, texts in COLUMNS.items()]


def gradients(model: PromptEmbedder) -> dict[str, Tensor]:
    """Gradient of each trained weight by name; all others must have none."""
    named = dict(model.named_parameters())
    assert all(weight.grad is None for weight in named.values() if not weight.requires_grad)
    return {name: weight.grad.clone() for name, weight in named.items() if weight.grad is not None}


def info_nce_slowly(anchors: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """The plain reference of MultipleNegativesRankingLoss: each anchor against all positives and negatives."""
    scores = 20.0 * anchors @ torch.cat([positives, negatives]).T
    return F.cross_entropy(scores, torch.arange(len(anchors)))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal up to 1e-5 of the largest entry of all: gradients that are zero in one may be tiny in the other."""
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 1e-4
    for name, gradient in expected.items():
        difference = float((found[name] - gradient).abs().max())
        assert difference <= 1e-5 * largest, name


def loss_gradients(model: PromptEmbedder, loss: torch.nn.Module, **changes: Any) -> dict[str, Tensor]:
    model.train()
    loss(features_of(model, **changes), None).backward()
    return gradients(model)


def assert_gradients_are_those_of_the_plain_pass(model: PromptEmbedder, slow_vectors: SlowVectors) -> None:
    fast = loss_gradients(model, MultipleNegativesRankingLoss(model), document=DOCUMENT)
    model.zero_grad()
    instructions = (QUERY, DOCUMENT, DOCUMENT)
    columns = zip(COLUMNS.values(), instructions, strict=True)
    info_nce_slowly(*(slow_vectors(model, texts, instruction) for texts, instruction in columns)).backward()
    assert_same(fast, gradients(model))


@pytest.mark.every_family
def test_gradients_are_those_of_one_plain_full_pass(
    family: str, new_model: NewModel, slow_vectors: SlowVectors
) -> None:
    assert_gradients_are_those_of_the_plain_pass(new_model(family, family), slow_vectors)


@pytest.mark.parametrize(
    ("tuning", "kind"),
    [("lora", "linear"), ("full", "linear"), ("frozen", "linear"), ("lora", "vocabulary"), ("full", "vocabulary")],
)
def test_gradients_are_those_of_one_plain_full_pass_whatever_trains(
    tuning: str, kind: str, new_model: NewModel, slow_vectors: SlowVectors
) -> None:
    model = new_model("tiny-gemma3", tuning=tuning, alignment=AlignmentConfig(kind=kind))
    assert_gradients_are_those_of_the_plain_pass(model, slow_vectors)


@pytest.mark.parametrize("kind", ["top_k", "hidden", "straight_through"])
def test_gradients_are_those_of_one_plain_full_pass_under_each_relaxation(
    kind: str, new_model: NewModel, slow_vectors: SlowVectors
) -> None:
    assert_gradients_are_those_of_the_plain_pass(new_model(relaxation=RelaxationConfig(kind=kind)), slow_vectors)


def test_gradients_of_a_prefix_are_those_of_one_plain_full_pass(new_model: NewModel, slow_vectors: SlowVectors) -> None:
    assert_gradients_are_those_of_the_plain_pass(new_model("tiny-gemma3", placement="prefix"), slow_vectors)


@pytest.mark.parametrize("document", [QUERY, DOCUMENT])
def test_columns_embedded_together_have_the_gradients_of_columns_one_by_one(document: str, new_model: NewModel) -> None:
    model = new_model("tiny-gemma3")
    loss = MultipleNegativesRankingLoss(model)
    plain = loss_gradients(model, loss, document=document)
    model.zero_grad()
    columns = features_of(model, document=document)
    model.encoder.embed_columns(columns)
    loss(columns, None).backward()
    assert_same(gradients(model), plain)


@pytest.mark.parametrize("document", [QUERY, DOCUMENT])
def test_the_cached_loss_has_the_gradients_of_the_plain_one(document: str, new_model: NewModel) -> None:
    """It reads each mini-batch twice, once without gradient, and goes back through them one by one."""
    model = new_model("tiny-qwen3")
    plain = loss_gradients(model, MultipleNegativesRankingLoss(model), document=document)
    model.zero_grad()
    cached = CachedMultipleNegativesRankingLoss(model, mini_batch_size=2)
    assert_same(loss_gradients(model, cached, document=document), plain)


@pytest.mark.parametrize(
    ("tuning", "with_text", "placement"),
    [
        ("lora", False, "suffix"),
        ("full", False, "suffix"),
        ("frozen", False, "suffix"),
        ("lora", False, "prefix"),
        ("lora", True, "suffix"),
    ],
)
def test_a_step_changes_what_trains_and_not_one_bit_of_anything_else(
    tuning: str, with_text: bool, placement: str, new_model: NewModel
) -> None:
    model = new_model("tiny-gemma3", tuning=tuning, with_text=with_text, placement=placement)
    before = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    assert trained == loss_gradients(model, MultipleNegativesRankingLoss(model)).keys()
    optimiser.step()
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    tied = {name for name in changed if "lm_head" in name}  # the prompter's head is its table
    assert changed - tied == trained - tied
    assert not any(".reader." in name for name in changed)


def test_with_the_vocabulary_alignment_nothing_but_the_prompter_trains(new_model: NewModel) -> None:
    model = new_model(alignment=AlignmentConfig(kind="vocabulary"), deep_prompt_interval=0, text_pooling_weight=0.0)
    found = loss_gradients(model, MultipleNegativesRankingLoss(model))
    assert all(".prompter." in name and ".lora_" in name for name in found)
    assert max(float(gradient.abs().max()) for gradient in found.values()) > 1e-4


# -- what is kept for the backward pass -------------------------------------------------------------------------------


class Kept:
    """Shapes and bytes of what autograd keeps inside the block, weights aside; memory that is shared counts once."""

    def __init__(self, model: PromptEmbedder) -> None:
        self._weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        self._storages: dict[int, torch.UntypedStorage] = {}
        self.shapes: list[tuple[int, ...]] = []

    def __enter__(self) -> "Kept":
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._hooks.__exit__(*details)

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self._storages.values())

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._weights:
            self._storages[storage.data_ptr()] = storage
            self.shapes.append(tuple(tensor.shape))
        return tensor


def kept_by_suffix(model: PromptEmbedder, length: int, prompt: int) -> Kept:
    encoder = model.encoder
    soft = torch.randn(2, prompt, encoder.reader.dim, requires_grad=True)
    ids, mask = torch.randint(1, 250, (2, length)), torch.ones(2, length, dtype=torch.long)
    with Kept(model) as kept:
        states = prefill(encoder.reader.decoder, ids, mask)
        kept.result = forward_suffix(encoder.reader.decoder, states, soft)
    return kept


def kept_by_full_pass(model: PromptEmbedder, length: int, prompt: int) -> Kept:
    reader = model.encoder.reader
    soft = torch.randn(2, prompt, reader.dim, requires_grad=True)
    text = reader.model.get_input_embeddings()(torch.randint(1, 250, (2, length)))
    with Kept(model) as kept:
        mask = torch.ones(2, length + prompt, dtype=torch.long)
        kept.result = forward_embeddings(reader.decoder, torch.cat([text, soft], dim=1), mask)
    return kept


def test_no_activation_of_the_text_is_kept_for_the_backward_pass(family: str, new_model: NewModel) -> None:
    """Only keys, values and what K queries see of them may grow with the text."""
    model, prompt = new_model(family), 3
    decoder = model.encoder.reader.decoder
    states = prefill(decoder, torch.ones(2, 1, dtype=torch.long), torch.ones(2, 1, dtype=torch.long))
    heads, head_dim = decoder.config.num_attention_heads, states.keys[0].shape[-1]
    queries = {groups * prompt for groups in range(1, heads + 1)}  # heads that share a key may be stacked
    short, long = kept_by_suffix(model, 37, prompt), kept_by_suffix(model, 74, prompt)
    grown = [pair for pair in zip(short.shapes, long.shapes, strict=True) if pair[0] != pair[1]]
    assert grown
    for before, after in grown:
        places = [place for place, sizes in enumerate(zip(before, after, strict=True)) if len(set(sizes)) > 1]
        assert [before[place] for place in places] == [37 + prompt], f"{before}: a state of the text"
        assert places[0] >= len(before) - 2
        assert before[-1 if places[0] == len(before) - 2 else -2] in {head_dim, 1, *queries}, before


def test_a_text_of_twice_the_length_keeps_no_more_than_its_keys_and_values(family: str, new_model: NewModel) -> None:
    model, prompt = new_model(family), 3
    short, long = kept_by_suffix(model, 37, prompt), kept_by_suffix(model, 74, prompt)
    reader = model.encoder.reader
    one = prefill(reader.decoder, torch.ones(2, 1, dtype=torch.long), torch.ones(2, 1, dtype=torch.long))
    a_token = sum(tensor.nbytes for tensor in (*one.keys, *one.values))
    heads = reader.model.config.num_attention_heads
    copies = heads // one.keys[0].shape[1]  # keys may be copied for each of their query heads
    attention = (
        reader.identity.layers * 2 * heads * prompt * 4 * 4
    )  # scores, mask and weights of K queries in two texts
    assert long.bytes - short.bytes <= 37 * (copies * a_token + attention)


def test_the_suffix_keeps_several_times_less_than_a_full_pass(family: str, new_model: NewModel) -> None:
    model = new_model(family)
    assert 4 * kept_by_suffix(model, 74, 3).bytes < kept_by_full_pass(model, 74, 3).bytes
