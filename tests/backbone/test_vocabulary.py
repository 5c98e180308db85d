"""Strings that two vocabularies share."""

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from promptembedder.backbone import shared_token_ids
from promptembedder.backbone.random_models import random_tokenizer

DECODERS = {
    "metaspace": decoders.Metaspace(),
    "replace": decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    "byte-level": decoders.ByteLevel(),
    "nested": decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()]),
}


def tokenizer(tokens: list[str], decoder: str, *, special: tuple[str, ...] = ("<s>",)) -> PreTrainedTokenizerFast:
    """A vocabulary of `tokens`, numbered in order; the special ones come last."""
    made = Tokenizer(models.BPE(vocab={token: place for place, token in enumerate(tokens)}, merges=[]))
    made.decoder = DECODERS[decoder]
    made.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=special[0])


def pairs(source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> list[tuple[str, str]]:
    ids = zip(*(column.tolist() for column in shared_token_ids(source, target)), strict=True)
    return [(source.convert_ids_to_tokens(one), target.convert_ids_to_tokens(other)) for one, other in ids]


def test_the_same_tokenizer_pairs_each_ordinary_token_with_itself() -> None:
    source, target = shared_token_ids(random_tokenizer(), random_tokenizer())
    assert source.tolist() == target.tolist() == list(range(256))


@pytest.mark.parametrize("sentencepiece", ["metaspace", "replace"])
@pytest.mark.parametrize("byte_level", ["byte-level", "nested"])
def test_each_familys_marks_for_spaces_and_bytes_are_understood(byte_level: str, sentencepiece: str) -> None:
    source = tokenizer(["Ġthe", "the", "Ċ", "Ã¼", "Ġ", "only", "Ã"], byte_level)
    target = tokenizer(["alone", "▁", "the", "<0x0A>", "▁the", "ü", "<0xC3>"], sentencepiece)
    expected = [("Ġthe", "▁the"), ("the", "the"), ("Ċ", "<0x0A>"), ("Ã¼", "ü"), ("Ġ", "▁"), ("Ã", "<0xC3>")]
    assert pairs(source, target) == expected
    assert sorted(pairs(target, source)) == sorted((other, one) for one, other in expected)


def test_special_and_added_tokens_spell_nothing() -> None:
    source = tokenizer(["a", "b"], "byte-level", special=("<s>", "<pad>"))
    target = tokenizer(["b", "a"], "metaspace", special=("<s>", "<pad>"))
    source.add_tokens(["<repo>"])
    target.add_tokens(["<repo>"])
    assert pairs(source, target) == [("a", "a"), ("b", "b")]


def test_of_two_tokens_with_one_spelling_the_older_counts() -> None:
    source = tokenizer(["x", "Ġ"], "byte-level")
    target = tokenizer(["a", "<0x20>", "▁"], "replace")
    assert pairs(source, target) == [("Ġ", "<0x20>")]


def test_a_token_outside_the_byte_alphabet_spells_nothing() -> None:
    """Its other symbols used to be dropped, so that it stood for what was left of it."""
    source = tokenizer(["▁the", "▁", "the", ""], "byte-level")
    target = tokenizer(["the", "▁", ""], "metaspace")
    assert pairs(source, target) == [("the", "the")]


def test_vocabularies_without_a_shared_string_give_no_pairs() -> None:
    source, target = shared_token_ids(tokenizer(["a"], "byte-level"), tokenizer(["b"], "metaspace"))
    assert (source.shape, target.shape) == ((0,), (0,))
