"""Embedding of a corpus."""
