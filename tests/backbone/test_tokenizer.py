"""Laws of token ids: text is text, whatever it spells."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from promptembedder.backbone import TextTokenizer
from promptembedder.backbone.random_models import random_tokenizer

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), min_size=1, max_size=4)
PLAIN = TextTokenizer(random_tokenizer(), needs_bos=False)
WITH_BOS = TextTokenizer(random_tokenizer(), needs_bos=True)
BOS, EOS = 256, 257


def kept_ids(batch: Any) -> list[list[int]]:
    rows = zip(batch.ids.tolist(), batch.mask.tolist(), strict=True)
    return [[token for token, one in zip(ids, mask, strict=True) if one] for ids, mask in rows]


def byte_ids(text: str) -> list[int]:
    """The plain reference: the random tokenizer has one token a byte."""
    return [token for byte in text.encode() for token in _ID_OF_BYTE[byte]]


_VOCAB = random_tokenizer().get_vocab()
_SYMBOLS = sorted(token for token in _VOCAB if len(token) == 1)
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in _PRINTABLE]
_ID_OF_BYTE = {byte: [_VOCAB[chr(byte)]] for byte in _PRINTABLE} | {
    byte: [_VOCAB[chr(256 + place)]] for place, byte in enumerate(_HIDDEN)
}


@given(TEXTS)
def test_ids_are_those_of_each_text_alone_and_padding_is_on_the_left(texts: list[str]) -> None:
    batch = PLAIN.tokenize(texts, max_length=100)
    assert kept_ids(batch) == [byte_ids(text) for text in texts]
    assert all(mask == sorted(mask) for mask in batch.mask.tolist())
    assert batch.ids.shape == batch.mask.shape == (len(texts), max(len(text.encode()) for text in texts))
    assert batch.truncated == 0


@given(TEXTS, st.integers(1, 12))
def test_a_text_over_the_limit_loses_its_end_and_is_counted(texts: list[str], limit: int) -> None:
    batch = PLAIN.tokenize(texts, max_length=limit)
    assert kept_ids(batch) == [byte_ids(text)[:limit] for text in texts]
    assert batch.truncated == sum(len(text.encode()) > limit for text in texts)


@given(TEXTS, st.integers(1, 12))
def test_the_limit_counts_the_begin_of_sequence_token(texts: list[str], limit: int) -> None:
    batch = WITH_BOS.tokenize(texts, max_length=limit)
    assert kept_ids(batch) == [[BOS, *byte_ids(text)[: limit - 1]] for text in texts]
    assert batch.truncated == sum(len(text.encode()) > limit - 1 for text in texts)


@given(TEXTS, st.integers(1, 30))
def test_a_tail_stays_whole_and_the_text_gives_way(texts: list[str], limit: int) -> None:
    suffixes = [f"?{place}" for place in range(len(texts))]
    batch = WITH_BOS.tokenize(texts, max_length=limit, suffixes=suffixes)
    for text, tail, ids in zip(texts, suffixes, kept_ids(batch), strict=True):
        assert ids == [BOS, *byte_ids(text)[: max(limit - 3, 0)], *byte_ids(tail)][:limit]


@pytest.mark.parametrize("text", ["<|end|>", "<|start|>", "a<|end|>b", "<|start|><|end|>", " <|end|> "])
def test_a_special_tokens_string_in_a_text_is_text(text: str) -> None:
    """A text must not be able to end itself."""
    ids = kept_ids(PLAIN.tokenize([text], max_length=100))[0]
    assert ids == byte_ids(text)
    assert not {BOS, EOS} & set(ids)


def test_a_tokenizer_that_begins_its_texts_itself_keeps_doing_so() -> None:
    foreign = random_tokenizer()
    foreign.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|start|> $A", pair="<|start|> $A $B", special_tokens=[("<|start|>", BOS)]
    )
    assert kept_ids(TextTokenizer(foreign, needs_bos=False).tokenize(["a"], max_length=9)) == [[BOS, *byte_ids("a")]]


def test_a_text_begins_with_its_start_where_it_has_no_bos_and_counts_it_as_no_text() -> None:
    batch = TextTokenizer(random_tokenizer(), needs_bos=False, text_start="\n").tokenize(["ab", ""], max_length=2)
    assert kept_ids(batch) == [byte_ids("\na"), byte_ids("\n")]
    assert batch.text_mask.tolist() == [[0, 1], [0, 0]]
    assert batch.truncated == 1
    with_bos = TextTokenizer(random_tokenizer(), needs_bos=True, text_start="\n")
    assert kept_ids(with_bos.tokenize(["ab"], max_length=9)) == [[BOS, *byte_ids("ab")]]


def test_an_end_of_sequence_token_is_never_added() -> None:
    """Soft tokens follow the text; an end in between would cut it off from them."""
    foreign = random_tokenizer()
    foreign.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|end|>", pair="$A $B <|end|>", special_tokens=[("<|end|>", EOS)]
    )
    assert kept_ids(TextTokenizer(foreign, needs_bos=False).tokenize(["a"], max_length=9)) == [byte_ids("a")]


def test_empty_texts_are_rows_without_tokens() -> None:
    assert kept_ids(PLAIN.tokenize(["", "a", ""], max_length=9)) == [[], byte_ids("a"), []]
    assert PLAIN.tokenize(["", ""], max_length=9).ids.shape == (2, 0)


def test_no_texts_are_a_batch_without_rows() -> None:
    batch = PLAIN.tokenize([], max_length=9)
    assert (batch.ids.shape, batch.mask.shape, batch.truncated) == ((0, 0), (0, 0), 0)


# -- what is put around a text ----------------------------------------------------------------------------------------


def texts_in(batch: Any) -> list[list[int]]:
    """The ids that the batch says are the text's own."""
    rows = zip(batch.ids.tolist(), batch.text_mask.tolist(), strict=True)
    return [[token for token, one in zip(ids, mask, strict=True) if one] for ids, mask in rows]


