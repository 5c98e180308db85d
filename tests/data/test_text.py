"""Laws of clean_text."""

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptembedder.data import clean_text
from promptembedder.errors import DataError

ANY_TEXT = st.text(st.characters())  # surrogates included
MOSTLY_SURROGATES = st.text(st.sampled_from("\ud800\udbff\udc00\udfff\ud83d\ude00a\ufffd\U0001f600"))


def cleaned_slowly(text: str) -> str:
    """The plain reference: one character after the other."""
    out = []
    rest = list(text)
    while rest:
        here = rest.pop(0)
        if "\ud800" <= here <= "\udbff" and rest and "\udc00" <= rest[0] <= "\udfff":
            low = rest.pop(0)
            out.append(chr(0x10000 + ((ord(here) - 0xD800) << 10) + ord(low) - 0xDC00))
        else:
            out.append("\ufffd" if "\ud800" <= here <= "\udfff" else here)
    return "".join(out)


@given(ANY_TEXT | MOSTLY_SURROGATES)
def test_clean_text_can_always_be_encoded(text: str) -> None:
    clean_text(text).encode("utf-8")


@given(ANY_TEXT | MOSTLY_SURROGATES)
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    once = clean_text(text)
    assert clean_text(once) is once


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_that_can_be_encoded_comes_back_as_the_same_object(text: str) -> None:
    assert clean_text(text) is text


@given(MOSTLY_SURROGATES)
def test_clean_text_equals_a_slow_plain_reference(text: str) -> None:
    assert clean_text(text) == cleaned_slowly(text)


def test_a_pair_of_surrogates_becomes_the_character_it_means() -> None:
    assert clean_text("smile \ud83d\ude00!") == "smile \U0001f600!"


def test_a_lone_surrogate_becomes_the_replacement_character() -> None:
    assert clean_text("cut \ud83d") == "cut \ufffd"


@pytest.mark.parametrize(("value", "kind"), [(None, "NoneType"), (3, "int"), (b"text", "bytes")])
def test_a_text_that_is_no_string_is_refused_with_its_type(value: object, kind: str) -> None:
    unchecked = inspect.unwrap(clean_text)  # the suite's own type checks would refuse it first
    with pytest.raises(DataError, match=f"must be a str, got {kind}"):
        unchecked(value)
