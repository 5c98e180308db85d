"""The frozen reader alone, behind the same door."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from promptembedder.backbones import Backbone
from promptembedder.errors import ConfigError, DataError
from promptembedder.models import Encoder, frozen_pooling

NewBackbone = Callable[..., Backbone]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_vector_is_the_pooled_state_of_the_text_read_plainly(
    family: str, pooling: str, new_backbone: NewBackbone, texts: list[str]
) -> None:
    reader = new_backbone(family)
    found = frozen_pooling(reader, pooling=pooling).encode(texts)
    for text, vector in zip(texts, found, strict=True):
        ids = reader.tokenizer.tokenize([text], max_length=90).ids
        slow = np.zeros(reader.dim)
        if ids.shape[1]:
            with torch.no_grad():
                states = reader.decoder(input_ids=ids, use_cache=False).last_hidden_state[0]
            own = states[1:] if reader.quirks.needs_bos else states  # the mean is over the text, without its BOS
            state = (own.mean(dim=0) if pooling == "mean" else states[-1]).numpy()
            slow = state / np.linalg.norm(state) if len(own) or pooling == "last" else np.zeros(reader.dim)
        np.testing.assert_allclose(vector, slow, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_empty_texts_alone_have_the_zero_vector(pooling: str, new_backbone: NewBackbone) -> None:
    """A batch of nothing else has no position to take the last of."""
    found = frozen_pooling(new_backbone("tiny-llama"), pooling=pooling).encode(["", ""])
    np.testing.assert_array_equal(found, np.zeros((2, 32), dtype=np.float32))


def test_the_instruction_is_ignored_and_nothing_trains(new_backbone: NewBackbone) -> None:
    model = frozen_pooling(new_backbone("tiny-llama"))
    np.testing.assert_array_equal(model.encode(["a"], prompt="find"), model.encode(["a"]))
    assert not any(weight.requires_grad for weight in model.parameters())
    assert isinstance(model, Encoder)


def test_texts_are_cut_at_the_positions_of_gpt2(new_backbone: NewBackbone) -> None:
    """Text 97 and on had no position to stand at."""
    model = frozen_pooling(new_backbone("tiny-gpt2"))
    np.testing.assert_allclose(model.encode(["x" * 500]), model.encode(["x" * 96]), atol=1e-5)


def test_an_unknown_pooling_is_refused(new_backbone: NewBackbone) -> None:
    with pytest.raises(ConfigError, match="unknown pooling 'max'. Use one of: mean, last"):
        frozen_pooling(new_backbone("tiny-llama"), pooling="max")


def test_a_text_that_is_no_string_is_refused(new_backbone: NewBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    import inspect

    from promptembedder.data import clean_text
    from promptembedder.models import PooledEncoder, TextEncoder

    monkeypatch.setattr(PooledEncoder, "preprocess", inspect.unwrap(PooledEncoder.preprocess))
    monkeypatch.setattr(TextEncoder, "token_features", inspect.unwrap(TextEncoder.token_features))
    monkeypatch.setattr("promptembedder.models.text_encoder.clean_text", inspect.unwrap(clean_text))
    with pytest.raises(DataError, match="a text must be a str, got int"):
        frozen_pooling(new_backbone("tiny-llama")).encode(["a", 3])
