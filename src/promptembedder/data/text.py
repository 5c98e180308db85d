"""Text that every tokenizer and every file format can take: no lone surrogates."""

import re
from collections.abc import Sequence

from promptembedder.errors import DataError

__all__ = ["clean_instruction", "clean_text", "text_list"]

_SURROGATE = re.compile("[\ud800-\udfff]")


def clean_text(text: str) -> str:
    """`text` itself where it is valid Unicode; else a copy that can be encoded as UTF-8.

    Half an emoji, as JSON's backslash-u escapes and cut strings leave it, becomes U+FFFD; two halves that
    stand together become the one character they mean.

    Raises:
        DataError: `text` is no string.
    """
    if not isinstance(text, str):
        raise DataError(f"a text must be a str, got {type(text).__name__}. Convert it, or drop the row.")
    if _SURROGATE.search(text) is None:
        return text
    # UTF-16 knows surrogate pairs: a round trip through it joins whole ones and finds the lone ones
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def clean_instruction(instruction: str | None) -> str:
    """The instruction as `clean_text` gives it, without blanks around it; empty for None.

    Raises:
        DataError: It is neither a string nor None.
    """
    if instruction is None:
        return ""
    if not isinstance(instruction, str):
        raise DataError(
            f"an instruction must be a str, got {str(instruction)[:40]!r} ({type(instruction).__name__}). "
            "Say in words what the texts are embedded for; several instructions go to encode_instructions."
        )
    return clean_text(instruction).strip()


def text_list(values: Sequence[str], *, name: str) -> list[str]:
    """The values as a list; a single string is refused, since it would be taken for its letters.

    Raises:
        DataError: It is one string, or nothing to go through.
    """
    if isinstance(values, str):
        raise DataError(f"{name} must be a list of str, got the str {values[:40]!r}. Put it into a list.")
    try:
        return list(values)
    except TypeError as error:
        raise DataError(f"{name} must be a list of str, got {type(values).__name__}. Give a list.") from error
