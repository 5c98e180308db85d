"""The command-line program: parse, call, print."""

from promptembedder.cli.app import main

__all__ = ["main"]
