"""Path of the module in a baseline of format 3: LoRA, full fine-tuning or frozen."""

from promptembedder.model import PooledEncoder

__all__ = ["PooledEncoder"]
