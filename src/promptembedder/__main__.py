"""`python -m promptembedder`."""

from promptembedder.cli import main

main()
