"""Benchmarks of PromptEmbedder: `python -m benchmarks --help`. Not part of the wheel."""
