"""Maps between hidden states, against plain least squares over texts read one by one."""

from collections.abc import Callable

import torch

from promptembedder import PromptEmbedder
from promptembedder.backbone import Backbone, BackboneConfig
from promptembedder.model import TransferConfig, transfer_encoder
from promptembedder.model.transfer import hidden_maps

NewBackbone = Callable[..., Backbone]
WORDS = "the red house by a cold river was old but its doors were new and round"
TEXTS = [" ".join(WORDS.split()[start : start + 1 + start % 5]) for start in range(14)] + [
    "",
    "Grüße 🙂",
    "<|im_end|> x",
]


def slow_states(reader: Backbone, text: str, layer: int) -> torch.Tensor:
    """States that enter a layer at each byte of the text: the tiny tokenizers cut texts into bytes."""
    own = reader.tokenizer.hf(text, add_special_tokens=False)["input_ids"]
    assert len(own) == len(text.encode())
    ids = torch.tensor([reader.tokenizer.prefix + own])
    with torch.no_grad():
        states = reader.decoder(input_ids=ids, output_hidden_states=True).hidden_states
    return states[layer][0, len(reader.tokenizer.prefix) :].double()


def test_a_map_is_the_least_squares_map_over_the_places_where_tokens_of_both_end(new_backbone: NewBackbone) -> None:
    source, target = new_backbone("tiny-qwen3"), new_backbone("tiny-gemma3")
    plain = [text for text in TEXTS if text and text.isascii()]
    found = hidden_maps(source, target, plain, [(1, 2), (2, 1)])
    for (a, b), one in zip([(1, 2), (2, 1)], found, strict=True):
        x = torch.cat([slow_states(source, text, a) for text in plain])
        y = torch.cat([slow_states(target, text, b) for text in plain])
        x, y = x - x.mean(dim=0), y - y.mean(dim=0)
        ridge = 1e-3 * (x * x).sum(dim=0).mean()
        nothing = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64)
        rows = torch.cat([x, ridge.sqrt() * torch.eye(x.shape[1], dtype=torch.float64)])
        slow = torch.linalg.lstsq(rows, torch.cat([y, nothing])).solution
        torch.testing.assert_close(one.double(), slow, atol=1e-3 * float(slow.abs().max()), rtol=1e-3)


def test_texts_of_any_kind_are_read_and_none_at_all_maps_to_nothing(new_backbone: NewBackbone, family: str) -> None:
    source, target = new_backbone(family), new_backbone("tiny-llama")
    (one,) = hidden_maps(source, target, TEXTS, [(1, 1)])
    assert bool(torch.isfinite(one).all())
    assert float(one.abs().max()) > 0
    (none,) = hidden_maps(source, target, ["", ""], [(1, 1)])
    assert float(none.abs().max()) == 0


def test_deeper_alignments_follow_the_texts_to_another_reader(new_model: Callable[..., PromptEmbedder]) -> None:
    model = new_model("tiny-qwen3", "tiny-llama")
    move = TransferConfig(reader=BackboneConfig(source="random:tiny-gemma3", dtype="float32"))
    old, new = model.encoder.deep, transfer_encoder(model.encoder, move, texts=TEXTS).encoder.deep
    plain = transfer_encoder(model.encoder, move).encoder.deep
    assert old is not None
    assert new is not None
    assert plain is not None
    assert not bool(plain.up.any())
    assert not bool(plain.bias.any())
    assert torch.equal(new.down, old.down)
    reader = transfer_encoder(model.encoder, move).encoder.reader
    layers = [(1, 1), (2, 2)]  # three layers in each family
    for level, onward in enumerate(hidden_maps(model.encoder.reader, reader, TEXTS, layers)):
        torch.testing.assert_close(new.up[level], old.up[level] @ onward)
        torch.testing.assert_close(new.bias[level], old.bias[level] @ onward)
