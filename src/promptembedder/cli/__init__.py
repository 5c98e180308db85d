"""Command-line program."""

from promptembedder.cli.app import main

__all__ = ["main"]
