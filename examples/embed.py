"""Embed three texts under an instruction: python examples/embed.py MODEL_FOLDER_OR_BACKBONE."""

import sys
from pathlib import Path

from promptembedder import PromptEmbedder

TEXTS = ["The river burst its banks.", "Flooding closed the road.", "The recipe needs two eggs."]


def main(name: str) -> None:
    """Print the similarities of the texts."""
    known = Path(name).is_dir()
    model = PromptEmbedder.from_pretrained(name) if known else PromptEmbedder.create(prompter=name)
    vectors = model.encode(TEXTS, prompt="Represent the topic of the text")
    print(vectors.shape)
    print(model.similarity(vectors, vectors))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")