@given(TEXTS, st.integers(0, 12))
def test_head_and_tail_stand_whole_around_a_text_that_has_a_length_of_its_own(texts: list[str], length: int) -> None:
    prefixes, suffixes = ([f"{sign}{place} " for place in range(len(texts))] for sign in "<>")
    batch = WITH_BOS.tokenize(texts, max_length=200, text_length=length, prefixes=prefixes, suffixes=suffixes)
    kept = [byte_ids(text)[:length] for text in texts]
    whole = [[BOS, *byte_ids(h), *own, *byte_ids(t)] for h, own, t in zip(prefixes, kept, suffixes, strict=True)]
    assert kept_ids(batch) == whole
    assert texts_in(batch) == kept
    assert batch.truncated == sum(len(text.encode()) > length for text in texts)
    assert batch.ids.shape == batch.mask.shape == batch.text_mask.shape


@given(TEXTS, st.integers(1, 30))
def test_where_all_three_do_not_fit_the_text_gives_way(texts: list[str], limit: int) -> None:
    prefixes, suffixes = ["ask "] * len(texts), [" !"] * len(texts)
    batch = WITH_BOS.tokenize(texts, max_length=limit, text_length=9, prefixes=prefixes, suffixes=suffixes)
    rooms = max(limit - 1 - 4 - 2, 0)
    for text, ids in zip(texts, kept_ids(batch), strict=True):
        own = byte_ids(text)[: min(rooms, 9)]
        assert ids == [BOS, *byte_ids("ask "), *own, *byte_ids(" !")][:limit]
    assert texts_in(batch) == [byte_ids(text)[: min(rooms, 9)] for text in texts]
    assert batch.truncated == sum(len(text.encode()) > min(rooms, 9) for text in texts)


@given(TEXTS, st.integers(1, 12))
def test_with_nothing_around_it_all_but_the_begin_of_sequence_token_is_the_text(texts: list[str], limit: int) -> None:
    batch = WITH_BOS.tokenize(texts, max_length=limit)
    assert texts_in(batch) == [byte_ids(text)[: limit - 1] for text in texts]
    assert all(mask == sorted(mask) for mask in batch.text_mask.tolist())


def test_a_special_tokens_string_in_a_head_or_tail_is_text() -> None:
    batch = PLAIN.tokenize(["a"], max_length=99, prefixes=["<|end|>"], suffixes=["<|start|>"])
    assert kept_ids(batch) == [[*byte_ids("<|end|>"), *byte_ids("a"), *byte_ids("<|start|>")]]


def test_no_texts_within_heads_are_a_batch_without_rows() -> None:
    batch = PLAIN.tokenize([], max_length=9, prefixes=[], suffixes=[])
    assert batch.ids.shape == batch.mask.shape == batch.text_mask.shape == (0, 0)
