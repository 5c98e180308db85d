"""Text that every tokenizer and every file format can take: no lone surrogates."""

import re

from promptembedder.errors import DataError

__all__ = ["clean_text"]

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
