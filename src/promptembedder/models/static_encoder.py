"""Path of the module in a static baseline of format 3."""

from promptembedder.model import StaticEncoder

__all__ = ["StaticEncoder"]
