"""Path of the module in a PromptEmbedder of format 3."""

from promptembedder.model import DualEncoder

__all__ = ["DualEncoder"]
